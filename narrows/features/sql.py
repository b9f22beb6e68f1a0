"""Features as text of Spark SQL: one aggregate grouped by (key, as_of), for any number of moments.

The text reads a relation with the columns of the lake's events, `key` and `as_of`. Every property is
extracted once and every selection judged once. Kinds that add up share one hash aggregate; kinds that hold
something for each text share one for each property; kinds that keep the newest share one sort. An event after
`as_of` counts only where the caller gives it, as a stream does whose client's clock is ahead.
"""

# ruff: noqa: S608  # the text is made of declarations that passed the checks, and every literal is escaped
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from narrows.events import EXCLUDING_TYPES
from narrows.features.folding import Additive, Newest, Tally
from narrows.features.groups import Members
from narrows.features.kinds import DistinctCount, Kind, LastN, LastValue, PerValue
from narrows.features.registry import Feature, FeatureSet
from narrows.features.sql_rows import SqlRows, literal, mark_of, text_sql
from narrows.features.tallies import Entropy

COLUMNS = (
    *("event_id", "event_type", "time", "user_id", "session_id", "item_id", "value", "position", "surface"),
    *("impression", "query", "texts", "numbers"),
)
"""The columns of the lake that features read."""
COUNTS = (
    "consent AND coalesce(size(marks), 0) <= 0 "
    f"AND event_type NOT IN ({', '.join(literal(one) for one in sorted(EXCLUDING_TYPES))})"
)
"""A condition: without consent, with a mark, or of a type that only hides items, an event counts nowhere."""
SHOWN = "CASE WHEN item_id IS NULL THEN array_distinct(impression) END"
"""The items of an impression without an item, which counts for each of them."""
_ITEM = {"item_id": "key AS item_id", "impression": "cast(NULL AS array<string>) AS impression"}


def keyed_sql(scope: str, events: str) -> str:
    """The lake's events that count, each with the `key` of what it belongs to in this scope."""
    chosen = f"SELECT * FROM {events} WHERE {COUNTS}"
    if scope == "item":
        columns = ", ".join(_ITEM.get(name, name) for name in COLUMNS)
        shown = f"explode(coalesce({SHOWN}, array(item_id)))"
        return f"SELECT key, {columns} FROM (SELECT *, {shown} AS key FROM ({chosen})) WHERE key IS NOT NULL"
    key = key_sql(scope)
    return f"SELECT {key} AS key, {', '.join(COLUMNS)} FROM ({chosen}) WHERE {key} IS NOT NULL"


def key_sql(scope: str) -> str:
    """Whose an event is in a scope, as text over the lake's columns; an item's events know theirs."""
    if scope in ("user", "session"):
        return f"concat('{scope[0]}#', {scope}_id)"
    return text_sql(scope.removeprefix("by:")) if scope.startswith("by:") else "visitor"


def values_sql(
    feature_set: FeatureSet, scope: str, events: str, requests: str | None = None, since: str = "time"
) -> str:
    """One SELECT: key, as_of and the value of every feature of the scope, NULL where it is missing.

    A feature is a double, a list an array of item ids, a pair a map from text to double. `events` is a
    relation with the lake's columns and `key`. With `requests`, a relation of key and as_of, each request
    gets the values of the events up to its moment, also where there are none; without, `events` has `as_of`
    itself and says what belongs to which moment. `since` names the column that says from when on an event is
    known for the key; what the features fold is its `time`.
    """
    query = _Query(features_of(feature_set, scope))
    relations = query.relations()  # what the kinds ask for is known when they have written their aggregates
    return query.values(query.requested(events, requests, since), relations)


def extracted_sql(feature_set: FeatureSet, scope: str, events: str, since: str = "time") -> str:
    """One SELECT: key, since and the few narrow columns that the scope's features read of each event.

    Kept once by key, with the `as_of` that each row belongs to, `folded_sql` aggregates it without moving it.
    """
    query = _Query(features_of(feature_set, scope))
    query.relations()
    return query.extraction(events, f"{since} AS since")


def folded_sql(feature_set: FeatureSet, scope: str, extracted: str) -> str:
    """`values_sql` over rows of `extracted_sql` that have `as_of`."""
    query = _Query(features_of(feature_set, scope))
    return query.values(f"SELECT * FROM {extracted}", query.relations())


