"""`narrows features`, its page, and a feature that is added by one declaration."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from narrows.cli import features as command
from narrows.cli import main
from narrows.cli.console import Console
from narrows.cli.places import Places
from narrows.errors import SettingsError
from narrows.events import Event
from narrows.features.audit import audit, columns, explanation
from narrows.features.reference import computed_kinds, folded_kinds
from narrows.features.registry import FeatureSet
from narrows.features.vectors import VectorSpec
from narrows.settings import load_app

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/features.md"
NEW = """
[[feature]]
name = "category_views_1h"
kind = "recent_count"
scope = "visitor x category"
events = ["view"]
window = "1h"
owner = "storefront"
description = "Views of each category in the last hour"

[[feature]]
name = "category_now"
kind = "affinity"
scope = "visitor x item"
of = "category_views_1h"
item = "category"
owner = "storefront"
description = "The share of the item's category in the last hour's views"

[[feature]]
name = "searches"
kind = "count"
events = ["view"]
where = { surface = "search" }
owner = "search"
description = "Views that came from a search"
"""
NOW = 1_800_000_000.0


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """A repository with one app that a test may change."""
    shutil.copytree(ROOT / "apps/media", tmp_path / "apps/shop")
    app = tmp_path / "apps/shop/app.toml"
    app.write_text(
        app.read_text()
        .replace('name = "media"', 'name = "shop"')
        .replace("impression = {}", "impression = {}\nview = {}")
        .replace('"genres"', '"category"')
    )
    return Places(tmp_path / "home", tmp_path)


def declare(places: Places, text: str) -> None:
    """Add these lines to the app's features."""
    path = places.repository / "apps/shop/features.toml"
    path.write_text(path.read_text() + text)


def asked(places: Places, action: str, name: str = "") -> dict[str, Any]:
    """What the command prints as JSON."""
    options = argparse.Namespace(action=action, app="shop", name=name, json=True)
    return dict(command.run(options, places, Console(json=True)))


