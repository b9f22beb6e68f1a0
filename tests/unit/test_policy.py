"""The policy state and the gate: what a rule forbids is never shown, and unknown data is not permission."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.policy import Change, GateContext, PolicyState, gate, region_asked
from narrows.retrieval import Rows
from narrows.settings import Rule
from narrows.snapshot import delta_path, open_base, write_base, write_delta

RULES = (
    Rule("blocked", "closed", None),
    Rule("stock", "closed", 900.0),
    Rule("region", "closed", None),
    Rule("do_not_show", "open", None),
)
ITEMS = ("a", "b", "c", "d")
KNOWN = GateContext(region="DE", do_not_show=np.empty(0, np.int32))


def rows_of(ids: Sequence[str]) -> Rows:
    """The place of each id among ITEMS."""
    return np.array([ITEMS.index(one) if one in ITEMS else -1 for one in ids], np.int32)


def fresh(*changes: Change, version: int = 0, now: float = 0.0) -> PolicyState:
    """A state that has just heard of these changes."""
    return PolicyState.empty(rows_of, len(ITEMS)).apply(changes, version, now)


def shown(
    state: PolicyState, context: GateContext = KNOWN, now: float = 0.0, rules: Sequence[Rule] = RULES
) -> str:
    """Which of the items pass the gate."""
    verdict = gate(np.arange(len(ITEMS), dtype=np.int32), state=state, rules=rules, context=context, now=now)
    return "".join(item for item, allowed in zip(ITEMS, verdict.allowed, strict=True) if allowed)


def test_every_rule_drops_its_items_and_counts_them() -> None:
    """One item is blocked, one out of stock, one not for Germany and one unwanted; nothing is left."""
    state = fresh(
        Change("block", "a", True, 1), Change("stock", "b", False, 2), Change("region", "c", ("DE", "FR"), 3)
    )
    context = GateContext("DE", np.array([3], np.int32))
    verdict = gate(
        np.array([3, 2, 1, 0, -1, 9], np.int32), state=state, rules=RULES, context=context, now=0.0
    )
    assert not verdict.allowed.any()
    assert verdict.dropped_by == ("do_not_show", "region", "stock", "blocked", "unknown_item", "unknown_item")
    assert verdict.reasons == {"do_not_show": 1, "region": 1, "stock": 1, "blocked": 1, "unknown_item": 2}


def test_a_region_is_asked_for_where_something_is_not_sold_in_it(tmp_path: Path) -> None:
    """Where the rules judge regions at all, and the catalogue knows the visitor's."""
    columns = {"regions": np.array([[0, 1], [1, -1], [-1, -1]], np.int32)}
    words = {"regions": ("AT", "DE", "US")}
    write_base(tmp_path, ["a", "b", "c"], columns, version="s1", spare=0, vocabularies=words)
    state = PolicyState.over(open_base(tmp_path))
    asked = {region: region_asked(state, RULES, GateContext(region)) for region in ("AT", "DE", "JP", "")}
    assert asked == {"AT": "AT", "DE": "", "JP": "", "": ""}
    assert region_asked(state, RULES[:2], GateContext("AT")) == ""
    everywhere = PolicyState.empty(rows_of, len(ITEMS))
    assert region_asked(everywhere, RULES, GateContext("AT")) == ""
    assert (state.scarce, everywhere.scarce) == (True, False)
    assert fresh(Change("stock", "a", False, 1)).scarce


def test_the_age_of_the_facts_does_not_drop_what_was_judged_when_it_was_built() -> None:
    """A log that never answered drops everything else; what is known is dropped from every list."""
    rows = np.arange(len(ITEMS), dtype=np.int32)
    unheard = PolicyState.empty(rows_of, len(ITEMS))
    asked = {"rules": RULES, "context": KNOWN, "now": 0.0}
    assert not gate(rows, state=unheard, **asked).allowed.any()
    assert gate(rows, state=unheard, vouched=True, **asked).allowed.all()
    late = {**asked, "now": 1e6}
    heard = fresh(Change("stock", "b", False, 1))
    assert not gate(rows, state=heard, **late).allowed.any()
    verdict = gate(rows, state=heard, vouched=True, **late)
    assert (verdict.allowed.tolist(), verdict.reasons) == ([True, False, True, True], {"stock": 1})


