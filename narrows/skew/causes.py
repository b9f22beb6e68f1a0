"""Why served and recomputed values differ: each known cause is recognised by what it does to the numbers.

A cause that changes which events count, or when, is tried out: the vectors are computed once more under it,
and one side must come out exactly while the other is what the events honestly give. Those that change the
numbers themselves show in the relation between the two sides. What nothing explains is called unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from narrows.features.registry import FeatureSet
from narrows.skew.comparing import Cell, Row, Value, Values, alike, declared_name, is_exact
from narrows.skew.relations import filled, overflowed, rescaled
from narrows.skew.trials import (
    LATENESS_S,
    SHIFTS_S,
    Case,
    Trial,
    Trials,
    all_there_are,
    cut_to_32_bits,
    in_day_of_arrival,
    not_yet_applied,
    one_event_twice,
    other_keys,
    rendered,
    shifted,
    without_stragglers,
)

TIME_ZONE = "time zone"
NULL_DEFAULT = "null default"
LATE_EVENT = "late event"
OVERFLOW = "integer overflow"
OLD_KEY = "join on an old key"
NORMALISATION = "normalisation at training only"
REPEATED = "repeat beyond the ring"
UNKNOWN = "unknown"
REMEDIES: Mapping[str, str] = MappingProxyType(
    {
        TIME_ZONE: "keep moments as epoch seconds or in UTC; look for a parser in a local time zone",
        NULL_DEFAULT: "give a missing value its declared default and its flag on both sides",
        LATE_EVENT: "count the events that the state had applied by then, not all that exist by now",
        OVERFLOW: "sum in doubles or 64-bit integers; look for a cast to int",
        OLD_KEY: "join on the key of the state that was read: after a login that is the user's",
        NORMALISATION: "move the normalisation into the model, or do it on both sides",
        REPEATED: "a state remembers its last 128 events; have the sender repeat itself sooner or never",
        UNKNOWN: "follow the first diverging event through both programs",
    }
)
PROBES = 4
CONSISTENT = 0.9
FEWEST = 3
FEW = 20

_TRIED: tuple[tuple[str, str, Trials], ...] = (
    (LATE_EVENT, "events count that had happened but were not applied yet", not_yet_applied),
    (LATE_EVENT, "events count that came after the decision", all_there_are),
    (LATE_EVENT, "events do not count that arrived on a later day", in_day_of_arrival),
    *(
        (
            LATE_EVENT,
            f"events do not count that arrived more than {lateness_s:g} s late",
            without_stragglers(lateness_s),
        )
        for lateness_s in LATENESS_S
    ),
    (OLD_KEY, "the events of other keys than the visitor's count: one alone, one more, or none", other_keys),
    (OVERFLOW, "the numbers of the events are cut to 32 bits", cut_to_32_bits),
)


@dataclass(frozen=True)
class Cause:
    """A cause with the diverging values that it explains; `trials` are the vectors as it makes them."""

    name: str
    evidence: str
    cells: frozenset[Cell]
    trials: Mapping[int, Trial] = field(default_factory=dict)
    contradicted: int = 0

    @property
    def features(self) -> tuple[str, ...]:
        """The declared features whose values it explains."""
        return tuple(sorted({declared_name(name) for _, name in self.cells}))


def causes_of(
    cases: Sequence[Case], rows: Sequence[Row], features: FeatureSet, exact: Collection[str]
) -> list[Cause]:
    """The causes of all that diverges in `cases`, each with its own values, and unknown for the rest.

    What explains most comes first; between equals, what would change fewest of the agreeing values. `rows`
    are all that were compared: a normalisation shows also on those that agree.
    """
    bench = _Bench(cases, features, exact)
    found = [*bench.tried(), *bench.related(rows)]
    left, causes = set(bench.cells), list[Cause]()
    found += [bench.repeated()] if len(cases) <= FEW else []
    while left and found:
        best = max(found, key=lambda one: (len(one.cells & left), -one.contradicted))
        found.remove(best)
        cells = _steady(best.cells & left, left)
        if cells and len(cells) >= min(FEWEST, 0.5 * len(bench.cells)):
            causes.append(Cause(best.name, best.evidence, cells, best.trials))
            left -= cells
    if left:
        causes.append(Cause(UNKNOWN, "no known cause gives these values", frozenset(left)))
    return causes


def _steady(cells: frozenset[Cell], left: Collection[Cell]) -> frozenset[Cell]:
    """The cells of those features that are explained nearly everywhere; elsewhere it may be chance."""
    wanted = Counter(declared_name(name) for _, name in left)
    explained = Counter(declared_name(name) for _, name in cells)
    return frozenset(
        cell
        for cell in cells
        if explained[declared_name(cell[1])] >= CONSISTENT * wanted[declared_name(cell[1])]
    )


class _Bench:
    """The diverging values of all cases, and what each hypothesis makes of them."""

    def __init__(self, cases: Sequence[Case], features: FeatureSet, exact: Collection[str]) -> None:
        self._cases, self._features, self._exact = cases, features, exact
        self._honest = [rendered(features, case.honest, case.context) for case in cases]
        self._diverging = [
            {
                name
                for name in case.row.served.keys() | case.row.recomputed.keys()
                if not self._same(name, case.row.served, case.row.recomputed)
            }
            for case in cases
        ]

    @property
    def cells(self) -> frozenset[Cell]:
        """Every diverging value."""
        return frozenset((at, name) for at, names in enumerate(self._diverging) for name in names)

    def tried(self) -> Iterator[Cause]:
        """Every cause that can be tried out by computing the vectors again."""
        seconds = self._shift_s()
        if seconds is not None:
            evidence = f"the values agree when the clock is moved by {seconds / 3600.0:+g} h"
            yield self._try(TIME_ZONE, evidence, shifted(seconds))
        for name, evidence, trials in _TRIED:
            yield self._try(name, f"one side is what comes out when {evidence}", trials)

    def repeated(self) -> Cause:
        """An event that counted twice: dear to try out, and a thing of single visitors."""
        evidence = "one side is what comes out when an event counts twice, among more than a ring holds"
        return self._try(REPEATED, evidence, one_event_twice)

    def related(self, rows: Sequence[Row]) -> Iterator[Cause]:
        """Every cause that shows in the relation between the two sides."""
        wrapped = {(at, name) for at, name in self.cells if overflowed(*self._sides(at, name))}
        evidence = "the sides differ by a multiple of 2^bits, or one stops at the largest integer"
        yield Cause(OVERFLOW, evidence, frozenset(wrapped))
        known = [(case.row, honest) for case, honest in zip(self._cases, self._honest, strict=True)]
        evidence = "one side has the same number wherever the other has none"
        yield Cause(NULL_DEFAULT, evidence, frozenset(filled(known, self.cells)))
        for name in sorted({name for _, name in self.cells}):
            relation = rescaled(rows, name)
            if relation:
                cells = frozenset(cell for cell in self.cells if cell[1] == name)
                yield Cause(NORMALISATION, f"{name}: {relation}, in every row", cells)

    def _try(self, name: str, evidence: str, trials: Trials) -> Cause:
        best = {number: self._best(number, trials) for number in range(len(self._cases))}
        cells = frozenset((number, one) for number, (names, _) in best.items() for one in names)
        used = {number: trial for number, (_, trial) in best.items() if trial}
        contradicted = sum(self._contradictions(number, trial) for number, trial in used.items())
        return Cause(name, evidence, cells, used, contradicted)

    def _best(self, number: int, trials: Trials) -> tuple[set[str], Trial | None]:
        """The trial that explains most of a case, and what it explains."""
        case = self._cases[number]
        best: tuple[set[str], Trial | None] = (set(), None)
        for trial in trials(case):
            values = rendered(self._features, trial, case.context)
            explained = {name for name in self._diverging[number] if self._explains(number, name, values)}
            if len(explained) > len(best[0]):
                best = (explained, trial)
        return best

    def _explains(self, number: int, name: str, tried: Values) -> bool:
        """Whether one side is what the trial gives, and the other what the events honestly give."""
        honest, row = self._honest[number], self._cases[number].row
        if self._same(name, honest, tried):
            return False
        return any(
            self._same(name, one, tried) and self._same(name, other, honest)
            for one, other in ((row.served, row.recomputed), (row.recomputed, row.served))
        )

    def _contradictions(self, number: int, trial: Trial) -> int:
        """How many agreeing values the trial would have changed."""
        values, honest = rendered(self._features, trial, self._cases[number].context), self._honest[number]
        agreeing = honest.keys() - self._diverging[number]
        return sum(not self._same(name, honest, values) for name in agreeing)

    def _shift_s(self) -> float | None:
        """The shift of the clock that explains most of the first cases, None where none explains any."""
        counts = {
            seconds: sum(
                len(self._best(number, shifted(seconds))[0]) for number in range(len(self._cases))[:PROBES]
            )
            for seconds in SHIFTS_S
        }
        best = max(SHIFTS_S, key=lambda seconds: (counts[seconds], -abs(seconds)))
        return best if counts[best] else None

    def _same(self, name: str, left: Values, right: Values) -> bool:
        if (name in left) != (name in right):
            return False
        return alike(left.get(name), right.get(name), exact=is_exact(name, self._exact))

    def _sides(self, number: int, name: str) -> tuple[Value, Value]:
        row = self._cases[number].row
        return row.served.get(name), row.recomputed.get(name)