class Items:
    """Two items of two categories."""

    def __init__(self) -> None:
        self.columns: dict[str, Any] = {"category": np.asarray([0, 1], np.int32)}

    def take(self, rows: np.ndarray, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        return {name: self.columns[name][rows] for name in names}

    def vocabulary(self, name: str) -> tuple[str, ...]:
        return ("lamps", "tools")


def test_one_declaration_is_all_that_a_new_feature_needs(places: Places) -> None:
    """It folds, is listed, audited and explained, and is a column of the next model."""
    before = VectorSpec.over({}, Items(), FeatureSet(places.app("shop").features)).names
    declare(places, NEW)
    features = FeatureSet(places.app("shop").features)
    events = [
        Event(str(n), "view", NOW - 60 * n, NOW, user_id="u", item_id="i", properties={"category": word})
        for n, word in enumerate(["lamps", "lamps", "lamps", "tools"])
    ]
    values = features.read(features.add_all(features.zero(), events), NOW)
    assert (values["category_views_1h[lamps]"], values["category_views_1h[tools]"]) == (3.0, 1.0)
    assert "category_views_1h" in [one["name"] for one in asked(places, "list")["features"]]
    line = next(one for one in asked(places, "audit")["features"] if one["name"] == "category_now")
    assert (line["lineage"], line["class"]) == ("category_views_1h", "internal")
    assert line["sources"] == "catalogue.category; view: category"
    told = asked(places, "explain", "category_views_1h")
    assert (told["parameters"], told["read_by"], told["columns"]) == ({"window": "1h"}, ["category_now"], [])
    after = VectorSpec.over({}, Items(), features).names
    assert set(after) - set(before) == {
        *("cross.category_now", "cross.category_now_missing"),
        *("visitor.searches", "visitor.searches_missing"),
    }


@pytest.mark.parametrize(
    ("declaration", "reason"),
    [
        (
            'name = "women"\nkind = "count"\nevents = ["view"]\nwhere = { gender = "f" }',
            "'gender' is a sensitive attribute",
        ),
        (
            'name = "d"\nkind = "decayed_sum"\nevents = ["view"]\nvalue = "seller_price"\nhalf_life = "1d"',
            "it may only be aggregated by a group",
        ),
        ('name = "v"\nkind = "recnt_count"\nevents = ["view"]', "did you mean 'recent_count'"),
    ],
)
def test_what_may_not_be_built_fails_with_the_reason(places: Places, declaration: str, reason: str) -> None:
    """The command says the key and why; nothing is printed of the other features."""
    declare(places, f'\n[[feature]]\n{declaration}\nowner = "o"\ndescription = "d"\n')
    with pytest.raises(SettingsError, match=reason) as caught:
        asked(places, "audit")
    assert all(problem.file == "features.toml" for problem in caught.value.problems)


def test_a_wrong_file_ends_with_exit_code_2(
    places: Places, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unknown kind, duplicate name, cycle and bad half-life come in one answer, also as JSON."""
    declare(
        places,
        """
[[feature]]
name = "watches"
kind = "coutn"
events = ["watch"]
owner = "o"
description = "d"

[[feature]]
name = "a"
kind = "is_known"
scope = "request"
of = "a"
owner = "o"
description = "d"

[[feature]]
name = "b"
kind = "decayed_count"
events = ["watch"]
half_life = "-1d"
owner = "o"
description = "d"
""",
    )
    monkeypatch.setattr("narrows.cli.find_places", lambda _: places)
    assert main(["features", "audit", "--app", "shop", "--json"]) == 2
    told = json.loads(capsys.readouterr().out)["error"]
    for key in ("watches.name", "watches.kind", "a.of", "b.half_life"):
        assert f"features.toml: {key} = " in told


def test_the_audit_of_adpilot_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Every feature has its line with owner, sources, class, freshness, lineage, scope, kind and default."""
    assert main(["features", "audit", "--app", "adpilot"]) == 0
    lines = capsys.readouterr().out.splitlines()
    app = load_app(ROOT / "apps/adpilot")
    assert lines[0].split() == list(command.HEADS)
    assert len(lines) == len(app.features) + 2
    bid = next(line for line in lines if line.startswith("industry_bid"))
    assert bid.split()[1:] == [
        *("auctions", "bid:", "bid_price,", "industry,", "user_id"),
        *("aggregate_only", "nightly", "by:industry", "value_statistics", "0"),
    ]


def test_an_unknown_feature_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    """The message names what there is."""
    assert main(["features", "explain", "viws", "--app", "megashop"]) == 2
    assert "did you mean 'views'?" in capsys.readouterr().err


def test_every_feature_can_be_explained_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """Of both apps, without a blank where something is known."""
    for app in ("megashop", "adpilot"):
        declarations = load_app(ROOT / "apps" / app).features
        for line in audit(declarations):
            told = explanation(line.name, declarations)
            assert all(told[key] for key in ("kind_does", "definition", "owner"))
            assert line.sources, line.name
    assert main(["features", "explain", "category_affinity", "--app", "megashop"]) == 0
    assert re.search(r"columns +cross.category_affinity; ", capsys.readouterr().out)


def test_columns_are_those_of_the_vectors() -> None:
    """What the explanation calls a column of the model is one, and every declared column is explained."""
    features = FeatureSet(load_app(ROOT / "apps/megashop").features)
    items = Items()
    catalogue = ("price", "price_position", "created_at", "brand", "margin", "stock")
    items.columns = items.columns | {name: np.zeros(2, np.float32) for name in catalogue}
    nightly = tuple(
        name.removeprefix("item.")
        for one in features.declarations
        if one.scope == "item" and not one.parameters.get("column")
        for name in columns(one)
    )
    spec = VectorSpec({}).with_features(features, nightly, items.columns)
    declared = {name for one in features.declarations for name in columns(one)}
    assert declared == set(spec.names) - set(VectorSpec({}).names)


@pytest.mark.parametrize(("part", "table"), [("folded", folded_kinds()), ("computed", computed_kinds())])
def test_the_page_has_the_kinds_as_they_are(part: str, table: str) -> None:
    """The tables between the markers are what the code says; the failure shows what to paste."""
    text = PAGE.read_text("utf-8")
    found = re.search(rf"<!-- {part} kinds -->\n(.*?)\n?<!-- end -->", text, re.DOTALL)
    assert found is not None
    assert found[1] == table


def test_the_page_names_every_key_of_a_declaration() -> None:
    """Keys that the reader of the file knows are explained."""
    text = PAGE.read_text("utf-8").split("## A declaration")[1].split("## Scopes")[0]
    for key in ("name", "kind", "scope", "events", "where", "value", "default", "owner", "freshness", "unit"):
        assert f"`{key}`" in text


def test_the_declaration_on_the_page_is_right(places: Places) -> None:
    """The example can be pasted into a file."""
    example = PAGE.read_text("utf-8").split("```toml")[1].split("```")[0]
    declare(places, example)
    assert "category_views_1h" in [one.name for one in places.app("shop").features]
