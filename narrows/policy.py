"""What may be shown at all: the rules' state in this process, and the gate that is last on every path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from narrows.retrieval import Passes, Rows
from narrows.settings import Rule
from narrows.snapshot import ItemSnapshot

ChangeKind = Literal["stock", "region", "block", "deleted"]
Value = bool | tuple[str, ...]
Bits = NDArray[np.bool_]
RowsOf = Callable[[Sequence[str]], Rows]

NEVER = float("-inf")
UNKNOWN_ITEM = "unknown_item"
FEW = 0.01


@dataclass(frozen=True)
class Change:
    """One fact about an item, from `at` (epoch seconds) on.

    `value` by kind: "stock" True for in stock; "block" True for blocked; "region" the regions where it may
    not be shown; "deleted" True where the catalogue no longer has it. The log gives the version when it
    appends; until then it is 0.
    """

    kind: ChangeKind
    item_id: str
    value: Value
    version: int = 0
    at: float = 0.0


class PolicyLog(Protocol):
    """The ordered log of changes that every process follows."""

    def read(self, since: int) -> Sequence[Change]:
        """Every change with a version above `since`, in order of version; StoreUnavailable when it cannot."""

    def append(self, changes: Sequence[Change], *, now: float) -> int:
        """Append all of them or none, each under the next version; returns the last version."""


@dataclass(frozen=True, eq=False)
class SoldIn:
    """Where the catalogue says that items are sold: `limited` where not in every region that it names.

    `parted` are the regions in which something is not sold.
    """

    limited: Bits
    regions: Mapping[str, Bits]
    parted: frozenset[str] = frozenset()

    @classmethod
    def everywhere(cls, size: int) -> SoldIn:
        """No item is limited to a region."""
        return cls(np.zeros(size, np.bool_), {})

    @classmethod
    def of(cls, snapshot: ItemSnapshot) -> SoldIn:
        """What the snapshot's `regions` column says; an item without a region there is sold everywhere."""
        codes = snapshot.columns.get("regions")
        if codes is None or not snapshot.size:
            return cls.everywhere(snapshot.size)
        codes = codes.reshape(snapshot.size, -1)
        free = (codes < 0).all(axis=1)
        regions = {
            region: free | (codes == code).any(axis=1)
            for code, region in enumerate(snapshot.vocabulary("regions"))
        }
        limited = ~np.logical_and.reduce([np.ones(snapshot.size, np.bool_), *regions.values()])
        return cls(limited, regions, frozenset(region for region, bits in regions.items() if not bits.all()))


