"""Traffic that is no visitor's: its events are kept with a mark, fold into no feature and train nothing.

`USER_AGENT` is set where an event is collected, from what its sender says it is; `RATE` and `DUPLICATE` need
other events as well, and are set in the lake.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, date, datetime
from functools import lru_cache

from narrows.events import Event

USER_AGENT = "bot:user_agent"
RATE = "bot:rate"
DUPLICATE = "duplicate"
MINUTE_S = 60.0

_CRAWLERS = re.compile(
    r"(?<!cu)bot(?!ocore|o3)|crawl|spider|slurp|scrap[ey]|archiver|https?://|www\.|@[a-z][\w-]*\."
    r"|compatible;(?! msie)|headless|phantomjs|puppeteer|playwright|selenium|webdriver|lighthouse|pingdom"
    r"|uptime|monitor|synthetic|link.?check|validator|scanner|indexer|feed(fetch|burner|pars)|fetcher|prefetch"
    r"|preview|external(hit|agent|ads)|wordpress|zapier|whatsapp|mediapartners|^google|google-|googleagent"
    r"|chatgpt|perplexity|anthropic|claude-|cohere|-ai\b",
    re.IGNORECASE,
)
"""Crawlers, browsers without a person, monitors and fetchers; "Cubot" is a maker of phones."""

_LIBRARIES = re.compile(
    r"^(curl|wget|httpie|postman|libwww|lwp|python|aiohttp|httpx|go-http|java|apache|axios|node|undici|got"
    r"|ruby|guzzle|php|boto|aws-sdk|http|web|jetty|colly|mechanize|faraday|insomnia|dart|perl|unirest|rest)",
    re.IGNORECASE,
)
"""Programs that send requests: no visitor's browser, and quite usual for a shop's own server."""

_A_PAGE = "Mozilla/"


def marks(of_visitor: str | None, of_request: str | None) -> tuple[str, ...]:
    """The marks of an event by the user agent that it names, else by that of the request that brought it.

    Only pages that run in a browser send events by themselves, and crawlers that run pages call themselves
    Mozilla as browsers do. Any other sender of a request is a server that passes on what people did.
    """
    if of_visitor is not None:
        is_bot = _is_crawler(of_visitor) or _is_library(of_visitor)
    else:
        is_bot = of_request is not None and of_request.startswith(_A_PAGE) and _is_crawler(of_request)
    return (USER_AGENT,) if is_bot else ()


def fast_visitors(events: Iterable[Event], events_per_minute: float) -> set[tuple[str, date]]:
    """The visitors and days of `RATE`: who has more different events than that in one minute of UTC.

    All events of this visitor on that day get the mark: a program is not a person in its slow minutes.
    """
    minutes: dict[tuple[str, int], set[str]] = defaultdict(set)
    for event in events:
        minutes[event.visitor_key, int(event.time // MINUTE_S)].add(event.event_id)
    return {
        (visitor, datetime.fromtimestamp(minute * MINUTE_S, UTC).date())
        for (visitor, minute), ids in minutes.items()
        if len(ids) > events_per_minute
    }


def fast_visitors_sql(events: str, events_per_minute: float) -> str:
    """`fast_visitors` as Spark SQL over a relation with visitor, event_id, time and event_date."""
    minutes = (
        f"SELECT visitor, event_date, count(DISTINCT event_id) AS events FROM {events} "  # noqa: S608  # a name of ours
        f"GROUP BY visitor, event_date, floor(time / {MINUTE_S:g})"
    )
    return f"SELECT DISTINCT visitor, event_date FROM ({minutes}) WHERE events > {events_per_minute:g}"  # noqa: S608


@lru_cache(maxsize=4096)
def _is_crawler(agent: str) -> bool:
    return _CRAWLERS.search(agent) is not None


@lru_cache(maxsize=4096)
def _is_library(agent: str) -> bool:
    return _LIBRARIES.search(agent) is not None
