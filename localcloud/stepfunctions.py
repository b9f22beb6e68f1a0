"""moto's Step Functions interpreter, corrected where our workflows need it.

It is the most faithful one that runs on one machine (error names, timeouts, JSONata). `install` must run
before a state machine does; it changes moto in this process only, each change with its reason beside it.
"""

from __future__ import annotations

import datetime as dt
import logging
import re
import sys
import threading
import uuid
from collections.abc import Callable
from typing import Any

import boto3
import jsonata
from botocore.config import Config
from botocore.exceptions import ClientError
from moto.core.config import default_user_config
from moto.stepfunctions.parser import models
from moto.stepfunctions.parser.api import HistoryEventType, TaskFailedEventDetails
from moto.stepfunctions.parser.asl.component.common.error_name.custom_error_name import CustomErrorName
from moto.stepfunctions.parser.asl.component.common.error_name.failure_event import (
    FailureEvent,
    FailureEventException,
)
from moto.stepfunctions.parser.asl.component.common.error_name.states_error_name import StatesErrorName
from moto.stepfunctions.parser.asl.component.common.error_name.states_error_name_type import (
    StatesErrorNameType,
)
from moto.stepfunctions.parser.asl.component.state.exec.state_map.iteration import iteration_worker
from moto.stepfunctions.parser.asl.component.state.exec.state_parallel import branches_decl
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service import (
    state_task_service_factory,
    state_task_service_glue,
)
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service.resource import ResourceCondition
from moto.stepfunctions.parser.asl.component.state.exec.state_task.service.state_task_service_unsupported import (  # noqa: E501
    StateTaskServiceUnsupported,
)
from moto.stepfunctions.parser.asl.component.state.fail import state_fail
from moto.stepfunctions.parser.asl.eval.event.event_detail import EventDetails
from moto.stepfunctions.parser.asl.jsonata import jsonata as asl_jsonata
from moto.stepfunctions.parser.asl.utils import boto_client, json_path
from moto.stepfunctions.parser.asl.utils.encoding import to_json_str

MANY_PLACES = re.compile(r"\.\.|[*?@]|\(|\[[^\]]*[:,]")
JOB = re.compile(r"create_(\w+_job)")
CREDENTIALS = {"aws_access_key_id": "local", "aws_secret_access_key": "local"}
TIMES_IN_MILLISECONDS = ("glue", "sagemaker")


class Clients:
    """boto3 clients of the local AWS, one for each service.

    moto makes a client for every task, through boto3's shared session, which two branches of a Parallel state
    must not do at once; and it would ask itself, where neither deployed handlers nor our job runners are.
    """

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._session = boto3.session.Session(**CREDENTIALS)
        self._clients: dict[tuple[str, str], Any] = {}
        self._lock = threading.Lock()

    def __call__(self, region: str, service: str, state_credentials: Any = None) -> Any:
        """A client; `state_credentials` is moto's parameter and of no use here."""
        del state_credentials
        with self._lock:
            if (region, service) not in self._clients:
                self._clients[region, service] = self._create(region, service)
            return self._clients[region, service]

    def _create(self, region: str, service: str) -> Any:
        one_try = Config(
            parameter_validation=False,
            retries={"total_max_attempts": 1},
            read_timeout=900,
            max_pool_connections=32,
        )
        client = self._session.client(service, region, endpoint_url=self._endpoint, config=one_try)
        if service in TIMES_IN_MILLISECONDS:
            client.meta.events.register("after-call", _times_as_numbers)
        return client


