"""Nested values as packed columns: what is alike lies together, and deflate finds the rest.

A value is None, a bool, an integer, a finite float, a text, a tuple or list, or a mapping from text. What
comes back is equal to it, lists as tuples. The bytes, deflated: the lengths of the parts, then the plan (how
columns nest), integers (one byte each, larger ones apart), moments (steps of a millisecond), other floats,
and texts, each distinct one once, UUIDs as their 16 bytes. Numbers of eight bytes lie as planes: all first
bytes, then all second ones.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, chain, islice, pairwise
from typing import Any

LEVEL = 6
WORDS = (
    b"shardId-000000000000|s#|u#|0000000000000000|impression|search|refund|remove_from_cart|play|watch|signup|campaign"
    b"|budget|connected|region|country|device|desktop|location|weekday|hours_active|days_known|sessions|session_events"
    b"|mobile_views|first_seen_at|last_seen_at|last_bought_at|price_spread|price_paid|price_level|spend_90d|dwell_mean"
    b"|click_position|brands_seen|brand_interest|category_breadth|category_interest|purchases|cart_additions|bought"
    b"|purchase|add_to_cart|history|click|view|click_rate|activity_30d|activity_7d|activity_1d|views|clicks"
)
"""What texts in states often hold: deflate starts with it. Bytes packed with it can be read with no other."""

_LARGE = 255
_EXACT = 2.0**53
_FIRST_MOMENT, _LAST_MOMENT = 1e9, 1e11
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_UUID_CHARACTERS = 36
_WIDE = 8
_COUNTS = 9


class Damaged(ValueError):
    """The bytes are not what `pack` wrote."""


def pack(value: Any) -> bytes:
    """The value in few bytes; TypeError or ValueError for what is none of the kinds above."""
    packer = _Packer()
    packer.add([value])
    deflate = zlib.compressobj(LEVEL, zdict=WORDS)
    return deflate.compress(packer.written()) + deflate.flush()


def unpack(data: bytes) -> Any:
    """The value that `pack` wrote; `Damaged` for anything else."""
    try:
        inflate = zlib.decompressobj(zdict=WORDS)
        content = inflate.decompress(data) + inflate.flush()
        if not inflate.eof or inflate.unused_data:
            raise Damaged("the bytes end too early or too late")
        [value] = _Unpacker(content).column(1)
    except (zlib.error, struct.error, UnicodeDecodeError, LookupError, StopIteration, RuntimeError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from error
    return value


class _Packer:
    """Columns on their way into bytes; the plan has one letter for each column, and mixed ones nest."""

    def __init__(self) -> None:
        self.plan: list[str] = []
        self.integers: list[int] = []
        self.moments: list[int] = []
        self.floats: list[float] = []
        self.texts: list[str] = []

    def add(self, values: Sequence[Any]) -> None:
        """One column; its length is known to who reads it."""
        kind = type(values[0])
        alike = len(values) == 1 or len(set(map(type, values))) == 1
        add = _ADD.get(kind) if alike else _Packer._mixed
        if add is None:
            raise TypeError(f"a state holds no {type(values[0]).__name__}: {values[0]!r}")
        add(self, values)

    def _floats(self, values: Sequence[float]) -> None:
        moments = min(values) > _FIRST_MOMENT and max(values) < _LAST_MOMENT
        milliseconds = [round(one * 1e3) for one in values] if moments else []
        if milliseconds and [one / 1e3 for one in milliseconds] == list(values):
            self.plan.append("m")
            self.moments += milliseconds
        elif all(map(float.is_integer, values)) and min(values) > -_EXACT and max(values) < _EXACT:
            self.plan.append("w")
            self.integers += map(int, values)
        else:
            self.plan.append("f")
            self.floats += values

    def _integers(self, values: Sequence[int]) -> None:
        if min(values) >= -(2**63) and max(values) < 2**63:
            self.plan.append("i")
            self.integers += values
        else:
            self.plan.append("l")
            self.texts += map(str, values)

    def _texts(self, values: Sequence[str]) -> None:
        self.plan.append("s")
        self.texts += values

    def _nothing(self, values: Sequence[None]) -> None:  # noqa: ARG002  # its length says it all
        self.plan.append("n")

    def _flags(self, values: Sequence[bool]) -> None:
        self.plan.append("b")
        self.integers += map(int, values)

    def _tuples(self, values: Sequence[Sequence[Any]]) -> None:
        sizes = list(map(len, values))
        if sizes.count(sizes[0]) == len(sizes):
            self.plan.append("t")
            self.integers.append(sizes[0])
            for column in zip(*values, strict=True):
                self.add(column)
            return
        self.plan.append("v")
        self.integers += sizes
        self.add(list(chain.from_iterable(values)))

    def _mappings(self, values: Sequence[Mapping[str, Any]]) -> None:
        self.plan.append("d")
        self.integers += map(len, values)
        self.texts += chain.from_iterable(values)
        inner = [one for value in values for one in value.values()]
        if inner:
            self.add(inner)

    def _mixed(self, values: Sequence[Any]) -> None:
        """Values of several shapes: which is of which, and a column for each shape."""
        shapes: dict[Any, list[Any]] = {}
        numbers = []
        for value in values:
            shape = _shape(value)
            group = shapes.setdefault(shape, [])
            group.append(value)
            numbers.append(shape)
        places = {shape: place for place, shape in enumerate(shapes)}
        self.plan.append("x")
        self.integers.append(len(shapes))
        self.integers += [places[shape] for shape in numbers]
        for group in shapes.values():
            self.add(group)

    def written(self) -> bytes:
        """All columns as bytes."""
        order: dict[str, int] = {}
        references = []  # 0 for a text that was not seen before, else 1 + its place
        for text in self.texts:
            place = order.get(text, 0)
            references.append(place)
            if not place:
                order[text] = len(order) + 1
        sizes, uuids, plain = [], [], []
        for text in order:
            if len(text) == _UUID_CHARACTERS and _UUID.fullmatch(text):
                sizes.append(0)
                uuids.append(text)
            else:
                plain.append(text.encode())
                sizes.append(1 + len(plain[-1]))
        integers = [*self.integers, *sizes, *references]
        small = bytes([one if 0 <= one < _LARGE else _LARGE for one in integers])
        large = [one for one in integers if not 0 <= one < _LARGE] if _LARGE in small else []
        parts = [
            "".join(self.plan).encode(),
            small,
            _planes("q", large),
            _planes("q", [after - before for before, after in pairwise((0, *self.moments))]),
            _planes("d", self.floats),
            bytes.fromhex("".join(uuids).replace("-", "")),
            b"".join(plain),
        ]
        counts = [*map(len, parts), len(sizes), len(references)]
        return b"".join([*map(_varint, counts), *parts])


_ADD: Mapping[type, Callable[[_Packer, Any], None]] = {
    float: _Packer._floats,
    int: _Packer._integers,
    str: _Packer._texts,
    bool: _Packer._flags,
    type(None): _Packer._nothing,
    tuple: _Packer._tuples,
    list: _Packer._tuples,
    dict: _Packer._mappings,
}


def _shape(value: Any) -> Any:
    """What tells columns apart: values of one shape go into one column without being mixed again."""
    kind = type(value)
    if kind is tuple:
        inner = tuple(map(type, value))
        return ("rows", *map(type, value[0])) if inner and inner[0] is tuple else inner
    if kind is dict:
        return ("by text", _shape(next(iter(value.values())))) if value else ("by text",)
    return kind


def _planes(code: str, numbers: Sequence[float]) -> bytes:
    data = struct.pack(f"<{len(numbers)}{code}", *numbers)
    return b"".join([data[place::_WIDE] for place in range(_WIDE)])


def _from_planes(code: str, data: bytes) -> tuple[Any, ...]:
    count = len(data) // _WIDE
    whole = bytearray(len(data))
    for place in range(_WIDE):
        whole[place::_WIDE] = data[place * count : (place + 1) * count]
    return struct.unpack(f"<{count}{code}", whole)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


class _Unpacker:
    """Columns out of bytes, in the order in which they went in."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0
        *sizes, distinct, references = [self._varint() for _ in range(_COUNTS)]
        plan, small, large, steps, floats, uuids, plain = [self._take(size) for size in sizes]
        if self._at != len(content):
            raise Damaged("the bytes end too late")
        apart = iter(_from_planes("q", large))
        integers = [next(apart) if one == _LARGE else one for one in small]
        own = len(integers) - distinct - references
        self._plan = iter(plan.decode())
        self._integers = iter(integers[:own])
        self._moments = accumulate(_from_planes("q", steps))
        self._floats = iter(_from_planes("d", floats))
        known = _texts(integers[own : own + distinct], uuids, plain)
        new = iter(known)
        self._texts = iter([known[one - 1] if one else next(new) for one in integers[own + distinct :]])

    def column(self, count: int) -> list[Any]:
        """The next column, of `count` values."""
        letter = next(self._plan)
        if letter in "tvdx":
            return self._nested(letter, count)
        if letter == "f":
            return self._some(self._floats, count)
        if letter == "m":
            return [one / 1e3 for one in self._some(self._moments, count)]
        if letter == "w":
            return list(map(float, self._some(self._integers, count)))
        if letter == "i":
            return self._some(self._integers, count)
        if letter == "s":
            return self._some(self._texts, count)
        if letter == "l":
            return list(map(int, self._some(self._texts, count)))
        if letter == "b":
            return list(map(bool, self._some(self._integers, count)))
        if letter == "n":
            return [None] * count
        raise Damaged(f"no column is written as {letter!r}")

    def _nested(self, letter: str, count: int) -> list[Any]:
        if letter == "t":
            columns = [self.column(count) for _ in range(next(self._integers))]
            return list(zip(*columns, strict=True)) if columns else [()] * count
        if letter == "x":
            return self._mixed(count)
        sizes = self._some(self._integers, count)
        if letter == "v":
            inner = iter(self.column(sum(sizes)))
            return [tuple(self._some(inner, size)) for size in sizes]
        keys = [self._some(self._texts, size) for size in sizes]
        values = iter(self.column(sum(sizes)) if sum(sizes) else ())
        return [dict(zip(own, self._some(values, len(own)), strict=True)) for own in keys]

    def _mixed(self, count: int) -> list[Any]:
        shapes = next(self._integers)
        places = self._some(self._integers, count)
        columns = [iter(self.column(places.count(shape))) for shape in range(shapes)]
        return [next(columns[place]) for place in places]

    @staticmethod
    def _some(source: Iterator[Any], count: int) -> list[Any]:
        found = list(islice(source, count))
        if len(found) != count:
            raise Damaged("a column is too short")
        return found

    def _take(self, size: int) -> bytes:
        self._at += size
        return self._content[self._at - size : self._at]

    def _varint(self) -> int:
        number = shift = 0
        while True:
            one = self._content[self._at]
            self._at += 1
            number |= (one & 127) << shift
            if one < 128:
                return number
            shift += 7


def _texts(sizes: Sequence[int], uuids: bytes, plain: bytes) -> list[str]:
    """The distinct texts, in the order of their first appearance."""
    found, at, whole = [], 0, iter(range(0, len(uuids), 16))
    for size in sizes:
        if size:
            found.append(plain[at : at + size - 1].decode())
            at += size - 1
        else:
            start = next(whole)
            text = uuids[start : start + 16].hex()
            found.append(f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}")
    return found
