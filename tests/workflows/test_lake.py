"""The lake on a real Spark: landed lines in, one row for each event out, whatever happens on the way."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from narrows.errors import InvalidInput
from tests.spark_session import lake_session, spark

__all__ = ["spark"]
pytestmark = pytest.mark.spark

ROOT = Path(__file__).parents[2]
JOB = ROOT / "glue_jobs" / "compact_events.py"
DAY = 86_400.0
NOON = 20_000.5 * DAY  # 2024-10-04, 12:00 UTC
SHARD = "shardId-000000000000"


def event(event_id: str, time: float = NOON, **fields: object) -> dict[str, object]:
    """A landed line without its place in the stream."""
    return {"event_id": event_id, "event_type": "click", "sent_at": time, "received_at": time + 1.0,
            "user_id": "ann", "item_id": "i1", "consent": True, "schema_version": 2, **fields}  # fmt: skip


def land(landing: Path, first: int, lines: Sequence[Mapping[str, object] | str], shard: str = SHARD) -> None:
    """One file as land_events writes it: sequence numbers from `first` on, one for each line."""
    placed = [
        line
        if isinstance(line, str)
        else json.dumps({**line, "shard": shard, "sequence": str(first + place)})
        for place, line in enumerate(lines)
    ]
    path = landing / "dt=2024-10-04" / f"{shard}-{first}-{first + len(lines) - 1}.jsonl.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in placed).encode(), mtime=0))


TODAY = date(2024, 10, 5)


class Lake:
    """A landing zone and a lake in one folder."""

    def __init__(self, spark: Any, folder: Path) -> None:
        self.landing, self.session = folder / "landing", lake_session(spark, folder / "lake")

    def compact(self, **changes: Any) -> Mapping[str, int]:
        """One run of the job; how many of what."""
        from glue_jobs.compact_events import compact

        return compact(
            self.session, str(self.landing), **{"events_per_minute": 120.0, "today": TODAY, **changes}
        )

    def totals(self) -> dict[str, dict[str, int]]:
        """What the runs have counted, by day."""
        from glue_jobs.compact_events import TOTALS

        rows = self.session.sql("SHOW TBLPROPERTIES lake.narrows.events").collect()
        return dict(json.loads({row["key"]: row["value"] for row in rows}[TOTALS]))

    def rows(self, *columns: str, as_of: datetime | int | None = None) -> list[tuple[Any, ...]]:
        """The events as tuples of these columns, sorted."""
        from glue_jobs.lake import read_events

        return sorted(tuple(row) for row in read_events(self.session, as_of).select(*columns).collect())

    def file_rows(self, *columns: str, as_of: datetime | int | None = None) -> list[tuple[Any, ...]]:
        """The same as one who reads the files by himself finds them; maps are lists of pairs."""
        from glue_jobs.event_files import lake_files, parts_of, read

        parts = parts_of(self.session, lake_files(self.session, as_of))
        found = [rows.columns for part in parts for rows in read(part, (*columns, "time"), at_once=1)]
        return sorted(
            row for one in found for row in zip(*(one[name].to_pylist() for name in columns), strict=True)
        )

    def snapshots(self) -> list[int]:
        """The numbers of the table's snapshots, oldest first."""
        found = self.session.sql(
            "SELECT snapshot_id FROM lake.narrows.events.snapshots ORDER BY committed_at"
        )
        return [row[0] for row in found.collect()]


@pytest.fixture
def lake(spark: Any, tmp_path: Path) -> Lake:
    return Lake(spark, tmp_path / "a home with spaces")


def test_a_line_becomes_a_row_with_every_field_in_its_column(lake: Lake) -> None:
    """Values by type, the visitor's key, the day of the event in UTC; what is absent is null."""
    late_evening = 20_000 * DAY + DAY - 0.5
    land(lake.landing, 5, [
        event("a", late_evening, event_value=2.5, recommendation_id="r", position=3, surface="home",
              impression=["i1", "i2"], query="shoes", texts={"brand": "Acme"},
              numbers={"price": 9.5, "gift": 1.0}, marks=["bot:user_agent"]),
        event("b", user_id=None, session_id="s1"),
    ])  # fmt: skip
    lake.compact()
    columns = "event_id visitor time value position impression texts numbers marks shard sequence event_date"
    day = datetime(2024, 10, 4, tzinfo=UTC).date()
    assert lake.rows(*columns.split()) == [
        ("a", "u#ann", late_evening, 2.5, 3, ["i1", "i2"], {"brand": "Acme"}, {"price": 9.5, "gift": 1.0},
         ["bot:user_agent"], SHARD, "5", day),
        ("b", "s#s1", NOON, None, None, None, None, None, [], SHARD, "6", day),
    ]  # fmt: skip


