"""Requests do not depend on one another: each core answers its part of them, over the same loaded models."""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from narrows.errors import NarrowsError

T = TypeVar("T")
FEWEST = 64  # fewer requests than this are answered before a process has started


class WorkerFailed(NarrowsError):
    """A part of the work ended without a result; the message holds what its process said."""


def in_parts(work: Callable[[range], T], count: int, processes: int | None = None) -> Sequence[T]:
    """What `work` returns for consecutive parts of range(count), in order: one part a core, or `processes`.

    The parts run in forks of this process, which share its memory, but the first, which runs here. Everything
    is one part where a fork is not safe: beside jax, whose threads it would not take along, and off Linux.
    """
    wanted = max(1, min(processes or _cores(), count // FEWEST)) if _may_fork() else 1
    edges = [count * number // wanted for number in range(wanted + 1)]
    first, *others = (range(*pair) for pair in pairwise(edges))
    started = [_start(work, part) for part in others]
    try:
        return [work(first), *(_result(receiver) for _, receiver in started)]
    finally:
        for process, receiver in started:
            receiver.close()
            process.terminate()
            process.join()


def _may_fork() -> bool:
    return sys.platform == "linux" and "jax" not in sys.modules


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _start(work: Callable[[range], Any], part: range) -> tuple[Any, Connection]:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(work, part, sender), daemon=True)
    process.start()
    sender.close()
    return process, receiver


def _answer(work: Callable[[range], Any], part: range, sender: Connection) -> None:
    try:
        sender.send((True, work(part)))
    except Exception:  # noqa: BLE001  # whatever it was, the process that waits has to say it
        sender.send((False, traceback.format_exc()))


def _result(receiver: Connection) -> Any:
    try:
        done, answer = receiver.recv()
    except EOFError:
        raise WorkerFailed("a worker ended without a result, as it does where memory is short") from None
    if not done:
        raise WorkerFailed(f"a worker failed: {answer}")
    return answer
