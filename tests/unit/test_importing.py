"""Importing files: which rows are accepted, what becomes of the others, and what the report says."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from narrows.adapters.importer import ImportOptions, import_files
from narrows.column_names import plain_name, sensitive_columns
from narrows.errors import InvalidInput
from narrows.importing import (
    ImportRefused,
    map_columns,
    numbers_of,
    parse_times,
    split_values,
    strongest_type,
)
from narrows.item_upsert import parse_item
from narrows.settings import App, Catalogue, EventType

NOW = 1_700_000_000.0
EVENTS = {"impression": EventType(), "view": EventType(1.0), "purchase": EventType(5.0)}
CATALOGUE = Catalogue("item_id", ("title",), "categories", "brand", "price", "created_at")
SHOP = cast(App, SimpleNamespace(name="shop", events=EVENTS, catalogue=CATALOGUE))

BAD = """USER_ID,ITEM_ID,TIMESTAMP,EVENT_TYPE,EVENT_VALUE
u1,i1,1600000000,view,1.5
,i1,1600000001,view,
u1,nan,1600000002,view,
u1,i1,yesterday,view,
u1,i1,-5,view,
u1,i1,99999999999,view,
u1,i1,1600000006,view,NaN
u1,i1,1600000007,view,inf
u1,i1,1600000000,view,1.5
u1,i1,1600000009
u1,i1,1600000010,view,,extra

u2,i2,1600000012,hover,
"""


def _run(source: Path, tmp_path: Path, *allowed: str, **columns: str) -> tuple[dict[str, Any], Path]:
    data = tmp_path / "home" / "data"
    data.parent.mkdir(exist_ok=True)
    report = import_files(source, SHOP, data, ImportOptions(columns, allowed, NOW), lambda *_: None)
    return report, data


def _folder(tmp_path: Path, files: Mapping[str, str]) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def _rows(data: Path, role: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(data / role).to_pylist()
    return rows


def test_every_refused_row_is_listed_with_its_line_and_reason(tmp_path: Path) -> None:
    """Ten of twelve rows are refused, each for its own reason; accepted and quarantined add up to read."""
    report, data = _run(_folder(tmp_path, {"interactions.csv": BAD}), tmp_path)
    part = report["interactions"]
    assert (part["read"], part["accepted"], part["quarantined"]) == (12, 2, 10)
    with (data.parent / "quarantine/interactions.csv").open() as file:
        refused = {int(row["line"]): row["reason"] for row in csv.DictReader(file)}
    assert refused == {
        3: "missing user id",
        4: "missing item id",
        5: "unparsable timestamp",
        6: "timestamp before 1980 or in the future",
        7: "timestamp before 1980 or in the future",
        8: "value is not a finite number from -1e+15 to 1e+15",
        9: "value is not a finite number from -1e+15 to 1e+15",
        10: "duplicate row",
        11: "3 cells where the header has 5",
        12: "6 cells where the header has 5",
    }
    assert part["reasons"]["wrong number of cells"] == 2


def test_accepted_rows_carry_the_apps_labels(tmp_path: Path) -> None:
    """A known type has its label, an unknown one is kept with 1 and named; an empty value is null."""
    report, data = _run(_folder(tmp_path, {"interactions.csv": BAD}), tmp_path)
    known = {
        "user_id": "u1",
        "item_id": "i1",
        "time": 1.6e9,
        "event_type": "view",
        "value": 1.5,
        "weight": 1.0,
        "segment": None,
    }
    strange = {"user_id": "u2", "item_id": "i2", "time": 1600000012.0, "event_type": "hover"}
    assert _rows(data, "interactions") == [
        known,
        {**strange, "value": None, "weight": 1.0, "segment": None},
    ]
    assert report["interactions"]["unknown_event_types"] == {"hover": 1}


def test_a_value_that_no_event_may_have_is_refused(tmp_path: Path) -> None:
    """It would make sums infinite in which it is folded, from a file as over HTTP."""
    header = "USER_ID,ITEM_ID,TIMESTAMP,EVENT_TYPE,EVENT_VALUE\n"
    rows = "".join(f"u{n},i1,1600000000,view,{value}\n" for n, value in enumerate(("1e308", "-1e16", "1e15")))
    report, data = _run(_folder(tmp_path, {"interactions.csv": header + rows}), tmp_path)
    assert report["interactions"]["reasons"] == {"value is not a finite number from -1e+15 to 1e+15": 2}
    assert [one["value"] for one in _rows(data, "interactions")] == [1e15]


def test_csv_gz_and_parquet_give_the_same_data(tmp_path: Path) -> None:
    """The same rows in any of the formats, in either case of the header, are the same import."""
    ids = {"USER_ID": [3, 1], "ITEM_ID": ["a", "b"], "TIMESTAMP": [1600000000, 1600000001]}
    text = "user_id,item_id,timestamp\n3,a,1600000000\n1,b,1600000001\n"
    (tmp_path / "interactions.csv").write_text(text)
    with gzip.open(tmp_path / "interactions.csv.gz", "wt") as file:
        file.write(text)
    pq.write_table(pa.table(ids), tmp_path / "interactions.parquet")
    imported = []
    for name in ("interactions.csv", "interactions.csv.gz", "interactions.parquet"):
        report, data = _run(tmp_path / name, tmp_path)
        assert report["interactions"]["default_event_type"] == "purchase"
        imported.append(_rows(data, "interactions"))
    assert imported[0] == imported[1] == imported[2]
    assert [row["user_id"] for row in imported[0]] == ["3", "1"]


def test_columns_with_other_names_are_recognised_and_reported(tmp_path: Path) -> None:
    """RetailRocket's names and its milliseconds are understood, and the report says what was inferred."""
    text = "timestamp,visitorid,event,itemid,transactionid\n1433221332117,257597,view,355908,\n"
    text += "1433221332118,257597,transaction,355908,9\n"
    report, data = _run(_folder(tmp_path, {"events.csv": text}), tmp_path)
    part = report["interactions"]
    assert part["inferred"] == {"user_id": "visitorid", "item_id": "itemid", "event_type": "event"}
    assert part["time_units"] == {"ms": 2}
    assert part["ignored_columns"] == ["transactionid"]
    assert [(row["event_type"], row["time"]) for row in _rows(data, "interactions")] == [
        ("view", 1433221332.117),
        ("purchase", 1433221332.118),
    ]