def test_each_event_is_there_once_and_its_first_arrival_stays(lake: Lake) -> None:
    """Twice in one file, again in a later one: the lowest place in the stream stays, the others count."""
    land(lake.landing, 8, [event("a", item_id="first"), event("a", item_id="second"), event("b")])
    first = lake.compact()
    land(lake.landing, 11, [event("b", item_id="third"), event("c")])
    second = lake.compact()
    assert lake.rows("event_id", "item_id", "sequence") == [
        ("a", "first", "8"),
        ("b", "i1", "10"),
        ("c", "i1", "12"),
    ]
    assert (first["lines"], first["new"], first["duplicates"]) == (3, 2, 1)
    assert (second["lines"], second["new"], second["duplicates"]) == (2, 1, 1)


def test_the_order_of_reading_changes_nothing(lake: Lake, spark: Any, tmp_path: Path) -> None:
    """An earlier arrival that is read later takes the row over, as if it had been read first."""
    other = Lake(spark, tmp_path / "other")
    early, late = [event("a", item_id="first"), event("b")], [event("a", item_id="second"), event("c")]
    land(lake.landing, 9, early)
    lake.compact()
    land(lake.landing, 100, late, shard="shardId-000000000001")
    lake.compact()
    land(other.landing, 100, late, shard="shardId-000000000001")
    other.compact()
    land(other.landing, 9, early)
    other.compact()
    columns = ("event_id", "item_id", "shard", "sequence")
    assert lake.rows(*columns) == other.rows(*columns)
    assert ("a", "first", SHARD, "9") in other.rows(*columns)


def test_a_late_event_goes_to_its_own_day(lake: Lake) -> None:
    """The partition is that of the time that the event says, not of its arrival."""
    land(lake.landing, 1, [event("now"), event("late", NOON - 3 * DAY, received_at=NOON)])
    assert lake.compact()["late"] == 1
    assert [str(row[1]) for row in lake.rows("event_id", "event_date")] == ["2024-10-01", "2024-10-04"]
    partitions = lake.session.sql("SELECT partition.event_date FROM lake.narrows.events.partitions").count()
    assert partitions == 2


def test_only_new_files_are_read(lake: Lake) -> None:
    """The table remembers how far it was read in each shard; without news nothing is written."""
    land(lake.landing, 1, [event("a")])
    lake.compact()
    before = lake.snapshots()
    assert lake.compact() == {"files": 0}
    land(lake.landing, 2, [event("b")])
    land(lake.landing, 1, [event("c")], shard="shardId-000000000001")
    assert lake.compact()["files"] == 2
    assert lake.snapshots()[:-1] == before


def test_reading_everything_again_changes_nothing(lake: Lake) -> None:
    """Lines that were read before are told from a producer's duplicates, and write no snapshot."""
    land(lake.landing, 1, [event("a"), event("a"), event("b"), "broken {"])
    first = lake.compact()
    before, rows = lake.snapshots(), lake.rows("event_id", "sequence")
    again = lake.compact(everything=True)
    assert (first["new"], first["duplicates"], first["again"]) == (2, 1, 0)
    assert (again["new"], again["duplicates"], again["again"]) == (0, 1, 2)
    assert (lake.snapshots(), lake.rows("event_id", "sequence")) == (before, rows)
    assert lake.session.table("lake.narrows.quarantine").count() == 1


def test_lines_that_are_no_events_lie_in_quarantine_with_the_reason(lake: Lake) -> None:
    """Each with file, line and how often it is there; the others are not held up."""
    bad = {
        "not json {": "not a JSON object, or a field has another type than the envelope's",
        json.dumps(
            event("x", user_id=7.5) | {"sent_at": "noon"}
        ): "not a JSON object, or a field has another type than the envelope's",
        json.dumps({"event_type": "click", "sent_at": NOON, "user_id": "ann"}): "event_id is missing",
        json.dumps({"event_id": "y", "sent_at": NOON, "user_id": "ann"}): "event_type is missing",
        json.dumps({"event_id": "y", "event_type": "click", "user_id": "ann"}): "sent_at is missing",
        json.dumps(event("y") | {"sent_at": -1.0}): "sent_at is no moment in epoch seconds",
        json.dumps(event("y", user_id=None)): "user_id and session_id are missing",
    }
    land(lake.landing, 1, [event("good"), *bad, "not json {"])
    assert lake.compact()["malformed"] == 8
    kept = lake.session.table("lake.narrows.quarantine").collect()
    assert sorted(row["reason"] for row in kept) == sorted(bad.values())
    assert {row["line"]: row["times"] for row in kept}["not json {"] == 2
    assert {row["file"] for row in kept} == {f"dt=2024-10-04/{SHARD}-1-9.jsonl.gz"}
    assert lake.rows("event_id") == [("good",)]


