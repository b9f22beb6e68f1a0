"""The lake's Parquet files as the night reads them: row groups, columns by name, seats; no Spark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glue_jobs.blocks import seats_of
from glue_jobs.event_files import EventRows, Part, files_in, located, read
from tests.servers import Aws, credentials

TEXTS, NUMBERS = pa.map_(pa.string(), pa.string()), pa.map_(pa.string(), pa.float64())
MARKS = pa.list_(pa.string())
COLUMNS = ["event_type", "time", "item_id", "impression", "texts", "numbers", "position", "marks", "consent"]


def table(count: int) -> pa.Table:
    """Events by number: every fourth shows items, every third has a mark, brands are many."""
    numbers = range(count)
    shows = [one % 4 == 0 for one in numbers]
    return pa.table(
        {
            "event_type": ["impression" if one else "view" for one in shows],
            "time": [float(one) for one in numbers],
            "item_id": [None if one % 4 == 0 else f"i{one % 5}" for one in numbers],
            "impression": [["i1", "i2", "i1"] if one else [] for one in shows],
            "texts": pa.array([_texts(one) if one % 2 else None for one in numbers], TEXTS),
            "numbers": pa.array([[("price", float(one))] if one % 5 else [] for one in numbers], NUMBERS),
            "position": pa.array([one if one % 2 else None for one in numbers], pa.int32()),
            "marks": pa.array([None if one % 3 else ["bot:rate"] for one in numbers], MARKS),
            "consent": [one != 1 for one in numbers],
        }
    )


def _texts(number: int) -> list[tuple[str, str]]:
    return [("brand", f"b{number}"), ("empty", "")]


def rows_of(path: Path, columns: list[str], at_once: int) -> list[EventRows]:
    """What all parts of a file read."""
    groups = pq.read_metadata(path).num_row_groups
    return [rows for group in range(groups) for rows in read(Part(str(path), group, 0, 0), columns, at_once)]


TOLD_BY_DIFFERENCES = {"texts.key_value.value": "DELTA_BYTE_ARRAY"}


@pytest.mark.parametrize(
    "told",
    [
        {"dictionary_pagesize_limit": 1 << 20},
        {"dictionary_pagesize_limit": 64},
        {"use_dictionary": False, "column_encoding": TOLD_BY_DIFFERENCES},
    ],
    ids=["list", "list given up", "differences"],
)
def test_every_row_is_read_once_with_its_own_values(tmp_path: Path, told: dict[str, Any]) -> None:
    """In slices of row groups, however a file tells the brands: it may give up a list that grows too long."""
    path = tmp_path / "events.parquet"
    pq.write_table(table(5_000), path, row_group_size=3_000, **told)
    parts = rows_of(path, COLUMNS, at_once=1_000)
    assert [len(one) for one in parts] == [1000] * 5
    times = np.concatenate([one.columns["time"].to_numpy() for one in parts])
    assert times.tolist() == list(range(5_000))
    brands = [text for one in parts for text in one.text("brand").to_pylist()]
    assert brands == [f"b{one}" if one % 2 else None for one in range(5_000)]
    prices = np.concatenate([one.number("price") for one in parts])
    assert np.array_equal(prices, [one if one % 5 else np.nan for one in range(5_000)], equal_nan=True)
    positions = np.concatenate([one.number("position") for one in parts])
    assert np.array_equal(positions, [one if one % 2 else np.nan for one in range(5_000)], equal_nan=True)


def test_what_is_no_text_or_not_there_reads_as_null(tmp_path: Path) -> None:
    """Empty texts, numbers asked as texts and the other way round, columns that the file is too old for."""
    path = tmp_path / "events.parquet"
    pq.write_table(table(8).drop_columns(["numbers", "impression"]), path)
    (rows,) = rows_of(path, COLUMNS, at_once=100)
    assert {*rows.text("empty").to_pylist(), *rows.text("position").to_pylist()} == {None}
    assert np.isnan([*rows.number("price"), *rows.number("item_id")]).all()
    assert rows.number("impressions").tolist() == [1.0] * 8
    assert [len(one) for one in rows.shown] == [0, 0]


def test_marks_consent_and_hiding_types_keep_an_event_from_counting(tmp_path: Path) -> None:
    """Of eight the unmarked ones count, without the one that had no consent."""
    path = tmp_path / "events.parquet"
    pq.write_table(table(8), path)
    (rows,) = rows_of(path, COLUMNS, at_once=100)
    assert np.flatnonzero(rows.counting).tolist() == [2, 4, 5, 7]
    hiding = EventRows({**rows.columns, "event_type": pa.array([*["view"] * 7, "do_not_show"])})
    assert np.flatnonzero(hiding.counting).tolist() == [2, 4, 5]


def test_an_impression_shows_each_of_its_items_once(tmp_path: Path) -> None:
    """An item that is listed twice was shown once; its own items are not an impression's."""
    path = tmp_path / "events.parquet"
    pq.write_table(table(9), path)
    (rows,) = rows_of(path, COLUMNS, at_once=100)
    places, items = rows.shown
    assert list(zip(places.tolist(), items.to_pylist(), strict=True)) == [
        (row, item) for row in (0, 4, 8) for item in ("i1", "i2")
    ]
    assert rows.number("impressions").tolist() == [3, 1, 1, 1, 3, 1, 1, 1, 3]


def test_a_text_has_the_same_seat_in_whatever_company() -> None:
    """Alone, in a slice, beside longer ones, behind a prefix: sessions and who logged in there must meet."""
    texts = ["", "a", "1234567", "12345678", "123456789", "grün und 紫", "x" * 100]
    together = seats_of(pa.array(texts), 1009)
    assert [int(seats_of(pa.array([one]), 1009)[0]) for one in texts] == together.tolist()
    assert np.array_equal(seats_of(pa.array(["before", *texts]).slice(1), 1009), together)
    assert np.array_equal(seats_of(pa.array([f"s#{one}" for one in texts]), 1009, without=2), together)
    assert np.array_equal(seats_of(pa.array([*texts, None]), 1009)[:-1], together)
    assert len(set(together.tolist())) == len(texts)
    seats = seats_of(pa.array([f"user{one:08}" for one in range(100_000)]), 50)
    assert np.bincount(seats, minlength=50).min() > 1_800


@pytest.mark.parametrize("path", ["{}/a home", "file:{}/a home", "file://{}/a home"])
def test_a_path_is_found_as_iceberg_and_spark_write_it(tmp_path: Path, path: str) -> None:
    """Plain, with one slash, with three."""
    system, found = located(path.format(tmp_path))
    assert (system.type_name, found) == ("local", f"{tmp_path}/a home")


@pytest.mark.local
def test_a_bucket_is_read_with_the_endpoint_and_credentials_of_the_environment(
    ministack: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Glue gives them; Hadoop's name of S3 means the same."""
    credentials(monkeypatch, ministack.endpoint)
    client: Any = ministack.client("s3")
    client.create_bucket(Bucket="lake-bucket")
    pq.write_table(table(10), tmp_path / "events.parquet")
    client.put_object(
        Bucket="lake-bucket", Key="lake/events.parquet", Body=(tmp_path / "events.parquet").read_bytes()
    )
    (file,) = files_in("s3://lake-bucket/lake/")
    (rows,) = read(Part(f"s3a://{file}", 0, 10, 10), COLUMNS, at_once=100)
    assert rows.columns["time"].to_pylist() == [float(one) for one in range(10)]
