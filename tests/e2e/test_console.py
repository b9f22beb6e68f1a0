"""The page in a real browser: every element from a stand-in's known answers, then the local cloud itself."""

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.e2e.stand_in_api import CATALOGUE, StandIn, stand_in_api

sync_api = pytest.importorskip("playwright.sync_api", reason="the page is tested with Playwright")
Browser, Page, expect = sync_api.Browser, sync_api.Page, sync_api.expect

pytestmark = pytest.mark.browser

CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
A_PERSONS = (
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36"
)
"""What a browser with a window says of itself; the events of one without are marked as a program's."""
TITLE = {item["item_id"]: item["title"] for item in CATALOGUE}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium; missing, it is a skip on a developer's machine and an error in CI."""
    executable = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if executable is None:
        advice = "Chromium is not installed; on Debian: apt-get install chromium"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(advice)
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def api() -> Iterator[StandIn]:
    """A fresh stand-in API that also serves the page."""
    with stand_in_api() as running:
        yield running


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of a new visitor; a script's error or a request to another host fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, user_agent=A_PERSONS)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: errors.append(request.url) if "127.0.0.1" not in request.url else None)
    yield page
    context.close()
    assert errors == []


@pytest.fixture
def opened(page: Page, api: StandIn) -> Page:
    """The page after its first slate."""
    page.goto(api.url)
    expect(page.locator(".card")).to_have_count(12)
    return page


def slate(page: Page) -> list[str]:
    """The ids on the page, in order."""
    return page.locator(".card").evaluate_all("cards => cards.map(card => card.dataset.itemId)")


def pairs(page: Page, list_id: str) -> dict[str, str]:
    """A definition list of the page as a mapping."""
    terms = page.locator(f"#{list_id} dt").all_text_contents()
    return dict(zip(terms, page.locator(f"#{list_id} dd").all_text_contents(), strict=True))


def test_first_slate_is_drawn_item_by_item(opened: Page) -> None:
    """A card says position, title, category, brand, price, reason, id, score and sources."""
    card = opened.locator(".card").first
    assert slate(opened) == [f"i{number:02d}" for number in range(1, 13)]
    assert card.locator(".position").inner_text() == "1"
    assert card.locator(".title").inner_text() == "Enamel kettle, 1.5 litres"
    assert card.locator(".about > span").all_inner_texts() == ["Kitchen", "Halden", "39.00"]
    assert card.locator(".reason").inner_text() == "Popular now"
    assert card.locator(".made > span").all_inner_texts() == ["i01", "score 0.990", "from als, popular"]
    assert opened.locator("#change").inner_text() == "12 items."


def test_answer_is_accounted_for(opened: Page) -> None:
    """Rung, stage times, versions, the empty history and the health line come from the answer as it was."""
    assert opened.locator("#ladder .here").all_inner_texts() == ["Full"]
    assert opened.locator("#rung-words").inner_text().startswith("Candidates from every source")
    assert opened.locator("#answered").inner_text().startswith("Full, ")
    stages = pairs(opened, "stages")
    assert list(stages) == [
        *("visitor", "retrieve", "als", "popular", "rank", "rerank", "gate", "total", "round trip")
    ]
    assert (stages["retrieve"], stages["als"], stages["gate"]) == ("11.6 ms", "11.1 ms", "0.2 ms")
    assert pairs(opened, "ids") == {
        "recommendation": "r-0001",
        "model": "v20261120-0310",
        "policy": "41",
        "experiment": "none",
    }
    assert opened.locator("#history-empty").is_visible()
    assert opened.locator("#degraded").is_hidden()
    assert opened.locator("#health-text").inner_text() == "model v20261120-0310"
    assert opened.locator("#app-name").inner_text() == "megashop"


def test_request_is_what_the_form_says(opened: Page, api: StandIn) -> None:
    """An anonymous visitor is a session id that the page made; a user is the id that was typed."""
    session = opened.get_by_label("Session id").input_value()
    context = {"device": "desktop", "location": "US"}
    first = {"surface": "homepage", "limit": 12, "session_id": session, "context": context, "explain": True}
    assert api.requests == [first]
    opened.get_by_text("User", exact=True).click()
    opened.get_by_label("User id").fill("ada")
    opened.get_by_label("Limit").fill("5")
    opened.get_by_label("Country").fill("DE")
    opened.get_by_role("button", name="Recommend").click()
    expect(opened.locator(".card")).to_have_count(5)
    context["location"] = "DE"
    last = {"surface": "homepage", "limit": 5, "user_id": "ada", "context": context, "explain": True}
    assert api.requests[-1] == last
    assert "user=ada" in opened.url
    known = opened.locator("#known-users option").evaluate_all("all => all.map(one => one.value)")
    assert known[0] == "ada"


