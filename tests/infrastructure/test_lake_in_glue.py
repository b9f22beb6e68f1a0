"""The lake in the stacks: one database, jobs that are told of it, roles that reach its tables alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.infrastructure.conftest import Synthesised

ROOT = Path(__file__).parents[2]


def jobs(stage: Synthesised) -> dict[str, dict[str, Any]]:
    """The default arguments of each Glue job, by the name of its script's construct."""
    found = stage.of_type("AWS::Glue::Job", "training")
    return {name.partition("/")[2]: one["Properties"]["DefaultArguments"] for name, one in found.items()}


def test_every_job_is_told_of_the_same_lake(prod: Synthesised) -> None:
    """Iceberg, the folder in the bucket, and the database that the stack has made."""
    (database,) = prod.of_type("AWS::Glue::Database").values()
    name = database["Properties"]["DatabaseInput"]["Name"]
    assert name == "narrows_megashop_prod"
    assert database["DeletionPolicy"] == "Retain"
    assert len(jobs(prod)) >= 4
    for arguments in jobs(prod).values():
        assert arguments["--datalake-formats"] == "iceberg"
        assert arguments["--database"] == name
        assert "/lake/" in json.dumps(arguments["--lake"])


def test_on_this_machine_the_lake_is_a_folder(local: Synthesised) -> None:
    """The same jobs without a catalogue: the local cloud gives them a path."""
    for arguments in jobs(local).values():
        assert arguments["--datalake-formats"] == "iceberg"
        assert "--database" not in arguments


def test_no_role_reaches_other_tables(dev: Synthesised) -> None:
    """Rights on the catalogue name all tables that the jobs know, no others; only compaction writes."""
    jobs_know = set(re.findall(r"`\.(\w+)\"", (ROOT / "glue_jobs" / "lake.py").read_text("utf-8")))
    assert {"events", "items"} < jobs_know
    writers = set()
    for name, policy in dev.of_type("AWS::IAM::Policy", "training").items():
        for statement in policy["Properties"]["PolicyDocument"]["Statement"]:
            actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
            on_tables = [one for one in actions if "Table" in one and one.startswith("glue:")]
            if not on_tables:
                continue
            resources = json.dumps(statement["Resource"])
            assert "*" not in resources
            assert set(re.findall(r"table/\w+/(\w+)", resources)) == jobs_know
            if "glue:UpdateTable" in on_tables:
                writers.add(name.partition("/")[2])
    assert len(writers) == 1
    assert "CompactEvents" in writers.pop()
