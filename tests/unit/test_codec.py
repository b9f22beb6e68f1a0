"""A state survives its bytes, in the present format and the former one; no damage makes a visitor."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.features.codec import UnreadableState, decode, encode
from narrows.features.packing import Damaged, pack, unpack
from narrows.features.state import VisitorState

words = st.text(st.characters(codec="utf-8"), max_size=12)
uuids = st.uuids().map(str)
moments = st.integers(1_600_000_000_000, 1_900_000_000_000).map(lambda ms: ms / 1e3)
floats = st.floats(allow_nan=False, allow_infinity=False) | moments | st.integers(-9, 300).map(float)
integers = st.integers(-300, 300) | st.integers(-(2**70), 2**70)
scalars = st.none() | st.booleans() | integers | floats | words | uuids
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(words, inner, max_size=4)
        | st.lists(st.tuples(moments, uuids, words), max_size=5).map(tuple)
    ),
    max_leaves=25,
)
states = st.builds(
    VisitorState,
    features=st.dictionaries(words, values, max_size=6),
    applied=st.dictionaries(words, st.integers(0, 10**128), max_size=4),
    ring=st.lists(st.binary(min_size=8, max_size=8), max_size=130).map(b"".join),
    do_not_show=st.dictionaries(words, floats, max_size=3),
    updated_at=floats,
    version=st.integers(0, 2**40),
    merged_into=st.none() | words,
    merged=st.lists(words, max_size=3).map(tuple),
    ring_through=st.lists(st.binary(min_size=8, max_size=8), max_size=5).map(b"".join),
)
FORMER = bytes.fromhex(
    "4e5631785e554f590ac2400cbd4b3ec48f6999c5cc247303cf504618a7050bd50f5b1529bdbb29b860200b2fcb7b6966"
    "b8f7dd638c21732904b171cad53a29c865eaeffdf48cb958cd281d53a33241bfadb6285365ba46233d5d6b65c52fb761"
    "1078c8e314ade0cddf8282ce80827e0d2b2da4b4a819c653beb6fbb6fa9c5e33c41d236be7c806b3636dd17b4d88ecd9"
    "a223e70d0623bad84a814c6c9c4722625a5403b43d6fba4375260749088eb985f855227f2cbf4756d521bd0095d44161"
)
KNOWN = VisitorState(
    features={
        "views:7a9cc8": (3, 3.0),
        "activity:ac2095": (1.5, 1700000000.25),
        "ctr:1": (0.0, 2.0, None),
        "last:2": ((1700000000.25, "e1", "i1", "view"),),
    },
    applied={"shardId-000000000000": 49590338271490256608559692538361571095921575989136588898},
    ring=(1971835917959106308).to_bytes(8, "little"),
    do_not_show={"bad": 1700000001.5},
    updated_at=1700000002.0,
    version=7,
)


def same(left: Any, right: Any) -> bool:
    """Equal in value and in type, all the way down: 1 is not 1.0, nor True."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


@given(values)
def test_any_nesting_comes_back_equal_and_of_its_type(value: Any) -> None:
    """Columns of columns, empty ones, mixed ones, numbers of any size."""
    assert same(unpack(pack(value)), value)


@given(states)
def test_a_state_survives_its_bytes(state: VisitorState) -> None:
    """All of it, floats to the last bit."""
    assert decode(encode(state)) == state


def test_the_former_format_is_still_read() -> None:
    """Bytes that the version before wrote, digests in base 85 and all."""
    assert decode(FORMER) == KNOWN
    assert decode(encode(decode(FORMER))) == KNOWN


def test_every_flipped_byte_is_noticed() -> None:
    """Wherever it lies, in the header, the ring or the columns."""
    data = encode(KNOWN)
    for place in range(len(data)):
        damaged = bytes([*data[:place], data[place] ^ 0x41, *data[place + 1 :]])
        with pytest.raises(UnreadableState, match=r"damaged|starts with"):
            decode(damaged)


@pytest.mark.parametrize("cut", [0, 2, 3, 8, 9, 40, -1])
def test_what_is_cut_off_is_noticed(cut: int) -> None:
    """A write that was not whole is no visitor."""
    for data in (encode(KNOWN), FORMER):
        with pytest.raises(UnreadableState):
            decode(data[:cut])


@given(st.binary(max_size=80))
def test_foreign_columns_are_refused(data: bytes) -> None:
    """Whatever the bytes are, they are damaged or they are a value; nothing else is raised."""
    with suppress(Damaged):
        assert unpack(data) == unpack(data)


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes"])
def test_what_a_state_cannot_hold_is_named(value: object) -> None:
    """A kind that keeps something else is told at its first write."""
    with pytest.raises(TypeError, match="a state holds no"):
        pack({"feature": (1, value)})


def test_a_not_a_number_stays_one() -> None:
    """It is no error of the format."""
    assert math.isnan(unpack(pack((1.0, math.nan)))[1])
