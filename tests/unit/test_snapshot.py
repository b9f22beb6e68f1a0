"""The item snapshot: what is written is what is read, and damage is never served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.catalogue import item_columns
from narrows.errors import InvalidInput, SnapshotError
from narrows.ids import IdIndex
from narrows.settings import Catalogue
from narrows.snapshot import (
    ItemSnapshot,
    delta_path,
    open_base,
    open_snapshot,
    write_base,
    write_delta,
)

IDS = ["a", "bb", "ümlaut", "d" * 256]
COLUMNS = {
    "price": [1.0, None, 3.0, 4.0],
    "brand": ["x", None, "y", "x"],
    "category": [["p", "q"], [], ["q"], ["r", "q", "p", "s", "t"]],
    "rating": np.array([5, 4, 3, 2], np.int32),
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base of four items with room for three more."""
    write_base(tmp_path, IDS, COLUMNS, version="v1", spare=3)
    return tmp_path


def delta(
    snapshot: ItemSnapshot, directory: Path, number: int, ids: Sequence[str], **columns: object
) -> Path:
    """Write delta `number` to version v<number + 1>."""
    path = delta_path(directory, number)
    write_delta(path, snapshot, ids, columns, version=f"v{number + 1}")  # type: ignore[arg-type]
    return path


def test_ids_and_rows_are_inverse(base: Path) -> None:
    """Every id finds its row in the order of writing, and every row its id."""
    snapshot = open_base(base)
    assert snapshot.rows(["ümlaut", "a", "d" * 256, "bb"]).tolist() == [2, 0, 3, 1]
    assert snapshot.ids(np.array([3, 2, 1, 0], np.int32)) == IDS[::-1]


def test_unknown_ids_have_no_row(base: Path) -> None:
    """Thousands of unknown, overlong, empty or unpaired-surrogate ids all read as -1."""
    unknown = [*(f"nobody-{number}" for number in range(5000)), "", "d" * 257, "é" * 200, "\ud800", "a\0"]
    assert (open_base(base).rows(unknown) == -1).sum() >= 5004
    assert open_base(base).rows([]).tolist() == []


def test_columns_keep_values_codes_and_missing(base: Path) -> None:
    """Numbers stay numbers, words become codes of an alphabetical vocabulary, None becomes nan or -1."""
    snapshot = open_base(base)
    np.testing.assert_array_equal(snapshot.columns["price"], [1.0, np.nan, 3.0, 4.0])
    assert snapshot.vocabulary("brand") == ("x", "y")
    assert snapshot.columns["brand"].tolist() == [0, -1, 1, 0]
    assert snapshot.columns["category"].tolist() == [0, -1, 1, 2]
    assert snapshot.columns["category_all"].tolist() == [
        [0, 1, -1, -1],
        [-1, -1, -1, -1],
        [1, -1, -1, -1],
        [2, 1, 0, 3],
    ]
    assert snapshot.columns["rating"].dtype == np.int32
    assert snapshot.vocabulary("price") == ()


def test_take_reads_unknown_rows_as_missing(base: Path) -> None:
    """A row of -1 gives nan and -1, never another item's values."""
    taken = open_base(base).take(np.array([2, -1], np.int32), ["price", "brand", "category_all"])
    np.testing.assert_array_equal(taken["price"], [3.0, np.nan])
    assert taken["brand"].tolist() == [1, -1]
    assert taken["category_all"][1].tolist() == [-1, -1, -1, -1]


def test_deltas_chain(base: Path) -> None:
    """Delta 1 and 2 applied in order change values, add items and words, and give the newest version."""
    first = open_base(base)
    delta(first, base, 1, ["bb", "new"], price=[2.5, 9.0], brand=["z", "x"])
    second = open_snapshot(base)
    delta(second, base, 2, ["new", "newer"], price=[9.5, 8.0], category=[["p"], ["fresh", "p"]])
    third = open_snapshot(base)
    assert (third.version, third.size, third.capacity) == ("v3", 6, 7)
    assert third.rows(["bb", "new", "newer", "newest"]).tolist() == [1, 4, 5, -1]
    assert third.ids([4, 5, 0]) == ["new", "newer", "a"]
    assert third.columns["price"].tolist()[1:] == [2.5, 3.0, 4.0, 9.5, 8.0]
    assert third.vocabulary("brand") == ("x", "y", "z")
    assert third.columns["brand"].tolist() == [0, 2, 1, 0, 0, -1]
    assert third.vocabulary("category")[third.columns["category"][5]] == "fresh"
    assert third.columns["rating"].tolist()[4:] == [-1, -1]