def test_click_is_sent_and_the_next_slate_reacts(opened: Page, api: StandIn) -> None:
    """One click moves its category up; the page sends the event and says what changed, and after how long."""
    opened.locator('[data-item-id="i05"] button').click()
    expect(opened.locator("#change")).to_contain_text("The slate reacted to Cast-iron pan, 26 cm after")
    assert slate(opened)[:5] == ["i01", "i08", "i12", "i17", "i02"]
    expect(opened.locator("#change")).to_contain_text("1 new, 10 moved, 1 gone, 1 in place.")
    assert opened.locator("#gone").inner_text().strip() == "Gone: Cast-iron pan, 26 cm"
    assert opened.locator(".card.added").evaluate_all("all => all.map(one => one.dataset.itemId)") == ["i17"]
    assert opened.locator('[data-item-id="i17"] .change').inner_text() == "new"
    assert opened.locator('[data-item-id="i12"] .change').inner_text().startswith("▲ 9")
    assert opened.locator('[data-item-id="i02"] .change').inner_text().startswith("▼ 3")
    history = opened.locator("#history li")
    expect(history).to_have_count(1)
    assert history.first.locator("span").all_inner_texts() == ["Cast-iron pan, 26 cm", "click"]
    (event,) = api.events
    assert (event["event_type"], event["item_id"], event["position"]) == ("click", "i05", 5)
    assert (event["recommendation_id"], event["surface"]) == ("r-0001", "homepage")
    assert event["session_id"] == opened.get_by_label("Session id").input_value()


def test_click_that_never_arrives_is_told(opened: Page, api: StandIn) -> None:
    """After ten seconds without a reaction the page says what was accepted, and where to look."""
    api.fold_seconds = 3600.0
    opened.locator('[data-item-id="i05"] button').click()
    accepted = (
        "The click on Cast-iron pan, 26 cm was accepted, but after 10 s it is not in the visitor's history."
    )
    expect(opened.locator("#change")).to_contain_text(accepted, timeout=15_000)
    assert opened.locator("#cards").get_attribute("aria-busy") == "false"


def test_product_surface_takes_the_item_clicked_last(opened: Page, api: StandIn) -> None:
    """On the product surface the seed is a field, filled with the item that was clicked last."""
    opened.locator('[data-item-id="i03"] button').click()
    expect(opened.locator("#change")).to_contain_text("The slate reacted")
    opened.get_by_label("Surface").select_option("product")
    expect(opened.get_by_label("Item on the page")).to_have_value("i03")
    expect(opened.locator("#change")).to_have_text("12 items.")
    assert (api.requests[-1]["surface"], api.requests[-1]["item_ids"]) == ("product", ["i03"])
    opened.get_by_label("Surface").select_option("cart")
    expect(opened.get_by_label("Items in the cart")).to_have_value("i03, i07")


def test_refusal_names_field_value_and_remedy(opened: Page) -> None:
    """A refused request keeps the old slate, says so, and marks the input that was wrong."""
    opened.get_by_label("Limit").fill("101")
    opened.get_by_role("button", name="Recommend").click()
    error = opened.get_by_role("alert")
    expect(error).to_be_visible()
    assert opened.locator("#error-title").inner_text() == "The API refused limit."
    assert pairs(opened, "error-facts") == {
        "field": "limit",
        "value": "101",
        "remedy": "send an integer from 1 to 100",
    }
    assert opened.get_by_label("Limit").get_attribute("aria-invalid") == "true"
    assert (
        opened.locator("#change").inner_text()
        == "The slate below is the answer to the request before this one."
    )
    opened.get_by_label("Limit").fill("3")
    opened.get_by_role("button", name="Recommend").click()
    expect(error).to_be_hidden()
    assert opened.get_by_label("Limit").get_attribute("aria-invalid") is None


def test_degraded_answer_is_named(page: Page, api: StandIn) -> None:
    """A lower rung is marked and told in plain words, with the reason of each stage that failed."""
    api.rung, api.degraded = "in_process", {"ranker": "no model file"}
    page.goto(api.url)
    expect(page.locator(".card")).to_have_count(12)
    assert page.locator("#ladder .here").all_inner_texts() == ["In process"]
    assert page.locator("#rung-words").inner_text().startswith("No trained ranker is loaded")
    assert pairs(page, "degraded-list") == {"ranker": "no model file"}