def test_a_program_is_marked_on_all_of_its_day_and_stays(lake: Lake) -> None:
    """More than four in one minute: the earlier events of that day as well, also those read before."""
    land(lake.landing, 1, [event("early", NOON - 7200), event("other", user_id="bob"),
                           event("day before", NOON - DAY)])  # fmt: skip
    lake.compact(events_per_minute=4)
    land(lake.landing, 4, [event(f"fast-{place}", NOON + place) for place in range(5)])
    assert lake.compact(events_per_minute=4)["marked"] == 6
    marks = dict(lake.rows("event_id", "marks"))
    assert marks["early"] == marks["fast-0"] == ["bot:rate"]
    assert marks["other"] == marks["day before"] == []


def test_a_copy_under_another_id_is_marked_and_stays(lake: Lake) -> None:
    """The later one of two that say the same at the same moment; what says no moment is no copy."""
    texts = {"texts": {"a": "1", "b": "2"}}
    land(lake.landing, 1, [event("a", **texts), event("unsaid-1", NOON + 9, received_at=NOON + 9)])
    lake.compact()
    swapped = {"texts": {"b": "2", "a": "1"}}
    land(lake.landing, 3, [event("b", **swapped), event("c", texts={"a": "1"}),
                           event("unsaid-2", NOON + 9, received_at=NOON + 9)])  # fmt: skip
    lake.compact()
    marked = {name: marks for name, marks in lake.rows("event_id", "marks") if marks}
    assert marked == {"b": ["duplicate"]}


def test_one_reads_as_of_a_snapshot_and_as_of_a_moment(lake: Lake) -> None:
    """What came later is not there yet."""
    land(lake.landing, 1, [event("a")])
    lake.compact()
    (first,) = lake.snapshots()
    time.sleep(0.05)
    between = datetime.now(UTC)
    land(lake.landing, 2, [event("b")])
    lake.compact()
    assert lake.rows("event_id", as_of=first) == lake.rows("event_id", as_of=between) == [("a",)]
    assert lake.rows("event_id") == [("a",), ("b",)]
    for as_of in (first, between, None):
        assert lake.file_rows("event_id", as_of=as_of) == lake.rows("event_id", as_of=as_of)
    with pytest.raises(ValueError, match="time zone"):
        lake.rows("event_id", as_of=datetime(2026, 1, 1))  # noqa: DTZ001  # that is the mistake


def test_a_table_that_lacks_a_column_gets_it_and_stays_readable(lake: Lake) -> None:
    """As an older release made it: its rows read null there, its snapshots as they were."""
    from glue_jobs.lake import EVENTS, ensure_tables

    columns = [field for field in EVENTS if field.name not in ("marks", "numbers")]
    definition = ", ".join(f"`{one.name}` {one.dataType.simpleString()}" for one in columns)
    lake.session.sql("CREATE NAMESPACE lake.narrows")
    lake.session.sql(
        f"CREATE TABLE lake.narrows.events ({definition}) USING iceberg PARTITIONED BY (event_date)"
    )
    values = {"event_id": "'old'", "time": "1.0", "event_date": "DATE'1970-01-01'"}
    row = ", ".join(
        f"CAST({values.get(one.name, 'NULL')} AS {one.dataType.simpleString()})" for one in columns
    )
    lake.session.sql(f"INSERT INTO lake.narrows.events SELECT {row}")
    (first,) = lake.snapshots()
    ensure_tables(lake.session)
    land(lake.landing, 1, [event("new", numbers={"price": 2.0})])
    lake.compact()
    assert lake.rows("event_id", "numbers") == [("new", {"price": 2.0}), ("old", None)]
    assert lake.rows("event_id", "numbers", as_of=first) == [("old", None)]
    assert lake.file_rows("event_id", "numbers") == [("new", [("price", 2.0)]), ("old", None)]
    assert lake.file_rows("event_id", "numbers", as_of=first) == [("old", None)]


