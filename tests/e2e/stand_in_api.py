"""An API with known answers over real HTTP, so that the page can be tested without the local cloud.

It answers the page's calls in the shape of `lambdas/recommend` and `lambdas/collect_events`: a click enters
the visitor's history `fold_seconds` after it was sent, and then items of its category come first.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lambdas.openapi import document

CONSOLE = Path(__file__).parents[2] / "console"
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css"}

CATALOGUE = [
    {"item_id": f"i{number:02d}", "title": title, "category": category, "brand": brand, "price": price}
    for number, (title, category, brand, price) in enumerate(
        [
            ("Enamel kettle, 1.5 litres", "Kitchen", "Halden", 39.0),
            ("Linen shirt, undyed", "Clothing", "Norr & Sons", 64.5),
            ("Desk lamp with dimmer", "Home", "Lumeo", 48.9),
            ("Trail running shoes", "Sport", "Kestrel", 119.0),
            ("Cast-iron pan, 26 cm", "Kitchen", "Halden", 54.0),
            ("Wireless headphones", "Electronics", "Aria", 149.99),
            ("Wool blanket", "Home", "Fjell", 89.0),
            ("Chef's knife, 20 cm", "Kitchen", "Oda", 72.0),
            ("Rain jacket, packable", "Clothing", "Kestrel", 98.0),
            ("Yoga mat, cork", "Sport", "Still", 45.0),
            ("E-reader, 7 inch", "Electronics", "Folio", 169.0),
            ("Coffee grinder, hand", "Kitchen", "Oda", 61.25),
            ("Ceramic plant pot", "Home", "Fjell", 24.0),
            ("Merino socks, three pairs", "Clothing", "Norr & Sons", 29.9),
            ("Kettlebell, 12 kg", "Sport", "Still", 38.0),
            ("Mechanical keyboard", "Electronics", "Aria", 129.0),
            ("Pepper mill, beech", "Kitchen", "Halden", 27.5),
            ("Floor cushion", "Home", "Lumeo", 42.0),
        ],
        start=1,
    )
]
SURFACES = ["homepage", "product", "cart"]
DESCRIPTION = document(SURFACES, ["click", "impression"])
HEALTH = {"app": "megashop", "model_version": "v20261120-0310", "problems": {}}
RANKS = {"popular": 3, "als": 0}
STAGES_MS = {
    "visitor": 4.2,
    "retrieve": 11.6,
    "rank": 1.8,
    "rerank": 0.9,
    "gate": 0.2,
    "retrieve.als": 11.1,
    "retrieve.popular": 0.7,
    "total": 19.4,
}
UNKNOWN_TYPE = {"status": "rejected", "field": "event_type", "remedy": "this app knows click, impression"}


@dataclass
class StandIn:
    """What the stand-in knows and what it was asked; `degraded` makes its next answers come from `rung`."""

    url: str = ""
    fold_seconds: float = 0.3
    rung: str = "full"
    degraded: dict[str, str] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)

    def history(self, visitor: str, now: float) -> list[dict[str, Any]]:
        """The visitor's folded events, oldest first."""
        return [
            {
                "item_id": event["item_id"],
                "event_type": event["event_type"],
                "time": event["folds_at"] - self.fold_seconds,
            }
            for event in self.events
            if visitor in (event.get("user_id"), event.get("session_id")) and event["folds_at"] <= now
        ]

    def recommend(self, surface: str, body: dict[str, Any], now: float) -> tuple[int, dict[str, Any]]:
        """The status and the answer for one request."""
        self.requests.append({"surface": surface, **body})
        if surface not in SURFACES:
            return 404, refusal("surface", surface, "use one of homepage, product, cart")
        if not 1 <= body["limit"] <= 100:
            return 400, refusal("limit", body["limit"], "send an integer from 1 to 100")
        history = self.history(body.get("user_id") or body["session_id"], now)
        slate = ordered_by_taste(history, body.get("item_ids", []))[: body["limit"]]
        return 200, {
            "recommendations": [
                shown(item, position, history) for position, item in enumerate(slate, start=1)
            ],
            "model_version": "v20261120-0310",
            "policy_version": 41,
            "missing_ids": [],
            "experiment_id": None,
            "recommendation_id": f"r-{len(self.requests):04d}",
            "fallback": self.rung,
            "degraded": self.degraded,
            "trace": {
                "stages_ms": STAGES_MS,
                "history": history,
                "rung": self.rung,
                "sources": {item["item_id"]: {"source": "als", "ranks": RANKS} for item in slate},
                "items": {item["item_id"]: item for item in slate},
            },
        }

    def collect(self, events: list[dict[str, Any]], now: float) -> tuple[int, dict[str, Any]]:
        """One verdict for each event; this app knows no `view`."""
        known = [event["event_type"] == "click" for event in events]
        taken = [event for event, ok in zip(events, known, strict=True) if ok]
        self.events += [event | {"folds_at": now + self.fold_seconds} for event in taken]
        accepted = {"status": "accepted"}
        verdicts = [{"index": n, **(accepted if ok else UNKNOWN_TYPE)} for n, ok in enumerate(known)]
        return 200, {"accepted": len(taken), "rejected": len(known) - len(taken), "verdicts": verdicts}


