"""Settings: the shipped apps load, and every mistake is reported at once with its remedy."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from narrows.adapters.opensearch import mapping
from narrows.errors import SettingsError
from narrows.index_settings import IndexSettings
from narrows.settings import environment, load_app
from narrows.toml_reading import duration_s

APPS = Path(__file__).parents[2] / "apps"


@pytest.fixture
def app_dir(tmp_path: Path) -> Path:
    """A copy of megashop that a test may spoil."""
    return Path(shutil.copytree(APPS / "megashop", tmp_path / "megashop"))


def spoil(app_dir: Path, file: str, old: str, new: str) -> None:
    """Replace the first `old` in one of the app's files."""
    text = (app_dir / file).read_text()
    assert old in text
    (app_dir / file).write_text(text.replace(old, new, 1))


def problems(app_dir: Path) -> list[str]:
    """What is wrong with the app, a line each."""
    with pytest.raises(SettingsError) as caught:
        load_app(app_dir)
    return [str(one) for one in caught.value.problems]


def test_megashop_is_as_its_files_say() -> None:
    """The shop's surfaces, sources, rules and features arrive typed, durations in seconds."""
    app = load_app(APPS / "megashop")
    assert list(app.surfaces) == ["homepage", "product", "cart"]
    assert [app.surfaces[name].seed for name in app.surfaces] == ["history", "item", "cart"]
    homepage = app.surfaces["homepage"]
    assert [quota.name for quota in homepage.sources] == ["als", "covisitation", "popular", "fresh"]
    assert homepage.diversity.lambda_ == 0.85
    assert homepage.diversity.caps == {"category": 6, "brand": 6}
    assert homepage.exclude_seen is True
    assert [(rule.name, rule.after, rule.max_age_s) for rule in app.rules] == [
        ("blocked", "closed", None),
        ("stock", "closed", 900.0),
        ("region", "closed", None),
        ("do_not_show", "open", None),
    ]
    history = next(one for one in app.features if one.name == "history")
    assert (history.kind, history.parameters) == ("last_n", {"keep": 50})
    rate = next(one for one in app.features if one.name == "click_rate")
    assert rate.parameters["per"] == ("impression",)
    assert rate.parameters["half_life_s"] == 30 * 86_400.0
    assert app.events["purchase"].label == 6.0
    assert app.freshness.policy_poll_s == 2.0
    assert len(app.static_items) == len(set(app.static_items)) >= 50


def test_places_for_new_items_are_fewer_than_the_slate_has(app_dir: Path) -> None:
    """Every mistake in the setting has its remedy; without it nothing is explored."""
    surfaces = load_app(app_dir).surfaces
    assert (surfaces["homepage"].exploration.slots, surfaces["cart"].exploration.slots) == (1, 0)
    right = 'exploration = { method = "softmax", slots = 1, new_for = "7d" }'
    wrong = 'exploration = { method = "bandit", slots = 20, new_for = "soon", temperature = 0 }'
    spoil(app_dir, "app.toml", right, wrong)
    path = "app.toml: surfaces.homepage.exploration"
    assert problems(app_dir) == [
        f"{path}.method = 'bandit': choose one of none, softmax",
        f"{path}.slots = 20: write a whole number of 1 to 19",
        f"{path}.new_for = 'soon': write a duration such as \"15m\": a number with ms, s, m, h or d",
        f"{path}.temperature = 0: write a number of 0.01 or more",
    ]


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("{ slots = 2 }", "method = 'none': write method = \"softmax\", or leave exploration out"),
        (
            '{ method = "softmax", slots = 0 }',
            "slots = 0: write a whole number of 1 to 19",
        ),
    ],
)
def test_exploration_is_never_off_without_a_word(app_dir: Path, setting: str, problem: str) -> None:
    """Half a setting is a mistake."""
    right = 'exploration = { method = "softmax", slots = 1, new_for = "7d" }'
    spoil(app_dir, "app.toml", right, f"exploration = {setting}")
    assert problems(app_dir) == [f"app.toml: surfaces.homepage.exploration.{problem}"]


def test_exploration_wants_a_time_of_creation(app_dir: Path) -> None:
    """Without the column nothing would ever be new."""
    spoil(app_dir, "app.toml", 'time = "created_at"', "")
    (problem,) = problems(app_dir)
    assert problem.startswith(
        "app.toml: surfaces.homepage.exploration = 1: name the column of creation times"
    )


def test_media_needs_no_price_and_only_watch_events() -> None:
    """The media service has genres, no price and no static list, and its `watch` has a strength."""
    app = load_app(APPS / "media")
    assert (app.catalogue.categories, app.catalogue.price) == ("genres", "")
    assert (app.events["watch"].value, app.events["watch"].matures_after_s) == ("fraction", 21_600.0)
    assert app.static_items == ()
    assert any(one.kind == "last_n" and "watch" in one.events for one in app.features)