def test_where_users_were_is_their_segment(tmp_path: Path) -> None:
    """Under any usual name; one that no id could be is none."""
    text = "user_id,item_id,timestamp,country\nu1,i1,1433221332,DE\nu2,i1,1433221333,\n"
    text += f"u3,i1,1433221334,{'x' * 300}\n"
    report, data = _run(_folder(tmp_path, {"interactions.csv": text}), tmp_path)
    assert report["interactions"]["inferred"] == {"location": "country"}
    assert [row["segment"] for row in _rows(data, "interactions")] == ["DE", None, None]


def test_columns_may_be_given_by_name(tmp_path: Path) -> None:
    """What cannot be recognised can be said."""
    folder = _folder(tmp_path, {"interactions.csv": "who,what,moment\nu,i,2020-09-13T12:26:40Z\n"})
    with pytest.raises(
        ImportRefused, match=r"interactions\.csv: no column USER_ID; it has who, what, moment"
    ):
        _run(folder, tmp_path)
    _, data = _run(folder, tmp_path, user_id="who", item_id="WHAT", timestamp="moment")
    assert _rows(data, "interactions")[0]["time"] == 1_600_000_000.0


def test_a_given_column_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    """A typing mistake in --columns names the columns there are."""
    folder = _folder(tmp_path, {"interactions.csv": "user_id,item_id,timestamp\nu,i,1600000000\n"})
    with pytest.raises(ImportRefused, match="--columns TIMESTAMP=when names no column; it has user_id"):
        _run(folder, tmp_path, timestamp="when")


def test_sensitive_columns_are_put_aside_unless_allowed(tmp_path: Path) -> None:
    """Gender and postal code go to a file that only its owner reads; one is let through by name."""
    users = "USER_ID,GENDER,OCCUPATION,ZIP\nu1,F,3,02460\nu2,M,4,48067\n"
    interactions = "USER_ID,ITEM_ID,TIMESTAMP\nu1,i1,1600000000\n"
    folder = _folder(tmp_path, {"interactions.csv": interactions, "users.csv": users})
    report, data = _run(folder, tmp_path)
    aside = data.parent / "quarantine/sensitive_users.csv"
    assert report["users"]["sensitive"] == ["GENDER", "ZIP"]
    assert _rows(data, "users") == [{"user_id": "u1", "occupation": 3}, {"user_id": "u2", "occupation": 4}]
    assert aside.read_text().splitlines() == ["USER_ID,GENDER,ZIP", "u1,F,02460", "u2,M,48067"]
    assert aside.stat().st_mode & 0o077 == 0
    report, data = _run(folder, tmp_path, "zip")
    assert report["users"]["sensitive"] == ["GENDER"]
    assert _rows(data, "users")[0] == {"user_id": "u1", "occupation": 3, "zip": "02460"}


