"""Work that is shared among processes: the same result as alone, and no failure is lost."""

import os
import signal
import sys
from types import ModuleType

import numpy as np
import pytest

from sagemaker_jobs.workers import FEWEST, WorkerFailed, in_parts


@pytest.fixture(autouse=True)
def _without_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "jax", raising=False)


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_parts_cover_everything_once_and_in_order(processes: int) -> None:
    """However many processes there are."""
    count = 7 * FEWEST + 3
    parts = in_parts(list, count, processes)
    assert len(parts) == processes
    assert [number for part in parts for number in part] == list(range(count))


def test_parts_are_made_beside_one_another_over_what_is_loaded() -> None:
    """Each in a process of its own, which sees the arrays of this one."""
    table = np.arange(1000.0)
    parts = in_parts(lambda part: (os.getpid(), table[part.start : part.stop].sum()), len(table), 2)
    assert len({process for process, _ in parts}) == 2
    assert sum(total for _, total in parts) == table.sum()


@pytest.mark.parametrize("count", [0, 1, FEWEST])
def test_little_work_is_one_part(count: int) -> None:
    """Which runs here."""
    assert in_parts(lambda part: (os.getpid(), len(part)), count, 8) == [(os.getpid(), count)]


def test_a_failure_in_a_worker_says_what_failed() -> None:
    """With the words of its process."""

    def fail(part: range) -> None:
        if part.start:
            raise ValueError("no such item as 17")

    with pytest.raises(WorkerFailed, match="no such item as 17"):
        in_parts(fail, 2 * FEWEST, 2)


def test_a_worker_that_is_killed_does_not_hang_the_job() -> None:
    """As a machine does whose memory is short."""

    def end(part: range) -> None:
        if part.start:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(WorkerFailed, match="memory"):
        in_parts(end, 2 * FEWEST, 2)


def test_nothing_is_forked_beside_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its threads would be missing in the fork."""
    monkeypatch.setitem(sys.modules, "jax", ModuleType("jax"))
    assert in_parts(lambda part: (os.getpid(), len(part)), 4 * FEWEST, 4) == [(os.getpid(), 4 * FEWEST)]