def refusal(name: str, value: object, remedy: str) -> dict[str, Any]:
    """The body of an error answer."""
    message = f"field '{name}': {value} is not allowed; {remedy}"
    kind = {"type": "InvalidInput", "message": message}
    return {"error": {**kind, "field": name, "value": str(value), "remedy": remedy}}


def ordered_by_taste(history: list[dict[str, Any]], seeds: list[str]) -> list[dict[str, Any]]:
    """The catalogue without seen items; categories of seen and seed items first, else in its own order."""
    seen = {event["item_id"] for event in history} | set(seeds)
    liked = {item["category"] for item in CATALOGUE if item["item_id"] in seen}
    unseen = [item for item in CATALOGUE if item["item_id"] not in seen]
    return sorted(unseen, key=lambda item: item["category"] not in liked)


def shown(item: dict[str, Any], position: int, history: list[dict[str, Any]]) -> dict[str, Any]:
    """One entry of a slate."""
    reason = "Based on your recent views" if history else "Popular now"
    ids = {"product_id": item["item_id"], "item_id": item["item_id"]}
    return {**ids, "score": 1 - position / 100, "reason": reason, "position": position}


class Front(BaseHTTPRequestHandler):
    """The routes of the API, and the files of the page."""

    stand_in: StandIn

    def do_GET(self) -> None:
        """What is known without a body: two answers of the API, else a file."""
        name = self.path.split("?")[0].lstrip("/") or "index.html"
        known = {"api/health": HEALTH, "openapi.json": DESCRIPTION}
        if name in known:
            return self.answer(200, known[name])
        path = CONSOLE / name
        if path.parent != CONSOLE or not path.is_file():
            return self.answer(404, {"message": f"no file {name}"})
        return self.send(200, TYPES[path.suffix], path.read_bytes())

    def do_POST(self) -> None:
        """Events, or a request for a slate."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/api/events":
            return self.answer(*self.stand_in.collect(body["events"], time.time()))
        return self.answer(*self.stand_in.recommend(self.path.rsplit("/", 1)[1], body, time.time()))

    def answer(self, status: int, body: dict[str, Any]) -> None:
        """Send JSON."""
        self.send(status, "application/json", json.dumps(body).encode())

    def send(self, status: int, content_type: str, body: bytes) -> None:
        """Send the whole response."""
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: the test says what went wrong."""


@contextmanager
def stand_in_api() -> Iterator[StandIn]:
    """A running stand-in on a free port of this machine."""
    stand_in = StandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OwnFront", (Front,), {"stand_in": stand_in}))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    stand_in.url = f"http://127.0.0.1:{server.server_port}/"
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
