"""The documents: what they name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
FOLDERS = {
    *("apps", "benchmarks", "cdk_app", "console", "docs", "glue_jobs", "lambdas", "localcloud", "narrows"),
    *("requirements", "sagemaker_jobs", "stepfunctions", "tests"),
}
NAMED = re.compile(rf"(?<![\w/.-])(?:{'|'.join(FOLDERS)})/[\w./-]*\w")
PLANNED: set[str] = set()
"""Folders that a page names because they do not exist yet."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    """A reader who follows a path finds something there."""
    named = {found.group() for found in NAMED.finditer(page.read_text("utf-8"))}
    assert sorted(path for path in named - PLANNED if not (ROOT / path).exists()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    """Links inside the repository are relative to their page."""
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_tree_of_the_readme_is_the_tree() -> None:
    """What it lists exists; all top folders of code and all modules of the library are listed."""
    tree = (ROOT / "README.md").read_text("utf-8").split("## The tree")[1].split("```")[1]
    tops = re.findall(r"^(\w+)/", tree, re.MULTILINE)
    listed = [f"narrows/{name}" for name in re.findall(r"^  (\S+)", tree, re.MULTILINE)]
    assert [name for name in [*tops, *listed] if not (ROOT / name).exists()] == []
    assert set(tops) == FOLDERS
    modules = {path.name for path in (ROOT / "narrows").iterdir() if path.is_dir() or path.suffix == ".py"}
    told = set(re.findall(r"[\w.]+", tree.replace("/", "")))
    assert modules - told - {"__init__.py", "__pycache__"} == set()


@pytest.mark.parametrize("page", sorted((ROOT / "docs/products").glob("*.md")), ids=lambda page: page.stem)
def test_budget_by_stage_fits(page: Path) -> None:
    """The stages' milliseconds add up to the sum below them, in each column."""
    rows = [
        [cell.strip(" *") for cell in line.strip("|").split("|")]
        for line in page.read_text("utf-8").split("## Budget by stage")[1].split("\n## ")[0].splitlines()
        if line.startswith("|")
    ]
    stages, (*_, total) = rows[2:-1], rows
    for column in range(1, len(total)):
        assert sum(int(stage[column]) for stage in stages) == int(total[column])