def test_adpilot_knows_an_account_from_its_first_day() -> None:
    """Signup facts, integrations, spend, results; dismissals close for good; a list serves."""
    app = load_app(APPS / "adpilot")
    assert list(app.surfaces) == ["actions", "segments", "tips"]
    kinds = {one.name: one.kind for one in app.features}
    assert kinds["industry"] == kinds["company_size"] == kinds["google_ads_state"] == "last_value"
    assert kinds["spend_30d"] == kinds["conversions_30d"] == "decayed_sum"
    assert next(rule.after for rule in app.rules if rule.name == "do_not_show") == "closed"
    assert len(app.static_items) >= 10
    bid = next(one for one in app.features if one.name == "industry_bid")
    assert [(one.name, one.sensitivity, one.owner) for one in bid.sources] == [
        ("bid_price", "aggregate_only", "auctions"),
        ("industry", "internal", "growth"),
    ]


def test_a_source_of_an_unknown_class_or_key_is_named(app_dir: Path) -> None:
    """What features are made from is judged with the rest of the file."""
    spoil(app_dir, "features.toml", 'class = "public"', 'class = "open"')
    spoil(app_dir, "features.toml", 'owner = "catalogue"', 'oner = "catalogue"')
    assert problems(app_dir) == [
        "features.toml: source.category.class = 'open': choose one of aggregate_only, internal, public, "
        "sensitive",
        "features.toml: source.category.oner = 'catalogue': unknown key; did you mean 'owner'? choose one of "
        "class, description, owner",
    ]


def test_a_bad_half_life_is_told_once_at_the_feature(app_dir: Path) -> None:
    """The feature's name and key, and what to write."""
    spoil(app_dir, "features.toml", 'half_life = "90d"', 'half_life = "ninety days"')
    spoil(app_dir, "features.toml", 'half_life = "1d"', 'half_life = "0s"')
    remedy = 'give a duration from "1s" to "36600d", as "7d"'
    assert problems(app_dir) == [
        f"features.toml: spend_90d.half_life = 'ninety days': {remedy}",
        f"features.toml: activity_1d.half_life = 0.0: {remedy}",
    ]


def test_every_mistake_of_every_file_is_reported_at_once(app_dir: Path) -> None:
    """One run names them all: file, path, value and what to write instead."""
    spoil(app_dir, "app.toml", "quota = 300", "quota = 0")
    spoil(app_dir, "app.toml", "share = 0.65", "share = 1.5")
    spoil(app_dir, "app.toml", '"covisitation", quota', '"covisitaton", quota')
    spoil(app_dir, "app.toml", "rank_at_most", "rank_at_mots")
    spoil(app_dir, "app.toml", '"static"]', '"statik"]')
    spoil(app_dir, "app.toml", 'policy_poll = "2s"', 'policy_poll = "2 seconds"')
    spoil(app_dir, "app.toml", "margin = 0.0", 'margin = "none"')
    spoil(app_dir, "features.toml", '"decayed_count"', '"decaying_count"')
    spoil(app_dir, "features.toml", 'events = ["view"]', 'events = ["viewed"]')
    spoil(app_dir, "rules.toml", 'after = "closed"', 'after = "shut"')
    spoil(app_dir, "reasons.toml", "fresh =", "frsh =")
    (app_dir / "static.json").write_text('["a", "a"]')
    text = "\n".join(problems(app_dir))
    for expected in (
        "app.toml: surfaces.homepage.sources[0].quota = 0: write a whole number of 1 or more",
        "app.toml: surfaces.homepage.sources[0].share = 1.5: write a number above 0, and at most 1",
        "app.toml: surfaces.homepage.sources[1].name = 'covisitaton': did you mean 'covisitation'?",
        "app.toml: surfaces.homepage.rank_at_mots = 300: unknown key; did you mean 'rank_at_most'?",
        "app.toml: surfaces.homepage.ladder = 'statik': did you mean 'static'?",
        "app.toml: freshness.policy_poll = '2 seconds': write a duration",
        "app.toml: training.gate.margin = 'none': write a number of -1 to 1",
        "features.toml: activity_1d.kind = 'decaying_count': did you mean 'decayed_count'?",
        "features.toml: feature[0].events = 'viewed': did you mean 'view'?",
        "rules.toml: blocked.after = 'shut': choose one of closed, open",
        "reasons.toml: frsh = 'New in': unknown key; did you mean 'fresh'?",
        "reasons.toml: fresh = None: it is missing; write it",
        "static.json: file = 'a': give every item once",
    ):
        assert expected in text
    assert text.count("\n") + 1 == 13


