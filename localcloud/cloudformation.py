"""Resource types that CloudFormation here must know beyond the emulator's own: those that moto keeps.

A type that neither knows is refused before anything is created: `Unrecognized resource types: [...]`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ministack.services import stepfunctions as emulated_stepfunctions
from ministack.services.cloudformation import provisioners

from localcloud.moto_app import Moto

Properties = dict[str, Any]
Created = tuple[str, dict[str, Any]]
STATE_MACHINE = "AWS::StepFunctions::StateMachine"
STORED_SECRET = "AWS::SecretsManager::Secret"  # noqa: S105  # the name of a type of resource


@dataclass(frozen=True)
class Kind:
    """How a type of resource is created and deleted by one operation each of a JSON service.

    `identifier` is the field that names the resource, in the request of the deletion too; `arn` is a field of
    the answer.
    """

    service: str
    target: str
    create: str
    delete: str
    identifier: str
    arn: str = ""
    identified_by: tuple[str, ...] = ()
    reference: tuple[str, ...] = ()  # the fields that Ref gives, joined by "|"; else Ref gives the ARN


SAGEMAKER = {"service": "sagemaker", "target": "SageMaker"}
SCALING = {"service": "application-autoscaling", "target": "AnyScaleFrontendService"}
SCALED = ("ResourceId", "ScalableDimension", "ServiceNamespace")  # in the order of a ScalableTarget's Ref
NOT_IN_THE_API = frozenset({"Tags", "ScheduledActions", "ScalingTargetId"})
KINDS = {
    "AWS::SageMaker::Model": Kind(
        **SAGEMAKER, create="CreateModel", delete="DeleteModel", identifier="ModelName", arn="ModelArn"
    ),
    "AWS::SageMaker::EndpointConfig": Kind(
        **SAGEMAKER,
        create="CreateEndpointConfig",
        delete="DeleteEndpointConfig",
        identifier="EndpointConfigName",
        arn="EndpointConfigArn",
    ),
    "AWS::SageMaker::Endpoint": Kind(
        **SAGEMAKER,
        create="CreateEndpoint",
        delete="DeleteEndpoint",
        identifier="EndpointName",
        arn="EndpointArn",
    ),
    "AWS::ApplicationAutoScaling::ScalableTarget": Kind(
        **SCALING,
        create="RegisterScalableTarget",
        delete="DeregisterScalableTarget",
        identifier="ResourceId",
        identified_by=SCALED,
        reference=SCALED,
    ),
    "AWS::ApplicationAutoScaling::ScalingPolicy": Kind(
        **SCALING,
        create="PutScalingPolicy",
        delete="DeleteScalingPolicy",
        identifier="PolicyName",
        arn="PolicyARN",
        identified_by=("PolicyName", *SCALED),
    ),
}


def install(moto: Moto) -> None:
    """Teach the emulator's CloudFormation our types; state machines then exist in moto, which runs them."""
    handlers = provisioners._RESOURCE_HANDLERS
    for name, kind in KINDS.items():
        handlers[name] = _provisioner(moto, kind)
    handlers[STATE_MACHINE] = _state_machines(moto, handlers[STATE_MACHINE])
    handlers[STORED_SECRET] = _secrets(handlers[STORED_SECRET])
    emulated_stepfunctions._start_execution = _started_in(moto)  # rules and schedules start machines with it


def _provisioner(moto: Moto, kind: Kind) -> Mapping[str, Any]:
    def create(logical_id: str, properties: Properties, stack: str) -> Created:
        name = {kind.identifier: provisioners._physical_name(stack, logical_id, max_len=63)}
        request = {**name, **_request(properties)}
        answer = moto.call(kind.service, f"{kind.target}.{kind.create}", request)
        reference = "|".join(request[field] for field in kind.reference) or answer[kind.arn]
        return reference, {kind.identifier: request[kind.identifier], "Arn": answer.get(kind.arn, reference)}

    def update(
        physical_id: str, old: Properties, new: Properties, stack: str, logical_id: str = ""
    ) -> Created:
        delete(physical_id, old)
        return create(logical_id, new, stack)

    def delete(physical_id: str, properties: Properties) -> None:
        request = {kind.identifier: physical_id.rpartition("/")[2], **_request(properties)}
        fields = {name: request[name] for name in (kind.identifier, *kind.identified_by)}
        moto.call(kind.service, f"{kind.target}.{kind.delete}", fields)

    return {"create": create, "update": update, "update_with_logical_id": True, "delete": delete}


