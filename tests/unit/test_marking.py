"""Traffic that is no visitor's: who says so, and who is only too fast."""

from __future__ import annotations

from datetime import date

import pytest

from narrows.events import Event
from narrows.marking import USER_AGENT, fast_visitors, fast_visitors_sql, marks

PEOPLE = [
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 Safari/604.1",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/142.0 Safari/537.36",
    "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Mozilla/5.0 (Linux; Android 10; CUBOT_X18_Plus) AppleWebKit/537.36 Chrome/120.0 Mobile",
    "Mozilla/5.0 (Linux; Android 9; CUBOT POWER) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0 Mobile",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_4 like Mac OS X) Safari/605.1.15 (Ecosia ios@11.0.2.2268)",
    "Mozilla/4.0 (compatible; MSIE 8.0; Windows NT 6.1; Trident/4.0)",
    "MegaShop/7.2 (Android 15; Pixel 9) okhttp/4.12.0",
    "ScanAndCheckout/2.1 CFNetwork/1568 Darwin/24.0",
]
CRAWLERS = [
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
    "Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; GPTBot/1.2; +https://openai.com/gptbot)",
    "Mozilla/5.0 (compatible; Baiduspider/2.0; +http://www.baidu.com/search/spider.html)",
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) HeadlessChrome/142.0",
    "Mozilla/5.0 (Linux; Android 11) AppleWebKit/537.36 Chrome/142.0 Mobile Safari/537.36 Chrome-Lighthouse",
]
PROGRAMS = ["facebookexternalhit/1.1", "Scrapy/2.11", "Mediapartners-Google", "ia_archiver", "WordPress/6.8"]
LIBRARIES = ["curl/8.5.0", "python-requests/2.32", "Boto3/1.43.11 md/Botocore#1.43.11", "Go-http-client/1.1"]


@pytest.mark.parametrize("agent", PEOPLE)
def test_a_browser_is_a_person(agent: str) -> None:
    """Phones, desktops, apps, and the one maker of phones whose name ends in bot."""
    assert marks(agent, None) == marks(None, agent) == ()


@pytest.mark.parametrize("agent", CRAWLERS)
def test_a_crawler_says_that_it_is_one(agent: str) -> None:
    """Whether it sends the event itself or a shop's server passes on what it did."""
    assert marks(agent, None) == marks(None, agent) == (USER_AGENT,)


@pytest.mark.parametrize("agent", [*PROGRAMS, *LIBRARIES, "MyShop-Backend/1.0 (+https://shop.example)"])
def test_a_program_is_a_bot_as_a_visitor_and_a_server_as_a_sender(agent: str) -> None:
    """Events that a shop's server passes on are its visitors', not the server's."""
    assert marks(agent, None) == (USER_AGENT,)
    assert marks(None, agent) == ()


def test_what_the_event_names_goes_before_the_request() -> None:
    """A monitor that passes on people's events does not make bots of them."""
    assert marks(PEOPLE[0], CRAWLERS[0]) == ()
    assert marks(None, None) == ()


def event(number: int, time: float, user: str = "a") -> Event:
    return Event(f"e{number}", "view", time, time, user_id=user)


def test_more_events_in_a_minute_than_allowed_are_too_fast() -> None:
    """Five are allowed: the sixth within one minute makes the visitor a program on that day."""
    start = 1_800_000_000.0
    calm = [event(n, start + n) for n in range(5)] + [event(n, start + n) for n in range(5)]
    assert fast_visitors(calm, 5) == set()
    spread = [event(n, start + 12.0 * n) for n in range(9)]
    assert fast_visitors(spread, 5) == set()
    busy = [event(n, start + n, "b") for n in range(6)]
    assert fast_visitors([*calm, *busy], 5) == {("u#b", date(2027, 1, 15))}


def test_the_rule_is_one_statement_of_spark() -> None:
    """The lake marks by the same rule; its job tests that both agree."""
    text = fast_visitors_sql("arrived", 90.0)
    assert "FROM arrived" in text
    assert text.endswith("WHERE events > 90")
