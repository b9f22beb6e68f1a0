"""A stack: the candidate sources that answer one school's way, and what it takes to run them.

`traditional` has the app's counted sources, `two_tower` the learned one; what both schools have, popularity
and the newest items, is in either.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from narrows.errors import InvalidInput
from narrows.settings import SOURCE_NAMES, App, SourceQuota, Surface

SHARED = ("popular", "fresh")
STACKS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "traditional": ("als", "covisitation", "bought_together", "trending", "content"),
        "two_tower": ("two_tower",),
    }
)
"""Stack -> the sources that only it may ask."""
JOBS: Mapping[str, str] = MappingProxyType({"als": "train_als", "two_tower": "train_two_tower"})
COUNTING = "train_covisitation"
"""The job of every other source, and of the item statistics that any ranker reads."""
NAN = float("nan")


@dataclass(frozen=True)
class Stack:
    """Its own sources, and the quotas with which it is asked: those of the app, its own scaled to be fair."""

    name: str
    own: tuple[str, ...]
    quotas: tuple[SourceQuota, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """Its own and the shared ones, as the surface names them."""
        return tuple(quota.name for quota in self.quotas)

    @property
    def jobs(self) -> tuple[str, ...]:
        """The training jobs that make its sources; counting is always among them."""
        return tuple(dict.fromkeys([*(JOBS.get(name, COUNTING) for name in self.own), COUNTING]))


def stacks_of(app: App, names: Sequence[str], surface: str = "") -> tuple[Surface, tuple[Stack, ...]]:
    """The surface on which all of these stacks can be asked, and the stacks.

    Without a name it is the first surface that starts from a visitor's history and asks for a source of each.
    Each stack asks its own sources for as many candidates in all as the one that is asked for most, so that
    none finds more by being allowed more. InvalidInput where a stack has no source on the surface.
    """
    if len(set(names)) < len(names):
        raise InvalidInput("stack", ", ".join(names), "name each stack once")
    chosen = _surface(app, names, surface)
    asked = {name: _own(chosen, name) for name in names}
    most = max(sum(quota.quota for quota in own) for own in asked.values())
    shared = tuple(quota for quota in chosen.sources if quota.name in SHARED)
    return chosen, tuple(
        Stack(name, tuple(quota.name for quota in own), (*_scaled(own, most), *shared))
        for name, own in asked.items()
    )


def _surface(app: App, names: Sequence[str], wanted: str) -> Surface:
    if wanted and wanted not in app.surfaces:
        raise InvalidInput("surface", wanted, f"{app.name} has {', '.join(app.surfaces)}")
    able = [one for one in app.surfaces.values() if all(_own(one, name) for name in names)]
    fitting = [one for one in able if one.name == wanted or (not wanted and one.seed == "history")]
    if fitting:
        return fitting[0]
    where = f"[surfaces.{wanted or next(iter(app.surfaces))}]"
    for name in names:
        if not any(_own(one, name) for one in app.surfaces.values() if not wanted or one.name == wanted):
            remedy = f"ask for one of {', '.join(STACKS[name])} in {where} of {app.name}'s app.toml"
            raise InvalidInput("stack", name, remedy)
    raise InvalidInput(
        "surface", wanted or "any", f"no surface of {app.name} that starts from a history asks all"
    )


def _own(surface: Surface, stack: str) -> tuple[SourceQuota, ...]:
    return tuple(quota for quota in surface.sources if quota.name in STACKS[stack])


def _scaled(quotas: Sequence[SourceQuota], most: int) -> tuple[SourceQuota, ...]:
    whole = sum(quota.quota for quota in quotas)
    return tuple(replace(quota, quota=round(quota.quota * most / whole)) for quota in quotas)


@dataclass(frozen=True)
class Staleness:
    """Seconds until a change counts, at worst; nan where `undefined` says why.

    `own_click`: a click of the visitor's own, in its next request. `new_item`: an item nobody has touched, by
    a source that knows the visitor; `new_item_shown`: the same, by `fresh`, to everybody alike. `learned`:
    what visitors did, in everything that is counted or learned from it.
    """

    own_click: float
    new_item: float
    new_item_shown: float
    learned: float
    undefined: Mapping[str, str]


def staleness(
    stack: Stack, app: App, build_s: Mapping[str, float], placing: Mapping[str, float]
) -> Staleness:
    """Derived from settings and measured times, not observed: `narrows freshness` observes.

    `build_s` has the seconds of each training job, `placing` those that a source takes to place a new item
    from what is written about it, for the sources that can. A click counts after the promised freshness of
    the app's history feature, since every source reads the history when asked. A new item is in every process
    after the snapshot's interval; then a placing source needs its placement, any other waits for its next
    run, the interval of its schedule and the run itself.
    """
    histories = [one.freshness_s for one in app.features if one.kind == "last_n" and one.freshness_s]
    arrives = app.freshness.snapshot_delta_s
    runs = {name: _next_run(app, name, build_s) for name in stack.own}
    ways = [arrives + placing[name] if name in placing else runs[name] for name in stack.own]
    known = [seconds for seconds in ways if seconds == seconds]
    undefined = {}
    if not histories:
        undefined["own_click"] = f"{app.name} declares no last_n feature with a freshness"
    if not known:
        undefined["new_item"] = f"no job of {', '.join(stack.own)} has a schedule"
    if "fresh" not in stack.sources:
        undefined["new_item_shown"] = "the surface does not ask for fresh"
    late = [seconds for seconds in runs.values() if seconds == seconds]
    if not late:
        undefined["learned"] = f"no job of {', '.join(stack.own)} has a schedule"
    return Staleness(
        own_click=min(histories, default=NAN),
        new_item=min(known, default=NAN),
        new_item_shown=arrives if "fresh" in stack.sources else NAN,
        learned=max(late, default=NAN),
        undefined=undefined,
    )


def runs_a_month(app: App, job: str) -> float:
    """How often the app's schedule runs a training job; 0 for one that it never runs."""
    every_s = app.training.interval_s(job.removeprefix("train_"))
    return 30 * 86_400.0 / every_s if every_s == every_s else 0.0


def _next_run(app: App, source: str, build_s: Mapping[str, float]) -> float:
    job = JOBS.get(source, COUNTING)
    return app.training.interval_s(job.removeprefix("train_")) + build_s.get(job, NAN)


def jobs_of(machine: Mapping[str, Any]) -> tuple[str, ...]:
    """The jobs that a state machine in Amazon States Language starts: Glue's by name, SageMaker's by folder.

    Tasks of other services are none.
    """
    return tuple(dict.fromkeys(_jobs(machine)))


def _jobs(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        resource, parameters = str(node.get("Resource", "")), node.get("Parameters", {})
        if ":glue:startJobRun" in resource:
            yield str(parameters["JobName"]).strip("${}")
        if ":sagemaker:create" in resource and "HyperParameters" in parameters:
            yield str(parameters["HyperParameters"]["sagemaker_program"]).split("/")[-2]
        for child in node.values():
            yield from _jobs(child)
    elif isinstance(node, list):
        for child in node:
            yield from _jobs(child)


def needed_jobs(stack: Stack, jobs: Collection[str]) -> tuple[str, ...]:
    """Those of the machine's jobs without which the stack does not run: all but other sources' trainings."""
    trains_a_source = {f"train_{name}" for name in SOURCE_NAMES}
    return tuple(job for job in jobs if job not in trains_a_source or job in stack.jobs)