class TrainingTask(StateTaskServiceUnsupported):
    """`sagemaker:create*Job`, also with `.sync`, which moto does not have."""

    def __init__(self) -> None:
        super().__init__()
        self._supported_integration_patterns = {ResourceCondition.WaitForTaskToken, ResourceCondition.Sync}

    def _log_unsupported_warning(self) -> None:
        """Say nothing: it is supported here."""

    def _build_sync_resolver(
        self, env: Any, resource_runtime_part: Any, normalised_parameters: Any, state_credentials: Any
    ) -> Callable[[], dict[str, Any] | None]:
        env.stack.pop()
        kind = JOB.fullmatch(self._get_boto_service_action())
        if kind is None:
            raise RuntimeError(
                f"Unsupported .sync callback procedure in resource {self.resource.resource_arn}"
            )
        client = boto_client.boto_client_for(resource_runtime_part.region, "sagemaker", state_credentials)
        prefix = "".join(part.title() for part in kind[1].split("_"))
        name = normalised_parameters[f"{prefix}Name"]

        def resolve() -> dict[str, Any] | None:
            job: dict[str, Any] = getattr(client, f"describe_{kind[1]}")(**{f"{prefix}Name": name})
            job.pop("ResponseMetadata", None)
            status = job[f"{prefix}Status"]
            if status in ("Failed", "Stopped"):
                raise FailureEventException(self._failure(env, "States.TaskFailed", to_json_str(job)))
            return job if status == "Completed" else None

        return resolve

    def _from_error(self, env: Any, ex: Exception) -> Any:
        if isinstance(ex, ClientError):
            error = ex.response["Error"]
            return self._failure(env, f"SageMaker.{error['Code']}", error["Message"])
        return super()._from_error(env=env, ex=ex)

    def _failure(self, env: Any, error: str, cause: str) -> FailureEvent:
        return FailureEvent(
            env=env,
            error_name=_error_name(error),
            event_type=HistoryEventType.TaskFailed,
            event_details=EventDetails(
                taskFailedEventDetails=TaskFailedEventDetails(
                    error=error,
                    cause=cause,
                    resource=self._get_sfn_resource(),
                    resourceType=self._get_sfn_resource_type(),
                )
            ),
        )


def _error_name(error_name: str | None) -> StatesErrorName | CustomErrorName:
    """An error by its name, one of the language's own or any other."""
    if error_name is not None and error_name.startswith("States."):
        return StatesErrorName(typ=StatesErrorNameType.from_name(error_name))
    return CustomErrorName(error_name)


def install(endpoint: str) -> None:
    """Correct moto's interpreter and let its tasks call the AWS at `endpoint`."""
    default_user_config["stepfunctions"]["execute_state_machine"] = True  # else executions only pretend
    _rebind("boto_client_for", boto_client.boto_client_for, Clients(endpoint))
    _rebind("extract_json", json_path.extract_json, _value_at)
    _rebind("state_task_service_for", state_task_service_factory.state_task_service_for, _service_for)
    # Without a callback endpoint every glue .sync task ends in 'NoneType' has no attribute 'interrupt_all'.
    state_task_service_glue._SUPPORTED_INTEGRATION_PATTERNS.add(ResourceCondition.WaitForTaskToken)
    asl_jsonata._eval_jsonata = _evaluated  # moto wants a Java library for it
    # A branch or Fail state that passes on States.TaskFailed broke the execution, and the reason was lost.
    for module in (branches_decl, iteration_worker, state_fail):
        module.CustomErrorName = _error_name
    models.StepFunctionsParserBackend.start_execution = _named(
        models.StepFunctionsParserBackend.start_execution
    )
    # It warns about every region and service that it forwards to; that is how it works here.
    logging.getLogger(StateTaskServiceUnsupported.__module__).setLevel(logging.ERROR)


def _rebind(name: str, old: Any, new: Any) -> None:
    """Replace a function in every module that imported it by name."""
    for module in list(sys.modules.values()):
        if module is not None and vars(module).get(name) is old:
            setattr(module, name, new)


_FACTORY = state_task_service_factory.state_task_service_for


def _service_for(service_name: str) -> Any:
    return TrainingTask() if service_name == "sagemaker" else _FACTORY(service_name)


_EXTRACT = json_path.extract_json


def _value_at(path: str, data: Any) -> Any:
    """What a path to one place leads to; moto gives `$.list[0].field` inside a list."""
    if MANY_PLACES.search(path):
        return _EXTRACT(path, data)
    found = json_path.parse(path).find(data)
    if not found:
        raise json_path.NoSuchJsonPathError(json_path=path, data=data)
    return found[0].value


def _evaluated(expression: str) -> Any:
    return jsonata.Jsonata(expression).evaluate(None)


def _named(start_execution: Callable[..., Any]) -> Callable[..., Any]:
    """AWS names an unnamed execution; moto leaves it null, and with it `$$.Execution.Name`."""

    def start(self: Any, state_machine_arn: str, name: str | None = None, *rest: Any, **others: Any) -> Any:
        return start_execution(self, state_machine_arn, name or str(uuid.uuid4()), *rest, **others)

    return start


def _times_as_numbers(parsed: Any, **_: Any) -> None:
    """Times in a task's output are epoch milliseconds in AWS; a datetime would not fit in its JSON."""
    if isinstance(parsed, dict):
        parsed.update({key: _plain(value) for key, value in parsed.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, dt.datetime):
        return int(value.timestamp() * 1000)
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value