def test_a_change_back_lifts_the_rule() -> None:
    """Unblocked, restocked and released items pass again."""
    state = fresh(
        Change("block", "a", True, 1), Change("stock", "a", False, 2), Change("region", "a", ("DE",), 3)
    ).apply(
        [Change("block", "a", False, 4), Change("stock", "a", True, 5), Change("region", "a", (), 6)], 6, 1.0
    )
    assert shown(state) == "abcd"
    assert (state.version, state.refreshed_at) == (6, 1.0)


def test_region_restrictions_hold_where_they_are_made() -> None:
    """What is forbidden in France passes in Germany; without a known region a closed rule drops it."""
    state = fresh(Change("region", "b", ("FR",), 1))
    assert shown(state, GateContext("DE")) == "abcd"
    assert shown(state, GateContext("FR")) == "acd"
    assert shown(state, GateContext("")) == "acd"
    assert shown(state, GateContext(""), rules=[Rule("region", "open", None)]) == "abcd"


def test_the_catalogue_limits_where_items_are_sold(tmp_path: Path) -> None:
    """An item is shown where its regions say, everywhere when it names none."""
    columns = {"regions": np.array([[0, 1], [1, -1], [-1, -1]], np.int32)}
    write_base(
        tmp_path, ["a", "b", "c"], columns, version="1", spare=1, vocabularies={"regions": ("DE", "FR")}
    )
    state = PolicyState.over(open_base(tmp_path)).apply([], 0, 0.0)
    assert [shown_in(state, region) for region in ("DE", "FR", "", "Atlantis")] == ["ac", "abc", "ac", "ac"]


def test_an_empty_catalogue_limits_nothing(tmp_path: Path) -> None:
    """Before the first item there are no regions to respect."""
    columns = {"regions": np.empty((0, 4), np.int32)}
    write_base(tmp_path, [], columns, version="1", spare=1, vocabularies={"regions": ()})
    assert PolicyState.over(open_base(tmp_path)).sold_in.regions == {}


def shown_in(state: PolicyState, region: str) -> str:
    """Which of the first three items pass in a region."""
    rows = np.arange(3, dtype=np.int32)
    allowed = gate(rows, state=state, rules=RULES, context=GateContext(region), now=0.0).allowed
    return "".join(np.array(["a", "b", "c"])[allowed])


def test_data_that_is_too_old_closes_what_is_closed() -> None:
    """15 minutes after the last word of the log, stock is unknown and everything is dropped as stale."""
    state = fresh(Change("block", "a", True, 1))
    assert shown(state, now=900.0) == "bcd"
    verdict = gate(np.array([0, 1], np.int32), state=state, rules=RULES, context=KNOWN, now=900.1)
    assert verdict.reasons == {"blocked": 1, "stock:stale": 1}
    assert shown(state, now=900.1, rules=[Rule("stock", "open", 900.0)]) == "abcd"
    assert shown(state.apply([], 1, 900.0), now=1800.0) == "bcd"


def test_a_log_that_never_answered_is_not_permission() -> None:
    """A closed rule over a state that never heard of the log drops everything, with or without an age."""
    never = PolicyState.empty(rows_of, len(ITEMS))
    assert shown(never) == ""
    assert shown(never, rules=[Rule("blocked", "open", None)]) == "abcd"


def test_unknown_wishes_of_the_visitor() -> None:
    """Where the do-not-show list cannot be read, an open rule passes all and a closed one drops all."""
    unread = GateContext("DE", None)
    assert shown(fresh(), unread) == "abcd"
    assert shown(fresh(), unread, rules=[Rule("do_not_show", "closed", None)]) == ""