def test_the_older_snapshot_keeps_its_size(base: Path) -> None:
    """A request that holds the version before a delta never sees the delta's new items."""
    first = open_base(base)
    first.apply(delta(first, base, 1, ["new"], price=[9.0]))
    assert first.size == len(first.columns["price"]) == 4
    assert first.rows(["new"]).tolist() == [-1]
    with pytest.raises(SnapshotError, match="row 4 has no item"):
        first.ids([4])


def test_rows_may_come_before_those_below_them(base: Path) -> None:
    """Row 6 before row 5: until row 4 and 5 follow they have no item, are found by no id, and stay free."""
    first = open_base(base)
    write_delta(delta_path(base, 1), first, ["b", "six"], {"price": [1, 6]}, version="v2", new_rows=[4, 6])
    second = first.apply(delta_path(base, 1))
    assert (second.size, second.rows(["b", "six", ""]).tolist()) == (7, [4, 6, -1])
    assert second.holds(np.array([3, 4, 5, 6, 7, -1], np.int32)).tolist() == [1, 1, 0, 1, 0, 0]
    assert second.ids_by_row()[4:] == ["b", None, "six"]
    with pytest.raises(SnapshotError, match="row 5 has no item"):
        second.ids([5])
    write_delta(delta_path(base, 2), second, ["five"], {"price": [5]}, version="v3", new_rows=[5])
    third = second.apply(delta_path(base, 2))
    assert third.ids([4, 5, 6]) == ["b", "five", "six"]
    assert third.columns["price"].tolist()[4:] == [1.0, 5.0, 6.0]


def test_a_row_is_never_given_twice(base: Path) -> None:
    """Another item's row, the same row for two, and one behind the spare lines are refused."""
    first = open_base(base)
    for rows, why in (([3], "never given twice"), ([5, 5], "never given twice"), ([7], "has room for 3")):
        ids = [f"n{place}" for place in range(len(rows))]
        with pytest.raises(SnapshotError, match=why):
            write_delta(
                delta_path(base, 1), first, ids, {"price": [1] * len(ids)}, version="v2", new_rows=rows
            )


def test_a_base_keeps_rows_without_items(tmp_path: Path) -> None:
    """What a row that nobody has reads as; the items around it keep their rows."""
    write_base(tmp_path, ["a", None, "c"], {"price": [1.0, None, 3.0]}, version="v1", spare=0)
    snapshot = open_base(tmp_path)
    assert snapshot.rows(["c", "", "a"]).tolist() == [2, -1, 0]
    assert snapshot.ids_by_row() == ["a", None, "c"]


def test_a_delta_out_of_order_is_refused(base: Path) -> None:
    """Delta 2 cannot follow the base, and the error names both versions and the remedy."""
    first = open_base(base)
    second = first.apply(delta(first, base, 1, ["new"], price=[9.0]))
    late = delta(second, base, 2, ["new"], price=[9.5])
    with pytest.raises(SnapshotError, match=r"follows version 'v2'.*is 'v1'; apply the deltas in order"):
        open_base(base).apply(late)


def test_a_delta_twice_is_refused(base: Path) -> None:
    """A delta that is already in the snapshot does not follow it."""
    first = open_base(base)
    path = delta(first, base, 1, ["new"], price=[9.0])
    with pytest.raises(SnapshotError, match="apply the deltas in order"):
        first.apply(path).apply(path)


def test_every_flipped_byte_of_a_delta_is_harmless(base: Path) -> None:
    """Whatever byte is damaged, the delta is refused or reads exactly as written."""
    first = open_base(base)
    path = delta(first, base, 1, ["bb", "new"], price=[2.5, 9.0])
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            after = open_base(base).apply(path)
        except SnapshotError:
            continue
        assert after.columns["price"].tolist()[1:] == [2.5, 3.0, 4.0, 9.0]
        assert after.rows(["new"]).tolist() == [4]


def test_a_truncated_delta_is_refused(base: Path) -> None:
    """Half a delta raises and leaves the snapshot's values as they were."""
    first = open_base(base)
    path = delta(first, base, 1, ["bb"], price=[2.5])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SnapshotError, match="fetch the delta again"):
        first.apply(path)
    assert np.isnan(first.columns["price"][1])


def test_a_flipped_bit_in_a_column_is_found(base: Path) -> None:
    """A damaged column is refused when checksums are verified, and only then."""
    content = bytearray((base / "price.npy").read_bytes())
    content[-1] ^= 1
    (base / "price.npy").write_bytes(content)
    with pytest.raises(SnapshotError, match=r"price.npy: does not match its checksum"):
        open_base(base)
    assert open_base(base, verify=False).size == 4


@pytest.mark.parametrize("file", ["price.npy", "ids-blob.npy", "manifest.json"])
def test_a_truncated_or_missing_file_is_refused(base: Path, file: str) -> None:
    """Half a file and no file both raise SnapshotError naming it."""
    whole = (base / file).read_bytes()
    (base / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SnapshotError, match=file):
        open_base(base)
    (base / file).unlink()
    with pytest.raises(SnapshotError, match=file):
        open_base(base)