@dataclass(frozen=True, eq=False)
class PolicyState:
    """What this process knows of the log, as bitmaps over rows; never changed in place, only succeeded.

    `facts` keeps the newest value of each (kind, item id), also of items that have no row yet. `refreshed_at`
    is when the log last answered, -inf when it never did.
    """

    rows_of: RowsOf
    size: int
    sold_in: SoldIn
    version: int
    refreshed_at: float
    facts: Mapping[tuple[str, str], Change]
    blocked: Bits
    out_of_stock: Bits
    deleted: Bits
    restricted: Mapping[str, Bits]

    @classmethod
    def empty(cls, rows_of: RowsOf, size: int, sold_in: SoldIn | None = None) -> PolicyState:
        """A state that has never heard from the log: closed rules let nothing pass."""
        none = np.zeros(size, np.bool_)
        return cls(rows_of, size, sold_in or SoldIn.everywhere(size), 0, NEVER, {}, none, none, none, {})

    @classmethod
    def over(cls, snapshot: ItemSnapshot) -> PolicyState:
        """An empty state over the snapshot's rows and regions."""
        return cls.empty(snapshot.rows, snapshot.size, SoldIn.of(snapshot))

    def apply(self, changes: Iterable[Change], version: int, now: float) -> PolicyState:
        """The state after these changes and a log that stood at `version` at `now`.

        The newest version of a fact wins, so a change that comes twice or late alters nothing.
        """
        fresh: dict[tuple[str, str], Change] = {}
        for change in changes:
            key = (change.kind, change.item_id)
            before = fresh.get(key) or self.facts.get(key)
            if before is None or before.version < change.version:
                fresh[key] = change
        version = max([self.version, version, *(change.version for change in fresh.values())])
        known = replace(self, version=version, refreshed_at=max(self.refreshed_at, now))
        if not fresh:
            return known  # as after most polls: a million facts are not copied to say that none changed
        return _drawn(replace(known, facts={**self.facts, **fresh}), list(fresh.values()))

    def bind(self, snapshot: ItemSnapshot) -> PolicyState:
        """The same facts over another snapshot's rows and regions."""
        blank = PolicyState.over(snapshot)
        bound = replace(blank, version=self.version, refreshed_at=self.refreshed_at, facts=self.facts)
        return _drawn(bound, list(self.facts.values()))

    @cached_property
    def scarce(self) -> bool:
        """Whether facts or regions bar more than `FEW` of all items, so that most of a list may be barred."""
        barred = [self.blocked, self.out_of_stock, self.deleted, *self.restricted.values()]
        count = sum(int(np.count_nonzero(bits)) for bits in barred)
        return bool(self.sold_in.parted) or count > FEW * self.size

    def age_s(self, now: float) -> float:
        """Seconds since the log last answered; inf when it never did."""
        return now - self.refreshed_at


def _drawn(state: PolicyState, changes: Sequence[Change]) -> PolicyState:
    """`state` with new bitmaps in which these changes are drawn; the old bitmaps stay as they are."""
    rows = state.rows_of([change.item_id for change in changes])
    drawn = {
        "block": state.blocked.copy(),
        "stock": state.out_of_stock.copy(),
        "deleted": state.deleted.copy(),
    }
    restricted = {region: bits.copy() for region, bits in state.restricted.items()}
    for change, row in zip(changes, rows.tolist(), strict=True):
        if not 0 <= row < state.size:
            continue
        if change.kind == "region":
            _restrict(restricted, row, _regions(change.value), state.size)
        else:
            drawn[change.kind][row] = bool(change.value) is not (change.kind == "stock")
    return replace(
        state,
        blocked=drawn["block"],
        out_of_stock=drawn["stock"],
        deleted=drawn["deleted"],
        restricted=MappingProxyType(restricted),
    )


def _regions(value: Value) -> tuple[str, ...]:
    return () if isinstance(value, bool) else value


def _restrict(restricted: dict[str, Bits], row: int, regions: tuple[str, ...], size: int) -> None:
    for bits in restricted.values():
        bits[row] = False
    for region in regions:
        restricted.setdefault(region, np.zeros(size, np.bool_))[row] = True


@dataclass(frozen=True, eq=False)
class GateContext:
    """Who is asking: `region` "" and `do_not_show` None when they are not known."""

    region: str = ""
    do_not_show: Rows | None = None


@dataclass(frozen=True, eq=False)
class Verdict:
    """`allowed` bool[n]; `dropped_by`: for each row the rule that dropped it first, "" where allowed."""

    allowed: Bits
    dropped_by: tuple[str, ...]
    reasons: Mapping[str, int] = field(default_factory=dict)


def gate(
    rows: Rows,
    *,
    state: PolicyState,
    rules: Sequence[Rule],
    context: GateContext,
    now: float,
    vouched: bool = False,
) -> Verdict:
    """Judge the rows by every rule; one whose data is too old or unknown drops or passes all, as it declares.

    `vouched` rows come from a list that the rules allowed when it was built: every known fact still drops
    them, the age of the facts does not. A drop is counted under the rule's name, under "<name>:stale" when
    only the age of the data caused it, and under "unknown_item" for a row that the state does not cover or
    whose item the catalogue no longer has.
    """
    covered = _covered(rows, state)
    names = np.full(len(rows), UNKNOWN_ITEM, object)
    open_ = covered.copy()
    for rule in rules:
        name, dropped = _judge(rule, np.where(covered, rows, 0), state, context, now, vouched)
        names[open_ & dropped] = name
        open_ &= ~dropped
    names[open_] = ""
    found, counts = np.unique(names[~open_].astype(str), return_counts=True)
    return Verdict(open_, tuple(names), dict(zip(found.tolist(), counts.tolist(), strict=True)))


