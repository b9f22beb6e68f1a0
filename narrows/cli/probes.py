"""Probe items that are sent, sought in answers and taken back: how long each was on its way."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from narrows.cli.console import CommandFailed, Progress
from narrows.settings import App

CREATED, SUPPRESSED = "created_to_eligible", "changed_to_suppressed"
INDEXED = "created_to_indexed"
TARGETS_S = {CREATED: 60.0, SUPPRESSED: 5.0, INDEXED: 60.0}
PATIENCE_S = {CREATED: 120.0, SUPPRESSED: 20.0}
"""A probe that takes longer is given up, and counts as never."""

IN_A_ROW = 4
"""Answers, each over a connection of its own, that must agree: the API has several processes."""

AT_ONCE = 5
PAUSE_S = 0.05
SETTLE_S = 10.0
QUOTA_SHARE = 0.8
LEFT_OUT_AT_MOST = 0.05
"""Of a surface's answers: where more say nothing, what is measured at the others may not hold for all."""
OFFERS_NEW = frozenset({"fresh", "two_tower", "content"})


class Shown(Protocol):
    """The API as the probes see it."""

    def change_items(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Send items; the answer has a verdict for each."""

    def recommend(self, surface: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The slate for a request."""

    def close(self) -> None:
        """Let the next call go to any process of the API."""


class Index(Protocol):
    """The index of vectors where it is a server of its own."""

    def found(self, item_ids: Sequence[str]) -> set[str]:
        """Those of the items that a search of it can find by now."""


@dataclass
class _Probe:
    """One item on its way: since when it waits for what, and in how many answers in a row it came."""

    item_id: str
    sent: Mapping[str, Any]
    gone_by: str
    phase: str
    since: float
    agreed: dict[str, int] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    indexed: bool = False

    def wait_for(self, phase: str, now: float) -> None:
        self.phase, self.since, self.agreed, self.first = phase, now, {}, {}

    def seen(self, surface: str, as_wanted: bool, now: float) -> None:
        """One answer; the moment that counts is the first of those in a row that agree."""
        if self.agreed.get(surface, 0) >= IN_A_ROW:
            return
        self.agreed[surface] = self.agreed.get(surface, 0) + 1 if as_wanted else 0
        if self.agreed[surface] == 1:
            self.first[surface] = now


class Probes:
    """Probe items of one run, and how long each took on each surface."""

    def __init__(
        self,
        app: App,
        api: Shown,
        clock: Callable[[], float],
        sleep: Callable[[float], object],
        *,
        run: str,
        index: Index | None = None,
    ) -> None:
        self._app, self._api, self._clock, self._sleep, self._run = app, api, clock, sleep, run
        self._index = index
        self.indexed: list[float] = []
        self.surfaces = [name for name in app.surfaces if self._quota(name)]
        self.took: dict[str, dict[str, list[float]]] = {
            name: {CREATED: [], SUPPRESSED: []} for name in self.surfaces
        }
        self._live: dict[str, _Probe] = {}
        self._made: list[str] = []
        self._asked = 0
        self._answers: Counter[str] = Counter()
        self._late: Counter[str] = Counter()
        self._gone_at: list[float] = []
        self._dropped: deque[int] = deque(maxlen=2 * IN_A_ROW * len(app.surfaces))
        self._present: set[str] = set()
        self._like: Mapping[str, Any] = {}
        if not self.surfaces:
            raise CommandFailed(f"no surface of {app.name} asks a source that offers new items: add fresh")

    def _quota(self, surface: str) -> int:
        """How many new items a surface's slates choose from; those of `fresh` come to everybody."""
        offers = {one.name: one.quota for one in self._app.surfaces[surface].sources}
        return offers.get("fresh") or max([offers.get(name, 0) for name in OFFERS_NEW])

    def measure(self, count: int, progress: Progress) -> None:
        """Inject so many and follow each until it has come and gone, never more than the sources offer."""
        self._look(self.surfaces[0])
        while len(self._made) < count or self._live:
            missing = min(count - len(self._made), self._room(), AT_ONCE)
            if missing > 0:
                self._create(missing)
            for surface in self.surfaces:
                self._look(surface)
            self._look_into_index()
            self._move_on()
            progress.to(len(self._made) - len(self._live))
            self._sleep(PAUSE_S)

    def _room(self) -> int:
        """How many more probes the quotas hold.

        A removed one takes a place until a delta says so everywhere; until then the rules drop it each time.
        """
        settled = self._clock() - self._app.freshness.snapshot_delta_s - SETTLE_S
        self._gone_at = [moment for moment in self._gone_at if moment > settled]
        held = max(1, int(QUOTA_SHARE * min(self._quota(name) for name in self.surfaces)))
        return held - len(self._live) - min(len(self._gone_at), max(self._dropped, default=0))

    def _create(self, count: int) -> None:
        ids = [f"probe-{self._run}-{len(self._made) + place:05d}" for place in range(count)]
        now = self._clock()
        self._made += ids
        items = [self._item(item_id) for item_id in ids]
        self._send(items)
        for place, (item_id, item) in enumerate(zip(ids, items, strict=True), start=len(self._made) - count):
            gone_by = "stock" if self._app.catalogue.stock and place % 2 else "deleted"
            self._live[item_id] = _Probe(item_id, item, gone_by, CREATED, now)

    def _item(self, item_id: str) -> dict[str, Any]:
        """A probe, worded like an item that is shown: one of words no model has read comes into no index."""
        catalogue = self._app.catalogue
        title = f"Freshness probe {self._like.get('title', '')}".strip()
        known: dict[str, Any] = dict.fromkeys(catalogue.text[:1], title)
        for column, part in ((catalogue.categories, "category"), (catalogue.brand, "brand")):
            known |= {column: self._like[part]} if column and part in self._like else {}
        known |= {catalogue.price: 1.0} if catalogue.price else {}
        known |= {catalogue.stock: 1} if catalogue.stock else {}
        return {catalogue.id: item_id, **known}

    def _look(self, surface: str) -> None:
        """Ask once for a slate with all that could be in it, as somebody who was never here before."""
        self._asked += 1
        self._answers[surface] += 1
        body = {"session_id": f"probe-{self._run}-{self._asked}", "limit": 1, "explain": True}
        answer = self._api.recommend(surface, body)
        now = self._clock()
        self._api.close()
        if any(answer["degraded"].get(f"retrieve.{name}", "absent") != "absent" for name in OFFERS_NEW):
            self._late[surface] += (
                1  # a source that missed its deadline says nothing of what it would have offered
            )
            return
        self._dropped.append(sum(answer["trace"].get("gate", {}).values()))
        self._like = self._like or next(iter(answer["trace"].get("items", {}).values()), {})
        eligible = set(answer["trace"]["eligible"]) | {one["item_id"] for one in answer["recommendations"]}
        for probe in self._live.values():
            probe.seen(surface, (probe.item_id in eligible) is (probe.phase == CREATED), now)

    def _look_into_index(self) -> None:
        """Whether the new ones are in the index of vectors, of which those who are known here live."""
        waiting = [one for one in self._live.values() if one.phase == CREATED and not one.indexed]
        if self._index is None or not waiting:
            return
        found = self._index.found([probe.item_id for probe in waiting])
        now = self._clock()
        for probe in waiting:
            if probe.item_id in found:
                probe.indexed = True
                self.indexed.append(now - probe.since)

    def _move_on(self) -> None:
        """Those that all surfaces have answered for go on; those that took too long are given up."""
        now = self._clock()
        ready = [probe for probe in self._live.values() if self._is_ready(probe, now)]
        for probe in ready:
            for surface in self.surfaces:
                agreed = probe.agreed.get(surface, 0) >= IN_A_ROW
                took = probe.first[surface] - probe.since if agreed else math.inf
                self.took[surface][probe.phase].append(took)
        done = [one for one in ready if one.phase == SUPPRESSED]
        self._remove([probe.item_id for probe in done])
        for probe in done:
            del self._live[probe.item_id]
            self._gone_at.append(now)
        changed = [one for one in ready if one.phase == CREATED]
        if self._index is not None:
            self.indexed += [math.inf for one in changed if not one.indexed]
        for probe in changed:
            probe.wait_for(SUPPRESSED, self._clock())
        self._send([self._gone(probe) for probe in changed])

    def _is_ready(self, probe: _Probe, now: float) -> bool:
        answered = all(probe.agreed.get(name, 0) >= IN_A_ROW for name in self.surfaces)
        answered &= self._index is None or probe.indexed or probe.phase == SUPPRESSED
        return answered or now - probe.since > PATIENCE_S[probe.phase]

    def _gone(self, probe: _Probe) -> dict[str, Any]:
        if probe.gone_by == "stock":
            return {**probe.sent, self._app.catalogue.stock: 0}
        return {self._app.catalogue.id: probe.item_id, "deleted": True}

    def remove(self) -> int:
        """Delete every probe of this run that is still there; how many were made."""
        self._remove([item_id for item_id in self._made if item_id in self._present])
        return len(self._made)

    def _remove(self, item_ids: Sequence[str]) -> None:
        for start in range(0, len(item_ids), 100):
            part = item_ids[start : start + 100]
            self._send([{self._app.catalogue.id: item_id, "deleted": True} for item_id in part])

    def _send(self, items: Sequence[Mapping[str, Any]]) -> None:
        if not items:
            return
        answer = self._api.change_items(items)
        refused = [one for one in answer["verdicts"] if one["status"] not in ("accepted", "unchanged")]
        if refused:
            raise CommandFailed(f"{len(refused)} probes were refused, for example {refused[0]}")
        for item in items:
            item_id = str(item[self._app.catalogue.id])
            (self._present.discard if item.get("deleted") else self._present.add)(item_id)

    def report(self) -> dict[str, Any]:
        """Percentiles in seconds, of each surface and of all; null where a probe never came or went."""
        surfaces = {
            name: {phase: _percentiles(took) for phase, took in both.items()}
            for name, both in self.took.items()
        }
        every = {
            phase: _percentiles([one for both in self.took.values() for one in both[phase]])
            for phase in (CREATED, SUPPRESSED)
        }
        every |= {INDEXED: _percentiles(self.indexed)} if self._index is not None else {}
        reasons = self._too_often_late() + [
            f"{phase} takes {every[phase]['p99']:.1f} s at p99; the target is {target:g} s"
            for phase, target in TARGETS_S.items()
            if phase in every and not every[phase]["p99"] <= target
        ]
        unmeasured = {
            name: "none of its sources offers items that came after the training; add fresh or two_tower"
            for name in self._app.surfaces
            if name not in self.surfaces
        }
        return {
            "app": self._app.name,
            "vectors": self._app.tiers["vectors"],
            "probes": len(self._made),
            "answers": self._asked,
            "answers_left_out": self._late.total(),
            **every,
            "surfaces": surfaces,
            "unmeasured": unmeasured,
            "reasons": reasons,
            "ok": not reasons,
        }

    def _too_often_late(self) -> list[str]:
        """The surfaces of which so many answers are left out that the others prove nothing."""
        return [
            f"{surface}: {late:,} of {self._answers[surface]:,} answers are left out, more than "
            f"{LEFT_OUT_AT_MOST:.0%}: its sources miss their deadline"
            for surface, late in self._late.items()
            if late > LEFT_OUT_AT_MOST * self._answers[surface]
        ]


def _percentiles(took: Sequence[float]) -> dict[str, float]:
    """By nearest rank; nan of nothing."""
    ordered = sorted(took)

    def at(share: float) -> float:
        return round(ordered[max(math.ceil(share * len(ordered)) - 1, 0)], 3) if ordered else math.nan

    return {"p50": at(0.5), "p99": at(0.99)}