def test_a_surface_twice_is_named(app_dir: Path) -> None:
    """The same table twice is not TOML, and two spellings of one surface are one surface too many."""
    (app_dir / "app.toml").write_text(
        (app_dir / "app.toml").read_text() + "\n[surfaces.homepage]\nlimit = 1\n"
    )
    assert any(("surfaces" in one and "twice" in one) or "valid TOML" in one for one in problems(app_dir))
    shutil.copy(APPS / "megashop" / "app.toml", app_dir / "app.toml")
    spoil(app_dir, "app.toml", "[surfaces.cart]", "[surfaces.home_page]")
    spoil(app_dir, "app.toml", "[surfaces.product]", "[surfaces.home-page]")
    assert (
        "app.toml: surfaces.home_page = 'home_page': it is the same surface as 'home-page'; keep one"
        in problems(app_dir)
    )


def test_a_source_asked_twice_is_named(app_dir: Path) -> None:
    """Two quotas for one source on one surface cannot both hold."""
    spoil(app_dir, "app.toml", '"popular", ', '"als", ')
    assert problems(app_dir) == [
        "app.toml: surfaces.homepage.sources[2].name = 'als': a surface asks a source once; give it one quota"
    ]


def test_a_limit_is_between_1_and_100_and_never_above_what_is_ranked(app_dir: Path) -> None:
    """A slate of 200, and one that is longer than what is ranked, are refused."""
    spoil(app_dir, "app.toml", "limit = 20", "limit = 200")
    spoil(app_dir, "app.toml", "rank_at_most = 200", "rank_at_most = 4")
    assert problems(app_dir) == [
        "app.toml: surfaces.homepage.limit = 200: write a whole number of 1 to 100",
        "app.toml: surfaces.cart.rank_at_most = 4: write a whole number of 8 or more",
    ]


def test_a_folder_that_is_no_app_says_what_to_create(tmp_path: Path) -> None:
    """All five missing files are named, and nothing else fails on the way."""
    text = "\n".join(problems(tmp_path / "nothing"))
    for file in ("app.toml", "features.toml", "rules.toml", "reasons.toml", "static.json"):
        assert f"{file}: file" in text


@pytest.mark.parametrize("content", ["", "surfaces = 3", "[surfaces]\nfeed = 1", "\x00", "name = [1"])
def test_no_content_crashes_the_reader(app_dir: Path, content: str) -> None:
    """Whatever stands in app.toml, the answer is a list of problems."""
    (app_dir / "app.toml").write_text(content)
    assert problems(app_dir)


def test_two_ages_for_one_rule_are_refused(app_dir: Path) -> None:
    """A rule's max_age stands in rules.toml or in app.toml, not in both."""
    spoil(app_dir, "app.toml", 'policy_poll = "2s"', 'policy_poll = "2s"\nmax_age = { stock = "5m" }')
    assert problems(app_dir) == [
        "rules.toml: stock.max_age = '15m': app.toml's freshness.max_age has it too; keep one"
    ]
    spoil(app_dir, "rules.toml", 'max_age = "15m"\n', "")
    assert next(rule.max_age_s for rule in load_app(app_dir).rules if rule.name == "stock") == 300.0


def test_known_sources_are_an_argument(app_dir: Path) -> None:
    """An app may only ask the sources that the caller has."""
    with pytest.raises(SettingsError, match="'fresh': choose one of als, covisitation, popular"):
        load_app(app_dir, sources=("als", "covisitation", "popular"))


def test_static_json_must_be_a_list_of_ids(app_dir: Path) -> None:
    """Anything but a list of strings is refused."""
    (app_dir / "static.json").write_text(json.dumps({"items": []}))
    assert problems(app_dir) == ["static.json: file = {'items': []}: write a JSON list of item ids"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7d", 604_800.0), ("6h", 21_600.0), ("60s", 60.0), ("15m", 900.0), ("250ms", 0.25), ("1.5h", 5400.0)],
)
def test_durations(text: str, seconds: float) -> None:
    """A number and a unit."""
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["7", "d", "7 d", "-1s", "1w", 60, None, "1e3s"])
def test_what_is_no_duration(text: object) -> None:
    """No unit, no number, a sign, a space or another type."""
    assert duration_s(text) is None


@dataclass(frozen=True)
class Environment:
    """What a function needs."""

    state_table: str
    deadline_ms: int
    share: float
    home: Path
    verbose: bool = False