def test_a_change_may_come_before_its_item(tmp_path: Path) -> None:
    """An item that is blocked before it has a row is blocked when a delta brings it."""
    write_base(tmp_path, ["a"], {"price": np.ones(1)}, version="1", spare=1)
    base = open_base(tmp_path)
    state = PolicyState.over(base).apply([Change("block", "later", True, 1)], 1, 0.0)
    write_delta(delta_path(tmp_path, 1), base, ["later"], {"price": [2.0]}, version="2")
    after = base.apply(delta_path(tmp_path, 1))
    bound = state.bind(after)
    both = np.array([0, 1], np.int32)
    assert gate(both, state=bound, rules=RULES, context=KNOWN, now=0.0).allowed.tolist() == [True, False]
    assert gate(both, state=state, rules=RULES, context=KNOWN, now=0.0).dropped_by == ("", "unknown_item")
    assert bound.version == 1


def test_a_deleted_item_is_no_item_of_the_catalogue() -> None:
    """No rule has to name it, a vouched list does not bring it back, and a return lifts it."""
    gone = fresh().apply([Change("deleted", ITEMS[1], True, 8)], 8, 0.0)
    rows = np.array([0, 1], np.int32)
    for vouched in (False, True):
        verdict = gate(rows, state=gone, rules=[], context=KNOWN, now=0.0, vouched=vouched)
        assert verdict.dropped_by == ("", "unknown_item")
    back = gone.apply([Change("deleted", ITEMS[1], False, 9)], 9, 0.0)
    assert gate(rows, state=back, rules=[], context=KNOWN, now=0.0).allowed.all()


changes = st.builds(
    Change,
    kind=st.sampled_from(["stock", "block"]),
    item_id=st.sampled_from([*ITEMS, "unknown"]),
    value=st.booleans(),
)


@given(st.lists(changes, max_size=30), st.randoms(use_true_random=False), st.integers(0, 10))
def test_order_and_repetition_of_deliveries_do_not_matter(
    log: list[Change], random: object, cut: int
) -> None:
    """Whatever arrives late, early or twice, the newest version of each fact is what counts."""
    versioned = [
        Change(one.kind, one.item_id, one.value, number, 0.0) for number, one in enumerate(log, start=1)
    ]
    expected = set(ITEMS)
    for item in ITEMS:
        facts = {one.kind: one.value for one in versioned if one.item_id == item}
        if facts.get("block") is True or facts.get("stock") is False:
            expected.discard(item)
    shuffled = versioned + versioned[:cut]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    state = fresh(*shuffled[:cut]).apply(shuffled[cut:], len(log), 0.0)
    assert set(shown(state)) == expected
    assert state.version == len(log)


def test_a_state_is_never_changed_in_place() -> None:
    """A request that holds a state keeps it while the process moves on."""
    before = fresh()
    before.apply([Change("block", "a", True, 1), Change("region", "b", ("DE",), 2)], 2, 0.0)
    assert shown(before) == "abcd"
    assert before.version == 0


def test_a_poll_without_news_copies_nothing() -> None:
    """Every process polls every two seconds, whatever the number of facts that it holds."""
    before = fresh(Change("block", "a", True, 1))
    after = before.apply([], 1, 9.0)
    assert after.facts is before.facts
    assert after.blocked is before.blocked
    assert after.refreshed_at == 9.0


def test_the_version_never_falls() -> None:
    """An older answer of a replica does not take the state back."""
    state = fresh(Change("block", "a", True, 7), version=7).apply([Change("block", "a", False, 3)], 3, 1.0)
    assert (state.version, shown(state)) == (7, "bcd")


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_the_gate_takes_any_number_of_rows(count: int) -> None:
    """No rows is a question too."""
    rows = np.zeros(count, np.int32)
    verdict = gate(rows, state=fresh(), rules=RULES, context=KNOWN, now=0.0)
    assert len(verdict.allowed) == len(verdict.dropped_by) == count
    assert verdict.reasons == {}
