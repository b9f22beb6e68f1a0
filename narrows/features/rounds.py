"""A batch into the store, in rounds: fold, write what changed, and again where somebody was quicker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from narrows.errors import Conflict, StoreUnavailable
from narrows.features.codec import UnreadableState
from narrows.features.items import fold_item
from narrows.features.login import StateFeatures, advance, followed, keys_of
from narrows.features.state import Arrival, StateStore, VisitorState, Write

LARGEST_GROUP = 90
"""States in one transaction, of which DynamoDB takes 100; a batch that links more is folded in halves."""
TOGETHER = 24
"""Up to this many states unrelated groups share a transaction: it costs the same, in fewer calls."""

States = Mapping[str, VisitorState]
Refusal = Conflict | StoreUnavailable | None


@dataclass(eq=False)
class Part:
    """Events that share no state with other parts', and what became of them.

    They are those of an item where `item` is its partial's key. `reason` says why they were not folded:
    "conflict", "unavailable: ..." or "" for events that are in. `writes` are the states written, `together`
    those of them in transactions.
    """

    arrivals: Sequence[Arrival]
    item: str = ""
    reason: str = ""
    writes: int = 0
    together: int = 0


@dataclass(frozen=True, eq=False)
class _Change:
    """States of one part that are written whole or not at all."""

    part: Part
    writes: Sequence[Write]


@dataclass(frozen=True)
class Rounds:
    """How one batch goes into the store; the executor's threads wait for it."""

    store: StateStore
    features: StateFeatures
    executor: Executor
    attempts: int

    def run(self, parts: Sequence[Part], stored: States | None) -> None:
        """Until each part is in or has a reason why not; where nothing was `stored` each reads for itself."""
        pending = parts
        for attempt in range(self.attempts):
            changes: list[_Change] = []
            for part, states in self._read(pending, None if attempt else stored):
                groups = self._groups(part, states)
                if len(part.arrivals) > 1 and any(len(group) > LARGEST_GROUP for group in groups):
                    self._in_halves(part)
                else:
                    changes += [_Change(part, _writes(group, states)) for group in groups]
            pending = self._write(changes)
            if not pending:
                return
        for part in pending:
            part.reason = "conflict"

    def _read(self, parts: Sequence[Part], stored: States | None) -> Iterator[tuple[Part, States]]:
        """The parts that can go on, each with the states that it starts from."""
        if stored is not None:
            yield from ((part, stored) for part in parts)
            return
        for part, states in zip(parts, self.executor.map(self._states, parts), strict=True):
            if states is not None:
                yield part, states

    def _states(self, part: Part) -> States | None:
        try:
            if part.item:
                return self.store.get_many([part.item])
            states = self.store.get_many(sorted(keys_of(part.arrivals)))
            more = followed(part.arrivals, states) - states.keys()
            return {**states, **self.store.get_many(sorted(more))} if more else states
        except (StoreUnavailable, UnreadableState) as error:
            part.reason = f"unavailable: {error}"
            return None

    def _groups(self, part: Part, states: States) -> Sequence[States]:
        """What the part's events change."""
        if not part.item:
            return advance(part.arrivals, states, self.features)
        before = states.get(part.item) or VisitorState()
        after = fold_item(before, part.arrivals, self.features.item)
        return [] if after is before else [{part.item: after}]

    def _in_halves(self, part: Part) -> None:
        """As two batches, one after the other: the later events wait for the earlier ones."""
        ordered = sorted(part.arrivals, key=lambda one: one.sequence)
        for half in (ordered[: len(ordered) // 2], ordered[len(ordered) // 2 :]):
            if not part.reason:
                smaller = Part(half)
                self.run([smaller], None)
                part.reason = smaller.reason
                part.writes += smaller.writes
                part.together += smaller.together

    def _write(self, changes: Sequence[_Change]) -> list[Part]:
        """The parts that somebody else was quicker at."""
        refused: dict[Part, StoreUnavailable] = {}
        lost: dict[Part, None] = {}
        for found in self.executor.map(self._put, _bundles(changes)):
            for change, refusal in found:
                if isinstance(refusal, Conflict):
                    lost[change.part] = None
                elif refusal is not None:
                    refused[change.part] = refusal
                else:
                    change.part.writes += len(change.writes)
                    change.part.together += len(change.writes) if len(change.writes) > 1 else 0
        for part, refusal in refused.items():
            part.reason = f"unavailable: {refusal}"
        return [part for part in lost if part not in refused]

    def _put(self, bundle: Sequence[_Change]) -> list[tuple[_Change, Refusal]]:
        """What became of each: one that cannot be written does not keep back those that share its call."""
        writes = [write for change in bundle for write in change.writes]
        try:
            if len(writes) == 1:
                self.store.put(writes[0].key, writes[0].state, writes[0].expected_version)
            else:
                self.store.put_all(writes)
        except Conflict as conflict:
            beaten = _beaten(bundle, conflict.places)
            others = [change for change in bundle if change not in beaten]
            return [(change, conflict) for change in beaten] + (self._put(others) if others else [])
        except StoreUnavailable as error:
            if len(bundle) > 1:
                return [found for change in bundle for found in self._put([change])]
            return [(bundle[0], error)]
        return [(change, None) for change in bundle]


def _writes(group: States, before: States) -> list[Write]:
    return [Write(key, state, before[key].version if key in before else 0) for key, state in group.items()]


def _bundles(changes: Iterable[_Change]) -> list[list[_Change]]:
    """Changes by call: a state alone costs half of one in a transaction, so only groups share one."""
    bundles: list[list[_Change]] = []
    open_bundle: list[_Change] = []
    size = 0
    for change in changes:
        if len(change.writes) == 1:
            bundles.append([change])
            continue
        if size + len(change.writes) > TOGETHER or not open_bundle:
            open_bundle, size = [], 0
            bundles.append(open_bundle)
        open_bundle.append(change)
        size += len(change.writes)
    return bundles


def _beaten(bundle: Sequence[_Change], places: Sequence[int]) -> list[_Change]:
    """The changes with a write at one of these places; all of them where the store named none."""
    owners = [change for change in bundle for _ in change.writes]
    return list(dict.fromkeys(owners[place] for place in places)) or list(bundle)