def test_catalogue_gets_the_names_that_the_app_uses(tmp_path: Path) -> None:
    """Three category levels become one list, the creation time epoch seconds, the price a number."""
    items = "ITEM_ID,NAME,CATEGORY_L1,CATEGORY_L2,PRICE,CREATION_TIMESTAMP\n"
    items += "i1,Lamp,Home,Light,9.5,1600000000\ni2,Rug,Home,,,\ni1,Lamp again,Home,,1,1\n,Nothing,,,,\n"
    interactions = "USER_ID,ITEM_ID,TIMESTAMP\nu1,i1,1600000000\nu1,i9,1600000001\n"
    folder = _folder(tmp_path, {"interactions.csv": interactions, "items.csv": items})
    report, data = _run(folder, tmp_path)
    lamp, rug = _rows(data, "items")
    assert (lamp["title"], lamp["categories"], lamp["price"], lamp["created_at"]) == (
        "Lamp",
        ["Home", "Light"],
        9.5,
        1.6e9,
    )
    assert (rug["categories"], rug["price"], rug["created_at"]) == (["Home"], None, None)
    assert report["items"]["reasons"] == {"missing id": 1, "id seen before with other values": 1}
    assert report["items"]["filled"]["categories"] == ["CATEGORY_L1", "CATEGORY_L2"]
    assert report["items_missing_from_catalogue"] == 1
    assert len(_rows(data, "interactions")) == 2


def test_a_sellers_number_is_its_name(tmp_path: Path) -> None:
    """A column that files call otherwise becomes the app's, and what a table makes of numbers is undone."""
    folder = _folder(tmp_path, {"interactions.csv": "USER_ID,ITEM_ID,TIMESTAMP\nu1,i1,1600000000\n"})
    pq.write_table(
        pa.table({"ITEM_ID": ["i1", "i2"], "MERCHANT_ID": pa.array([7.0, None])}), folder / "items.parquet"
    )
    catalogue = replace(CATALOGUE, seller="seller")
    app = cast(App, SimpleNamespace(name="shop", events=EVENTS, catalogue=catalogue))
    report = import_files(folder, app, tmp_path / "data", ImportOptions({}, (), NOW), lambda *_: None)
    assert report["items"]["filled"]["seller"] == ["MERCHANT_ID"]
    assert [one["seller"] for one in _rows(tmp_path / "data", "items")] == ["7", None]


TAGS = [f"tag-{n}" for n in range(10_000)]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"categories": TAGS}, "bad categories"),
    ({"categories": ["a", "t" * 257]}, "bad categories"),
    ({"title": "x" * 20_001}, "bad title"),
    ({"title": "a\0b"}, "bad title"),
    ({"brand": "b" * 257}, "bad brand"),
    ({"price": -1.0}, "bad price"),
    ({"price": 1e39}, "bad price"),
    ({"created_at": 4.2e9}, "bad created_at"),
    ({"title": "t" * 19_999, "categories": ["\u00e9" * 250 + str(n) for n in range(99)]}, "bad item"),
]