def test_environment_reads_every_type() -> None:
    """Variables become a typed frozen object; what has a default may be missing."""
    variables = {"STATE_TABLE": "state", "DEADLINE_MS": "80", "SHARE": "0.5", "HOME": "/srv", "OTHER": "x"}
    assert environment(Environment, variables) == Environment("state", 80, 0.5, Path("/srv"))
    assert environment(Environment, {**variables, "VERBOSE": "true"}).verbose is True


def test_environment_reports_everything_together() -> None:
    """Missing, empty and malformed variables come in one error, and no name of a resource is made up."""
    with pytest.raises(SettingsError) as caught:
        environment(
            Environment, {"STATE_TABLE": " ", "DEADLINE_MS": "fast", "SHARE": "half", "VERBOSE": "yes?"}
        )
    assert [(one.path, one.value) for one in caught.value.problems] == [
        ("STATE_TABLE", None),
        ("DEADLINE_MS", "fast"),
        ("SHARE", "half"),
        ("HOME", None),
        ("VERBOSE", "yes?"),
    ]


def test_what_is_too_fast_for_a_person_is_declared(app_dir: Path) -> None:
    """The number is the app's; without it there is a number all the same, and nonsense is refused by name."""
    assert load_app(APPS / "megashop").bots.events_per_minute == 90.0
    assert load_app(APPS / "media").bots.events_per_minute == 120.0
    spoil(app_dir, "app.toml", "events_per_minute = 90", "events_per_minute = 0")
    assert problems(app_dir) == ["app.toml: bots.events_per_minute = 0: write a number of 1 or more"]
    spoil(app_dir, "app.toml", "events_per_minute = 0", "events_per_minute = inf")
    assert problems(app_dir) == ["app.toml: bots.events_per_minute = inf: write a finite number of 1 or more"]


def test_how_vectors_lie_in_opensearch_is_declared(app_dir: Path) -> None:
    """Engine, space, numbers and the graph's parameters are the app's; without them there are defaults."""
    assert load_app(app_dir).index == IndexSettings(filters=("region", "category"))
    assert load_app(APPS / "media").index.filters == ("category",)
    assert load_app(APPS / "shopnow").index.filters == ("region", "category", "seller")
    written = (
        'name = "megashop"\n[index]\nengine = "faiss"\nspace = "innerproduct"\nnumbers = "fp16"\nm = 24\n'
        'ef_construction = 256\nef_search = 400\nshards = 6\nfilters = ["region"]\n'
    )
    spoil(app_dir, "app.toml", 'name = "megashop"\n', written)
    settings = load_app(app_dir).index
    assert settings == IndexSettings("faiss", "innerproduct", "fp16", 24, 256, 400, 6, 1, ("region",))
    assert settings.on("lucene").numbers == "float"


@pytest.mark.parametrize(
    ("written", "engine", "data_type", "encoder"),
    [
        ('numbers = "byte"', "faiss", "byte", None),
        ('numbers = "byte"\nengine = "lucene"', "lucene", "byte", None),
        ('numbers = "fp16"', "faiss", "float", {"name": "sq", "parameters": {"type": "fp16"}}),
        ('numbers = "float"', "faiss", "float", None),
    ],
)
def test_what_a_vector_is_stored_as_comes_from_the_file(
    app_dir: Path, written: str, engine: str, data_type: str, encoder: object
) -> None:
    """From the text of app.toml to the mapping that an index is made with."""
    spoil(app_dir, "app.toml", 'name = "megashop"\n', f'name = "megashop"\n[index]\n{written}\n')
    vector = mapping(load_app(app_dir).index, 64, {})["properties"]["vector"]
    assert (vector["data_type"], vector["method"]["engine"]) == (data_type, engine)
    assert vector["method"]["parameters"].get("encoder") == encoder


def test_what_no_engine_can_do_is_refused(app_dir: Path) -> None:
    """Half precision in lucene, another measure, a filter that no catalogue fills, or not this one."""
    written = (
        'name = "megashop"\n[index]\nengine = "lucene"\nspace = "l2"\nnumbers = "fp16"\nm = 1\n'
        'filters = ["sellers", "region", "seller"]\n'
    )
    spoil(app_dir, "app.toml", 'name = "megashop"\n', written)
    told = "\n".join(problems(app_dir))
    for expected in (
        "index.space = 'l2': choose one of cosinesimil, innerproduct",
        "index.m = 1: write a whole number of 2 to 100",
        "index.filters = 'sellers': did you mean 'seller'? choose one of category, region, seller",
        "index.filters = 'seller': nothing fills it: name the column in [catalogue] seller, or leave",
        "index.numbers = 'fp16': engine lucene has float and byte",
    ):
        assert expected in told
