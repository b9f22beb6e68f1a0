"""A deployed Lambda function on this machine: its configuration becomes environment, handler and context."""

from __future__ import annotations

import importlib
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any
from uuid import uuid4

from narrows.errors import NarrowsError

Handler = Callable[[Any, "Context"], Any]

REGION = "us-east-1"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}
# Set by Lambda for one function each: several functions in one process cannot agree on them, nor need to.
NAMES_ONE_FUNCTION = frozenset({"POWERTOOLS_SERVICE_NAME", "POWERTOOLS_METRICS_NAMESPACE"})
# Nothing that starts so is inherited: it would point a handler at somebody's real account.
OF_AWS = "AWS_"
NO_ACCOUNT = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}


class FunctionError(NarrowsError):
    """A deployed function cannot be loaded; says which one and why."""


class ConflictingEnvironment(FunctionError):
    """Two functions that share a process were deployed with different values of one variable."""


class TimedOut(BaseException):
    """The invocation passed the function's timeout; not an `Exception`, so that no handler swallows it."""


@dataclass(frozen=True)
class Function:
    """What GetFunctionConfiguration says of a deployed function; `timeout_s` in seconds."""

    name: str
    arn: str
    handler: str
    timeout_s: float = 3.0
    memory_mb: int = 128
    environment: Mapping[str, str] = field(default_factory=dict)
    version: str = "$LATEST"
    role: str = ""

    @property
    def label(self) -> str:
        """The folder of its handler, "update_features", where it has one: deployed names are generated."""
        parts = self.handler.replace("/", ".").split(".")
        return parts[-3] if len(parts) > 2 else self.name

    @classmethod
    def read(cls, client: Any, name: str) -> Function:
        """The configuration of the function `name` (or its ARN), from a boto3 Lambda client."""
        answer = client.get_function_configuration(FunctionName=name)
        return cls(
            name=answer["FunctionName"],
            arn=_without_version(answer["FunctionArn"]),
            handler=answer["Handler"],
            timeout_s=float(answer.get("Timeout", 3)),
            memory_mb=int(answer.get("MemorySize", 128)),
            environment=answer.get("Environment", {}).get("Variables", {}),
            version=answer.get("Version", "$LATEST"),
            role=answer.get("Role", ""),
        )


class Context:
    """The second argument of a handler, with the names that Lambda gives them."""

    def __init__(self, function: Function, request_id: str) -> None:
        self.function_name = function.name
        self.function_version = function.version
        self.invoked_function_arn = function.arn
        self.memory_limit_in_mb = str(function.memory_mb)
        self.aws_request_id = request_id
        self.log_group_name = f"/aws/lambda/{function.name}"
        self.log_stream_name = f"local/[{function.version}]"
        self.identity = None
        self.client_context = None
        self._deadline = time.monotonic() + function.timeout_s

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the function's timeout; never below zero."""
        return max(0, int((self._deadline - time.monotonic()) * 1000))


@dataclass(frozen=True)
class Outcome:
    """What one invocation came to: the handler's answer, or `error` in the shape that Lambda reports it."""

    request_id: str
    answer: Any = None
    error: Mapping[str, Any] | None = None

    @property
    def timed_out(self) -> bool:
        return self.error is not None and self.error["errorType"] == "Sandbox.Timedout"


def environment(
    functions: Iterable[Function], *, endpoint: str, inherited: Mapping[str, str], region: str = REGION
) -> dict[str, str]:
    """The environment of a process that runs `functions` against the AWS at `endpoint`.

    A variable with two different values raises ConflictingEnvironment: one process has one environment.
    """
    functions = tuple(functions)
    merged = {name: value for name, value in inherited.items() if not name.startswith(OF_AWS)}
    merged |= CREDENTIALS | NO_ACCOUNT
    merged |= {"AWS_ENDPOINT_URL": endpoint, "AWS_REGION": region, "AWS_DEFAULT_REGION": region}
    merged |= _agreed(functions)
    if len(functions) == 1:
        merged |= _reserved(functions[0])
    return merged


def enter(functions: Iterable[Function], endpoint: str) -> None:
    """Give this process the environment of `functions`; what it had of AWS before is gone."""
    entered = environment(functions, endpoint=endpoint, inherited=os.environ)
    for name in os.environ.keys() - entered.keys():
        del os.environ[name]
    os.environ.update(entered)


def load(function: Function) -> Handler:
    """Import the handler that `function` names; its module runs now, as in a cold start.

    Lambda takes two spellings: "lambdas.recommend.handler.handler" and "lambdas/recommend/handler.handler".
    """
    module_name, _, attribute = function.handler.replace("/", ".").rpartition(".")
    try:
        handler = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        message = f"function '{function.name}': handler '{function.handler}' cannot be imported: {error}"
        raise FunctionError(message) from error
    if not callable(handler):
        raise FunctionError(f"function '{function.name}': '{function.handler}' is not callable")
    return handler  # type: ignore[no-any-return]  # a deployed handler has no declared type


def invoke(function: Function, handler: Handler, event: Any) -> Outcome:
    """Call `handler` once; whatever it raises becomes the error that Lambda would report."""
    request_id = str(uuid4())
    try:
        with _time_limit(function.timeout_s):
            return Outcome(request_id, answer=handler(event, Context(function, request_id)))
    except TimedOut:
        message = f"{request_id} Task timed out after {function.timeout_s:.2f} seconds"
        return Outcome(request_id, error={"errorType": "Sandbox.Timedout", "errorMessage": message})
    except Exception as error:  # noqa: BLE001  # Lambda's own contract: any exception is the answer
        return Outcome(request_id, error=_reported(error, request_id))


def _reported(error: Exception, request_id: str) -> dict[str, Any]:
    return {
        "errorType": type(error).__name__,
        "errorMessage": str(error),
        "requestId": request_id,
        "stackTrace": traceback.format_tb(error.__traceback__)[1:],
    }


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimedOut in the block after `seconds`; only the main thread can be interrupted, others run on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    outer = signal.signal(signal.SIGALRM, _time_out)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, outer)
        if left:
            signal.setitimer(signal.ITIMER_REAL, left)


def _time_out(_signum: int, _frame: FrameType | None) -> None:
    raise TimedOut


def _agreed(functions: Iterable[Function]) -> dict[str, str]:
    merged: dict[str, str] = {}
    owner: dict[str, str] = {}
    for function in functions:
        for name, value in function.environment.items():
            if merged.setdefault(name, value) != value and name not in NAMES_ONE_FUNCTION:
                raise ConflictingEnvironment(
                    f"variable {name} is '{merged[name]}' in function '{owner[name]}' and '{value}' in "
                    f"'{function.name}', and both run in one process; give them one value or different names"
                )
            owner.setdefault(name, function.name)
    return merged


def _reserved(function: Function) -> dict[str, str]:
    return {
        "AWS_LAMBDA_FUNCTION_NAME": function.name,
        "AWS_LAMBDA_FUNCTION_VERSION": function.version,
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory_mb),
        "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{function.name}",
        "_HANDLER": function.handler,
    }


def _without_version(arn: str) -> str:
    """A function's ARN ends with its name; what follows an eighth colon is a version or an alias."""
    return ":".join(arn.split(":")[:7])