@pytest.mark.parametrize(("said", "counted"), REFUSED, ids=[f"{n}" for n in range(len(REFUSED))])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_an_item_that_the_api_refuses_is_quarantined(
    tmp_path: Path, said: dict[str, Any], counted: str, kind: str
) -> None:
    """With the field, the value and the remedy that the API answers; the others are kept."""
    with pytest.raises(InvalidInput) as error:
        parse_item({"item_id": "bad", **said}, CATALOGUE)
    fields = dict.fromkeys(("item_id", "title", "categories", "brand", "price", "created_at"))
    rows = [{**fields, **one} for one in ({"item_id": "a"}, {"item_id": "bad", **said}, {"item_id": "c"})]
    folder = _folder(tmp_path, {"interactions.csv": "USER_ID,ITEM_ID,TIMESTAMP\nu1,a,1600000000\n"})
    for row in rows:
        row["categories"] = "|".join(row["categories"] or [])
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), folder / "items.parquet")
    else:
        with (folder / "items.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fields)
            writer.writeheader()
            writer.writerows(rows)
    report, data = _run(folder, tmp_path)
    assert (report["items"]["read"], report["items"]["accepted"]) == (3, 2)
    assert report["items"]["reasons"] == {counted: 1}
    assert [one["item_id"] for one in _rows(data, "items")] == ["a", "c"]
    csv.field_size_limit(1_000_000)
    with (data.parent / "quarantine/items.csv").open(newline="", encoding="utf-8") as file:
        (refused,) = csv.DictReader(file)
    assert refused["reason"] == f"{counted}: {error.value}"


def test_what_is_no_number_or_moment_is_missing(tmp_path: Path) -> None:
    """As files have it, where the API would refuse it; nor does a byte of another encoding cost an item."""
    items = b"ITEM_ID,TITLE,CATEGORY,PRICE,CREATED_AT\ni1,caf\xe9,a||a,n/a,soon\ni2, ,,,\n"
    folder = _folder(tmp_path, {"interactions.csv": "USER_ID,ITEM_ID,TIMESTAMP\nu1,i1,1600000000\n"})
    (folder / "items.csv").write_bytes(items)
    report, data = _run(folder, tmp_path)
    assert report["items"]["reasons"] == {}
    assert [(one["title"], one["created_at"]) for one in _rows(data, "items")] == [
        ("caf?", None),
        (" ", None),
    ]


def test_a_refused_item_takes_no_id(tmp_path: Path) -> None:
    """A later row of the same item is kept."""
    interactions = "USER_ID,ITEM_ID,TIMESTAMP\nu1,i1,1600000000\n"
    items = "ITEM_ID,PRICE\ni1,-1\ni1,2\ni1,3\n"
    report, data = _run(_folder(tmp_path, {"interactions.csv": interactions, "items.csv": items}), tmp_path)
    assert [(one["item_id"], one["price"]) for one in _rows(data, "items")] == [("i1", 2.0)]
    assert report["items"]["reasons"] == {"bad price": 1, "id seen before with other values": 1}


def test_files_of_a_folder_with_different_columns_are_joined(tmp_path: Path) -> None:
    """A folder of parts is one table; a part that lacks a column has nothing there."""
    folder = tmp_path / "source"
    for name, text in {
        "interactions/part-0.csv": "user_id,item_id,timestamp\nu,i,1600000000\n",
        "interactions/part-1.csv": "user_id,item_id,timestamp\nv,j,1600000001\n",
        "items/a.csv": "item_id,color\ni,red\n",
        "items/b.csv": "item_id,weight\nj,2\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    report, data = _run(folder, tmp_path)
    assert report["interactions"]["accepted"] == 2
    assert _rows(data, "items") == [
        {"item_id": "i", "color": "red", "weight": None},
        {"item_id": "j", "color": None, "weight": 2},
    ]


def test_bytes_that_are_not_utf8_make_a_bad_id(tmp_path: Path) -> None:
    """A Latin-1 file does not crash the import: the row is refused and can be found."""
    path = tmp_path / "interactions.csv"
    path.write_bytes(
        b"\xef\xbb\xbfUSER_ID,ITEM_ID,TIMESTAMP\nJos\xe9,i,1600000000\nJos\xc3\xa9,i,1600000000\n"
    )
    report, data = _run(path, tmp_path)
    assert report["interactions"]["reasons"] == {"bad user id": 1}
    assert _rows(data, "interactions")[0]["user_id"] == "José"


def test_a_failed_import_keeps_the_earlier_data(tmp_path: Path) -> None:
    """Data of the last good import stay in place when the next one is refused."""
    good = tmp_path / "interactions.csv"
    good.write_text("user_id,item_id,timestamp\nu,i,1600000000\n")
    _, data = _run(good, tmp_path)
    good.write_text("user_id,item_id,timestamp\nu,i,never\n")
    with pytest.raises(ImportRefused, match=r"none of the 1 rows is usable \(unparsable timestamp: 1\)"):
        _run(good, tmp_path)
    assert len(_rows(data, "interactions")) == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "the folder holds no data; put interactions.csv there"),
        ({"notes.docx": "x"}, r"cannot read notes\.docx; convert to CSV"),
        ({"items.csv": "item_id\ni\n"}, r"no interactions among items\.csv"),
        ({"interactions.csv": ""}, "the file is empty; its first line must name the columns"),
        ({"interactions.csv": "user_id,item_id,timestamp\n"}, "no rows below the header"),
        ({"interactions.csv": "user_id,item_id\nu,i\n"}, "no column TIMESTAMP; it has user_id, item_id"),
        ({"interactions.csv": "a,a,b\n1,2,3\n"}, "the column a appears twice"),
        ({"interactions.parquet": "no parquet"}, "not a Parquet file"),
        ({"interactions.csv.gz": "no gzip"}, "the compressed file is damaged"),
    ],
)
def test_files_that_cannot_be_imported_are_refused_with_a_remedy(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    """The message names what is wrong and what to do."""
    with pytest.raises(ImportRefused, match=message):
        _run(_folder(tmp_path, files), tmp_path)


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    """A path that does not exist is named."""
    with pytest.raises(ImportRefused, match="no such file or folder"):
        _run(tmp_path / "nowhere", tmp_path)


def test_interactions_are_found_by_their_columns(tmp_path: Path) -> None:
    """A folder whose file has another name is understood by what is in it; the rest is listed as not used."""
    files = {"log.csv": "session_id,sku,ts\ns,i,1600000000\n", "stores.csv": "store_id\n1\n"}
    report, _ = _run(_folder(tmp_path, files), tmp_path)
    assert report["interactions"]["files"] == ["log.csv"]
    assert report["ignored_files"] == ["stores.csv"]


def test_parquet_moments_and_lists_are_understood(tmp_path: Path) -> None:
    """A timestamp column needs no unit, a whole float id is that number, a list is a set of values."""
    moment = pa.array([1_600_000_000_000_000], pa.timestamp("us", tz="UTC"))
    table = pa.table({"user_id": [7.0], "item_id": pa.array(["x"]).dictionary_encode(), "timestamp": moment})
    (tmp_path / "source").mkdir()
    pq.write_table(table, tmp_path / "source/interactions.parquet")
    pq.write_table(pa.table({"item_id": ["x"], "tags": [["a", "b"]]}), tmp_path / "source/items.parquet")
    _, data = _run(tmp_path / "source", tmp_path)
    (row,) = _rows(data, "interactions")
    assert (row["user_id"], row["item_id"], row["time"]) == ("7", "x", 1.6e9)
    assert _rows(data, "items")[0]["categories"] == ["a", "b"]


def test_times_in_any_unit_are_the_same_moment() -> None:
    """Each unit, and ISO 8601 with and without a zone, can say 2020-09-13 12:26:40 UTC."""
    texts = ["1600000000", "1600000000000", "1600000000000000", "1600000000000000000"]
    texts += ["2020-09-13T12:26:40Z", "2020-09-13 12:26:40", "2020-09-13T14:26:40+02:00", "1.6e9"]
    seconds, units = parse_times(texts)
    np.testing.assert_array_equal(seconds, np.full(8, 1.6e9))
    assert units == ["s", "ms", "us", "ns", "iso", "iso", "iso", "s"]
    assert np.isnan(parse_times(["", "soon", "inf", "nan"])[0]).all()


def test_a_user_column_is_preferred_over_a_session_column() -> None:
    """Where both exist, the user is the visitor."""
    columns = map_columns("interactions", ["session_id", "item", "user", "time"], "f.csv", {})
    assert columns.columns == {"user_id": "user", "item_id": "item", "timestamp": "time"}
    assert columns.others == ("session_id",)


@pytest.mark.parametrize("name", ["UserId", "USER_ID", "user_id:token", " User Id "])
def test_plain_names(name: str) -> None:
    """Case, spaces, camel case and typed headers are one name."""
    assert plain_name(name) == "user_id"


def test_catalogue_columns_are_sensitive_only_if_they_target_a_group() -> None:
    """An item's name is harmless and its target gender is not; a person's name is not harmless."""
    assert sensitive_columns("items", ["NAME", "GENDER", "AGE_GROUP"], ()) == ["GENDER", "AGE_GROUP"]
    assert sensitive_columns("users", ["name", "country"], ()) == ["name"]


def test_numbers_are_recognised_column_by_column() -> None:
    """One text, or a leading zero, makes the whole column texts; empty cells are nan."""
    numbers = numbers_of(["1", "", "2.5"])
    assert numbers is not None
    np.testing.assert_array_equal(numbers, [1.0, np.nan, 2.5])
    assert numbers_of(["1", "two"]) is None
    assert numbers_of(["02460", "12"]) is None
    assert numbers_of(["", ""]) is None


def test_multi_valued_cells_are_split_once() -> None:
    """Values are separated by a bar, blanks and repeats removed."""
    assert split_values(["a|b|a", "", "c | d"]) == [["a", "b"], [], ["c", "d"]]


def test_the_strongest_type_has_the_highest_label() -> None:
    """Ties are broken by name, so the answer does not depend on the order of the settings."""
    assert strongest_type({"view": 1.0, "purchase": 5.0, "order": 5.0}) == "order"
    assert strongest_type({}) == "interaction"