def test_files_with_deletions_are_not_read_as_if_there_were_none(lake: Lake) -> None:
    """No job writes them; who deletes rows by hand so is told what to do instead."""
    from glue_jobs.event_files import lake_files

    land(lake.landing, 1, [event("a"), event("b")])
    lake.compact()
    table = "lake.narrows.events"
    lake.session.sql(f"ALTER TABLE {table} SET TBLPROPERTIES ('write.delete.mode' = 'merge-on-read')")
    lake.session.sql(f"DELETE FROM {table} WHERE event_id = 'a'")
    with pytest.raises(InvalidInput, match=r"content 1.*rewrite_data_files"):
        lake_files(lake.session)


def test_small_files_are_joined_and_old_snapshots_forgotten(lake: Lake) -> None:
    """Eight files of one day become one; the rows are the same, and what is younger stays readable."""
    from pyspark.sql import functions

    from glue_jobs.compact_events import SMALL_FILES, tidy

    land(lake.landing, 0, [event("e0")])
    lake.compact()
    first = lake.session.table("lake.narrows.events").localCheckpoint()
    for place in range(1, SMALL_FILES):
        again = first.withColumn("event_id", functions.lit(f"e{place}"))
        again.writeTo("lake.narrows.events").append()
    rows, files = lake.rows("event_id"), "SELECT * FROM lake.narrows.events.files"
    assert lake.session.sql(files).count() == SMALL_FILES
    tidy(lake.session, datetime.now(UTC), keep_days=1)
    assert lake.session.sql(files).count() == 1
    assert len(lake.snapshots()) == SMALL_FILES + 1
    tidy(lake.session, datetime.now(UTC) + timedelta(days=2), keep_days=1)
    assert (len(lake.snapshots()), lake.rows("event_id")) == (1, rows)


@pytest.mark.parametrize("step", ["_counts", "_set_properties"])
def test_a_run_that_dies_leaves_what_one_whole_run_would(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Before the MERGE, and between it and the note of how far it came: the next run makes it whole."""
    from glue_jobs import compact_events

    def die(*_: object) -> None:
        raise RuntimeError("killed")

    land(lake.landing, 1, [event("a"), event("a"), event("b"), "broken {"])
    with monkeypatch.context() as broken:
        broken.setattr(compact_events, step, die)
        with pytest.raises(RuntimeError, match="killed"):
            lake.compact()
    lake.compact()
    assert lake.rows("event_id", "sequence") == [("a", "1"), ("b", "3")]
    assert lake.session.table("lake.narrows.quarantine").count() == 1
    assert lake.compact() == {"files": 0}
    assert [totals["duplicates"] for totals in lake.totals().values()] == [1]


def test_what_runs_counted_is_kept_by_day(lake: Lake) -> None:
    """Runs of one day add up, and what is a month old is left out."""
    from glue_jobs.compact_events import DAYS_OF_TOTALS

    days = [TODAY + timedelta(days=later) for later in (0, 0, DAYS_OF_TOTALS)]
    kept = []
    for number, day in enumerate(days):
        land(lake.landing, 10 * number + 1, [event(f"e{number}"), event(f"e{number}")])
        lake.compact(today=day)
        kept.append({name: one["duplicates"] for name, one in lake.totals().items()})
    first, later = (day.isoformat() for day in days[1:])
    assert kept == [{first: 1}, {first: 2}, {later: 1}]


@pytest.mark.slow
def test_a_killed_process_leaves_a_lake_that_the_next_one_completes(spark: Any, tmp_path: Path) -> None:
    """SIGKILL while it writes: the table is readable, the next run of the script ends the work."""
    lake = Lake(spark, tmp_path)
    land(lake.landing, 1, [event(f"e{place}", NOON - (place % 30) * DAY) for place in range(3000)])
    command = [sys.executable, str(JOB), "--landing", str(lake.landing), "--lake", str(tmp_path / "lake")]
    command += ["--app-config", str(ROOT / "apps" / "megashop"), "--JOB_NAME", "added-by-glue"]
    process = subprocess.Popen(
        command, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    until = time.monotonic() + 120
    while not list(tmp_path.glob("lake/narrows/events/data/*/*.parquet")) and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["lines"] in (3000, 0)
    assert len(lake.rows("event_id")) == 3000