def test_another_format_is_refused(base: Path) -> None:
    """A manifest of a later format is not guessed at."""
    manifest = base / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(SnapshotError, match="format 2, this code reads 1"):
        open_base(base)


def test_more_items_than_spare_lines_are_refused(base: Path) -> None:
    """Four new items do not fit into three spare lines."""
    with pytest.raises(SnapshotError, match="room for 3 more items, not 4; write a new base"):
        delta(open_base(base), base, 1, ["n1", "n2", "n3", "n4"], price=[1.0] * 4)


def test_writing_depends_on_content_only(tmp_path: Path) -> None:
    """The same items written twice give the same bytes, deltas included."""
    written = []
    for name in ("one", "two"):
        write_base(tmp_path / name, IDS, COLUMNS, version="v1", spare=3)
        delta(open_base(tmp_path / name), tmp_path / name, 1, ["new"], price=[9.0])
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("ids", "remedy"),
    [(["a", "a"], "give every item once"), ([""], "1 to 256 bytes"), (["é" * 129], "1 to 256 bytes")],
)
def test_bad_ids_are_refused(tmp_path: Path, ids: list[str], remedy: str) -> None:
    """An id that is given twice, empty or too long is named with what to do."""
    with pytest.raises(InvalidInput, match=remedy):
        write_base(tmp_path, ids, {}, version="v1", spare=0)


def test_an_empty_catalogue_opens(tmp_path: Path) -> None:
    """The first deploy has no items yet, and deltas can bring the first ones."""
    write_base(tmp_path, [], {"price": np.empty(0), "brand": []}, version="v1", spare=2)
    empty = open_base(tmp_path)
    assert empty.size == 0
    assert empty.rows(["a"]).tolist() == [-1]
    assert empty.apply(delta(empty, tmp_path, 1, ["a"], price=[1.0])).rows(["a"]).tolist() == [0]


def test_encoded_columns_keep_their_codes_and_deltas_translate_them(tmp_path: Path) -> None:
    """Columns that are codes already are stored as they are; a delta's codes become the base's."""
    table = {"id": ["a", "b"], "kind": [["y"], ["x", "y"]], "name": ["A", "Ä" * 60]}
    catalogue = Catalogue(id="id", categories="kind", text=("name",))
    items = item_columns(table, catalogue)
    write_base(tmp_path, items.ids, items.columns, version="v1", spare=2, vocabularies=items.vocabularies)
    first = open_base(tmp_path)
    assert first.columns["category_all"].tolist() == [[1, -1, -1, -1], [0, 1, -1, -1]]
    assert first.columns["title"].tolist() == [b"A", ("Ä" * 48).encode()]
    later = item_columns({"id": ["b", "c"], "kind": [[], ["w", "y"]], "name": ["B", "C"]}, catalogue)
    path = delta_path(tmp_path, 1)
    write_delta(path, first, later.ids, later.columns, version="v2", vocabularies=later.vocabularies)
    second = first.apply(path)
    assert second.vocabulary("category") == second.vocabulary("category_all") == ("x", "y", "w")
    assert second.columns["category"].tolist() == [1, -1, 2]
    assert second.columns["category_all"][2].tolist() == [2, 1, -1, -1]
    assert second.columns["title"].tolist() == [b"A", b"B", b"C"]


@given(st.lists(st.text(min_size=1, max_size=60).filter(lambda text: "\0" not in text), unique=True))
def test_the_index_finds_what_it_holds(ids: list[str]) -> None:
    """Every id of any alphabet finds its place, and an id with a suffix finds none."""
    ids = [one for one in ids if one.encode("utf-8", "replace") == one.encode("utf-8", "surrogatepass")]
    index = IdIndex.build(ids, first=10)
    assert index.find(ids).tolist() == list(range(10, 10 + len(ids)))
    assert [index.id_of(row) for row in range(10, 10 + len(ids))] == ids
    absent = [f"{one}#" for one in ids if f"{one}#" not in ids]
    assert index.find(absent).tolist() == [-1] * len(absent)


def test_colliding_hashes_still_find_their_ids() -> None:
    """Ids with equal hashes are told apart by their bytes."""
    index = IdIndex.build(["a", "b", "c"])
    same = np.full(3, index.hashes[0])
    hashes = IdIndex.build(["a", "b", "c"])
    crowded = IdIndex(0, hashes.blob, hashes.offsets, same, np.array([0, 1, 2], np.int32))
    wanted = ["a", "b", "c"][int(index.order[0])]
    assert crowded.find([wanted]).tolist() == [int(index.order[0])]