def passing(*, state: PolicyState, rules: Sequence[Rule], context: GateContext, now: float) -> Passes:
    """What tells which rows `gate` would allow, bool[n], for who does not ask why.

    A request asks of many short lists; how old facts are, and which facts count, is found out once for all.
    """
    if any(_shut(rule, state, context, now) for rule in rules):
        return lambda rows: np.zeros(len(rows), np.bool_)
    bars = [bar for rule in rules for bar in _bars(rule, state, context)]

    def passes(rows: Rows) -> Bits:
        inside = (rows >= 0) & (rows < state.size)
        at = rows if inside.all() else rows[inside]
        barred = state.deleted.take(at)
        for bar in bars:
            barred |= bar(at)
        if at is rows:
            return np.asarray(~barred)
        inside[inside] = ~barred
        return inside

    return passes


def region_asked(state: PolicyState, rules: Sequence[Rule], context: GateContext) -> str:
    """The region outside which what is sold is dropped, whatever else is known; "" where none is.

    An index that knows regions finds in it what the gate would leave of ten times as many.
    """
    ruled = any(rule.name == "region" for rule in rules)
    return context.region if ruled and context.region in state.sold_in.parted else ""


def _covered(rows: Rows, state: PolicyState) -> Bits:
    """The rows that the state knows, and whose items the catalogue still has."""
    covered = (rows >= 0) & (rows < state.size)
    covered[covered] = ~state.deleted[rows[covered]]
    return covered


def _judge(
    rule: Rule, rows: Rows, state: PolicyState, context: GateContext, now: float, vouched: bool
) -> tuple[str, Bits]:
    """The name to count the drops under, and which of the rows are dropped."""
    if not vouched and _shut(rule, state, context, now):
        return f"{rule.name}:stale", np.ones(len(rows), np.bool_)
    dropped = np.zeros(len(rows), np.bool_)
    for bar in _bars(rule, state, context):
        dropped |= bar(rows)
    return rule.name, dropped


def _shut(rule: Rule, state: PolicyState, context: GateContext, now: float) -> bool:
    """Whether the rule drops everything, since what it goes by is too old or not known."""
    if rule.after != "closed":
        return False
    if rule.name == "do_not_show":
        return context.do_not_show is None
    age_s = state.age_s(now)
    return age_s == float("inf") or (rule.max_age_s is not None and age_s > rule.max_age_s)


def _bars(rule: Rule, state: PolicyState, context: GateContext) -> list[Passes]:
    """Each tells which of the rows are dropped by something that is known; none where nothing can be."""
    if rule.name == "do_not_show":
        hidden = context.do_not_show
        return [] if hidden is None or not len(hidden) else [lambda rows: np.isin(rows, hidden)]
    if rule.name == "blocked":
        return [state.blocked.take]  # half the time of indexing
    if rule.name == "stock":
        return [state.out_of_stock.take]
    return _bars_in(context.region, state, closed=rule.after == "closed")


def _bars_in(region: str, state: PolicyState, *, closed: bool) -> list[Passes]:
    """Without a known region, a closed rule drops what is restricted anywhere or not sold everywhere."""
    found: list[Passes] = []
    sold = state.sold_in.regions.get(region)
    if sold is not None:
        found.append(lambda rows: ~sold.take(rows))
    elif closed and state.sold_in.parted:
        found.append(state.sold_in.limited.take)
    named = [bits for name, bits in state.restricted.items() if name == region or (closed and not region)]
    return found + [bits.take for bits in named]