def is_one_aggregate(feature_set: FeatureSet, scope: str) -> bool:
    """Whether the rows are read once and added up where they lie: then there is nothing to keep together."""
    return len(_Query(features_of(feature_set, scope)).relations()) == 1


def features_of(feature_set: FeatureSet, scope: str) -> tuple[Feature, ...]:
    """The features that events of this scope fold into; pairs belong to the scope of their first half."""
    if scope.startswith("by:"):
        return tuple(one for one in feature_set.group_features if one.declaration.scope == scope)
    return feature_set.scoped(scope).features


@dataclass
class _Query:
    """One pass: the aggregates that are shared, and what each feature finds where."""

    features: Sequence[Feature]
    rows: SqlRows = field(default_factory=SqlRows)

    def __post_init__(self) -> None:
        self.added: dict[str, str] = {}
        self.parts: dict[str, Mapping[str, str]] = {}
        self.newest: dict[str, tuple[Newest, str, str]] = {}
        self.tallied: dict[str, dict[str, Tally]] = {}
        for feature in self.features:
            self._place(feature.name, feature.kind)
            if feature.least:
                self._place(_members(feature), feature.members)

    def _place(self, name: str, kind: Kind) -> None:
        if isinstance(kind, LastN | LastValue):
            condition, entry = kind.sql_entry(self.rows)
            self.newest[name] = (kind, condition, entry)
        elif isinstance(kind, PerValue | Entropy | DistinctCount | Members):
            self.tallied.setdefault(kind.sql_word(self.rows), {})[name] = kind
        else:
            state = self._shared(cast(Additive, kind).sql_state(self.rows), self.added)
            self.parts[name] = {part: f"narrows_added.{column}" for part, column in state.items()}

    def relations(self) -> dict[str, str]:
        """The aggregates by name; they say what has to be extracted."""
        added = f"SELECT key, as_of{_also(self.added)} FROM narrows_judged GROUP BY key, as_of"
        newest = {"narrows_newest": self._newest()} if self.newest else {}
        tallies = {f"narrows_by_{word}": self._tally(word, kinds) for word, kinds in self.tallied.items()}
        return {"narrows_added": added, **newest, **tallies}

    def values(self, extracted: str, relations: Mapping[str, str]) -> str:
        joins = "".join(f" LEFT JOIN {name} USING (key, as_of)" for name in list(relations)[1:])
        before = {"narrows_extracted": extracted, "narrows_judged": self._judged()}
        named = ", ".join(f"{name} AS ({text})" for name, text in {**before, **relations}.items())
        reads = [f"{self._read(feature)} AS {feature.name}" for feature in self.features]
        return f"WITH {named} SELECT {', '.join(['key', 'as_of', *reads])} FROM narrows_added{joins}"

    def _shared(self, state: Mapping[str, str], into: dict[str, str]) -> dict[str, str]:
        """The column of each part; features with the same aggregate share it."""
        return {part: into.setdefault(text, f"s{len(into)}") for part, text in state.items()}

    def extraction(self, events: str, *names: str) -> str:
        """The narrow columns of the events, with these beside the key."""
        types = self._types()
        columns = "".join(f", {text} AS {name}" for text, name in self.rows.extracted.items())
        read = f"time, event_id, {self.rows.event_type()} AS kind{columns}"
        where = f" WHERE event_type IN ({', '.join(map(literal, sorted(types)))})" if types else ""
        return f"SELECT {', '.join(['key', *names])}, {read} FROM {events}{where}"

    def requested(self, events: str, requests: str | None, since: str) -> str:
        """The same for each request of theirs."""
        if requests is None:
            return self.extraction(events, "as_of")
        asked = f"SELECT DISTINCT key, as_of FROM {requests}"
        names = ", ".join(["time", "event_id", "kind", *self.rows.extracted.values()])
        return (
            f"SELECT asked.key, as_of, {names} FROM ({asked}) asked "
            f"LEFT JOIN ({self.extraction(events, f'{since} AS since')}) event "
            "ON event.key = asked.key AND event.since <= asked.as_of"
        )

    def _judged(self) -> str:
        columns = "".join(f", {text} AS {name}" for text, name in self.rows.judged.items())
        return f"SELECT key, as_of, time, event_id, kind{columns} FROM narrows_extracted"

    def _types(self) -> frozenset[str]:
        """The event types that can change anything; empty for every type."""
        each = [one.kind.types for one in self.features]
        return frozenset().union(*each) if all(each) else frozenset()

    def _newest(self) -> str:
        conditions = list(dict.fromkeys(condition for _, condition, _ in self.newest.values()))
        ranks = {condition: f"r{place}" for place, condition in enumerate(conditions)}
        ranked = "".join(f", sum(int({one})) OVER newest AS {rank}" for one, rank in ranks.items())
        kept = {
            name: f"{condition} AND {ranks[condition]} <= {kind.keep}"
            for name, (kind, condition, _) in self.newest.items()
        }
        lists = [
            f"sort_array(collect_list(CASE WHEN {kept[name]} THEN {entry} END)) AS {name}"
            for name, (_, _, entry) in self.newest.items()
        ]
        return (
            f"SELECT key, as_of, {', '.join(lists)} FROM (SELECT *{ranked} FROM narrows_judged judged "
            f"WHERE {_any(conditions)} WINDOW newest AS (PARTITION BY key, as_of "
            "ORDER BY time DESC, event_id DESC ROWS UNBOUNDED PRECEDING)) ranked "
            f"WHERE {_any(kept.values())} GROUP BY key, as_of"
        )

    def _tally(self, word: str, kinds: Mapping[str, Tally]) -> str:
        shared: dict[str, str] = {}
        parts = {name: self._shared(kind.sql_state(self.rows), shared) for name, kind in kinds.items()}
        types = [kind.types for kind in kinds.values()]
        chosen = f" AND {self.rows.is_type(frozenset().union(*types))}" if all(types) else ""
        each = (
            f"SELECT key, as_of, {word} AS word{_also(shared)} FROM narrows_judged "
            f"WHERE {word} IS NOT NULL{chosen} GROUP BY key, as_of, {word}"
        )
        values = {
            f"v{at}": kind.sql_value(parts[name], "as_of") for at, (name, kind) in enumerate(kinds.items())
        }
        held = {
            name: f"collect_list(CASE WHEN {value} IS NOT NULL THEN struct(word, {value} AS value) END)"
            for name, value in zip(kinds, values, strict=True)
        }
        kept = {name: _least(name, kind.keep) for name, kind in kinds.items()}
        read = f"SELECT key, as_of, word{_columns(values)} FROM ({each})"
        lists = f"SELECT key, as_of{_columns(held)} FROM ({read}) GROUP BY key, as_of"
        return f"SELECT key, as_of{_columns(kept)} FROM ({lists})"

    def _read(self, feature: Feature) -> str:
        name, kind = feature.name, feature.kind
        if isinstance(kind, LastN | LastValue):
            read = kind.sql_read(name, "as_of")
        elif isinstance(kind, PerValue | Entropy | DistinctCount):
            read = f"CASE WHEN size({name}) > 0 THEN {kind.sql_read(name)} END"
        else:
            read = cast(Additive, kind).sql_read(self.parts[name], "as_of")
        if not feature.least:
            return read
        return f"CASE WHEN size({_members(feature)}) >= {feature.least} THEN {read} END"


def _members(feature: Feature) -> str:
    """The column of a group's members; no feature has such a name, since each begins with a letter."""
    return f"_members_of_{feature.name}"


def _also(columns: Mapping[str, str]) -> str:
    return "".join(f", {text} AS {name}" for text, name in columns.items())


def _columns(texts: Mapping[str, str]) -> str:
    return "".join(f", {text} AS {name}" for name, text in texts.items())


def _least(held: str, keep: int) -> str:
    """Those of the structs whose words have the smallest hashes; nothing is hashed where all can be kept."""
    marked = f"transform({held}, one -> struct({mark_of('one.word')} AS mark, one.word AS word, one AS held))"
    chosen = f"transform(slice(sort_array({marked}), 1, {keep}), one -> one.held)"
    return f"CASE WHEN size({held}) <= {keep} THEN {held} ELSE {chosen} END"


def _any(conditions: Iterable[str]) -> str:
    return " OR ".join(f"({one})" for one in conditions)