def _request(properties: Properties) -> Properties:
    """A template's properties as the fields of the API."""
    target = properties.get("ScalingTargetId", "")
    scaled = dict(zip(SCALED, target.split("|"), strict=True)) if target else {}
    return _typed(
        {**scaled, **{key: value for key, value in properties.items() if key not in NOT_IN_THE_API}}
    )


def _typed(value: Any) -> Any:
    """Templates may write numbers and truths as text; the API wants them as such."""
    if isinstance(value, dict):
        return {key: _typed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_typed(inner) for inner in value]
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        return int(value)
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


def _state_machines(moto: Moto, emulated: Mapping[str, Any]) -> Mapping[str, Any]:
    """The emulator's own handlers, which resolve definitions and names, each followed by the same in moto."""

    def create(logical_id: str, properties: Properties, stack: str) -> Created:
        created: Created = emulated["create"](logical_id, properties, stack)
        _put(moto, created[0])
        return created

    def update(
        physical_id: str, old: Properties, new: Properties, stack: str, logical_id: str = ""
    ) -> Created:
        updated: Created = emulated["update"](physical_id, old, new, stack, logical_id)
        _put(moto, updated[0], exists=updated[0] == physical_id)
        return updated

    def delete(physical_id: str, properties: Properties) -> None:
        moto.call("states", "AWSStepFunctions.DeleteStateMachine", {"stateMachineArn": physical_id})
        emulated["delete"](physical_id, properties)

    return {**emulated, "create": create, "update": update, "delete": delete}


def _put(moto: Moto, arn: str, *, exists: bool = False) -> None:
    machine = emulated_stepfunctions._state_machines[arn]
    content = {"definition": machine["definition"], "roleArn": machine["roleArn"]}
    if exists:
        moto.call("states", "AWSStepFunctions.UpdateStateMachine", {"stateMachineArn": arn, **content})
        return
    named = {"name": machine["name"], "type": machine["type"], **content}
    moto.call("states", "AWSStepFunctions.CreateStateMachine", named)


def _started_in(moto: Moto) -> Callable[[Mapping[str, Any]], tuple[int, dict[str, str], bytes]]:
    def start(request: Mapping[str, Any]) -> tuple[int, dict[str, str], bytes]:
        moto.call("states", "AWSStepFunctions.StartExecution", dict(request))
        return 200, {}, b"{}"

    return start


def _secrets(emulated: Mapping[str, Any]) -> Mapping[str, Any]:
    """The emulator's own handlers, with Ref giving the ARN, and with names `<logical id>-<random>`.

    The CDK takes the name of a secret apart from its Ref, and would ask for one that does not exist.
    """

    def create(logical_id: str, properties: Properties, stack: str) -> Created:
        name = properties.get("Name") or f"{logical_id}-{uuid.uuid4().hex[:12]}"
        _, attributes = emulated["create"](logical_id, {**properties, "Name": name}, stack)
        return attributes["Arn"], attributes

    def update(
        physical_id: str, old: Properties, new: Properties, stack: str, logical_id: str = ""
    ) -> Created:
        name = {"Name": _secret_name(physical_id)}
        _, attributes = emulated["update"](name["Name"], {**name, **old}, {**name, **new}, stack, logical_id)
        return attributes["Arn"], attributes

    def delete(physical_id: str, properties: Properties) -> None:
        emulated["delete"](_secret_name(physical_id), properties)

    return {**emulated, "create": create, "update": update, "delete": delete}


def _secret_name(arn: str) -> str:
    return arn.rpartition(":")[2].rpartition("-")[0]