@pytest.mark.parametrize(
    "rung", ["full", "remembered", "in_process", "last_slate", "segment", "static", "none_eligible"]
)
def test_every_rung_has_plain_words(page: Page, api: StandIn, rung: str) -> None:
    """Each rung of the ladder is marked and explained."""
    api.rung = rung
    page.goto(api.url)
    expect(page.locator("#ladder .here")).to_have_count(1)
    assert "does not know" not in page.locator("#rung-words").inner_text()


def test_page_works_by_keyboard(opened: Page, api: StandIn) -> None:
    """A card is reached and clicked without a mouse, and the focus stays in the slate."""
    opened.locator('[data-item-id="i02"] button').focus()
    opened.keyboard.press("Tab")
    opened.keyboard.press("Enter")
    expect(opened.locator("#change")).to_contain_text("The slate reacted to Desk lamp with dimmer")
    assert [event["item_id"] for event in api.events] == ["i03"]


@pytest.mark.parametrize("width", [380, 768, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_its_window(browser: Browser, api: StandIn, width: int, scheme: str) -> None:
    """Nothing is wider than the window, and text stands out from its ground by 4.5 to 1 or more."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(api.url)
    expect(page.locator(".card")).to_have_count(12)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(LOWEST_CONTRAST) >= 4.5
    page.close()


def test_api_that_does_not_answer_is_told_with_a_remedy(opened: Page) -> None:
    """Without an API the page says what to start, and its health line turns to the same words."""
    opened.route("**/api/**", lambda route: route.abort())
    opened.get_by_role("button", name="Recommend").click()
    expect(opened.locator("#error-title")).to_have_text("The API cannot be reached.")
    assert pairs(opened, "error-facts")["remedy"].startswith("Check that the local cloud is running")
    assert opened.locator(".card").count() == 12


def test_every_input_has_a_name(opened: Page) -> None:
    """Assistive technology can name each control, and the change of the slate is announced."""
    controls = "select, input, button"
    names = opened.locator(controls).evaluate_all(
        "all => all.map(one => one.labels?.[0]?.innerText ?? one.innerText)"
    )
    assert all(names)
    assert opened.locator("#announcement").get_attribute("aria-live") == "polite"


@pytest.mark.local
def test_page_of_the_local_cloud_reacts_to_three_clicks(page: Page, request: pytest.FixtureRequest) -> None:
    """Anonymous on the homepage: three clicks fill the history and change the slate, through the streams."""
    cloud = request.getfixturevalue("cloud")  # not started where the browser is missing
    page.goto(cloud.page)
    page.get_by_label("Surface").select_option("homepage")
    expect(page.locator(".card")).to_have_count(12)
    until_full(page)
    before, clicked = slate(page), []
    for _ in range(3):
        item_id = next(one for one in slate(page)[4:] if one not in clicked)
        clicked.append(item_id)
        page.locator(f'[data-item-id="{item_id}"] button').click()
        expect(page.locator("#change")).to_contain_text(f"{item_id} ", timeout=15_000)
        expect(page.locator("#cards")).to_have_attribute("aria-busy", "false", timeout=15_000)
    until_full(page)
    history = page.locator("#history .what").all_inner_texts()
    assert history == clicked[::-1]
    assert slate(page) != before
    assert pairs(page, "ids")["model"] == cloud.call("/api/health")[1]["model_version"]
    assert page.locator("#app-name").inner_text() == "megashop"


def until_full(page: Page) -> None:
    """Ask until the first rung answers: on a busy machine some requests miss the surface's deadline."""
    for _ in range(40):
        if page.locator("#ladder .here").all_inner_texts() == ["Full"]:
            return
        page.get_by_role("button", name="Recommend").click()
        page.wait_for_timeout(250)
    raise AssertionError(page.locator("#ladder .here").all_inner_texts())


LOWEST_CONTRAST = """() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = channels(getComputedStyle(at).backgroundColor);
      if ((color[3] ?? 1) === 1) return color;
    }
    return [255, 255, 255];
  };
  const contrast = (element) => {
    const [text, behind] = [light(channels(getComputedStyle(element).color)), light(ground(element))];
    return (Math.max(text, behind) + 0.05) / (Math.min(text, behind) + 0.05);
  };
  const hasText = (one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const shown = (one) => one.checkVisibility() && hasText(one);
  const texts = [...document.querySelectorAll("body *")].filter(shown);
  return Math.min(...texts.map(contrast));
}"""
