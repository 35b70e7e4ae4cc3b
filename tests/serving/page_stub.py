"""What the server answers, made up: for the page where a real server would not answer so (errors, late, other runs)."""

import json
import urllib.parse
from collections.abc import Callable
from typing import Any

import playwright.sync_api as play

from user_llm.serving import page

ORIGIN = "http://page.test"
TITLES = ["<img src=x onerror=window.hacked=1>", *(f"Film {number} & <b>more</b>" for number in range(1, 30))]
INFO: dict[str, Any] = dict(
    run="made-up",
    model="0123456789ab",
    tasks=["next_item", "favorite_category", "review_generation"],
    answers=["beams", "encoder", "fused"],
    ratings=[1.0, 2.0, 3.0, 4.0, 5.0],
    reads_times="",
    categories=["<i>Drama</i>", "Comedy"],
    k=10,
    history_length=4,
    num_items=len(TITLES),
    store=False,
    items_version=0,
    loading=None,
)


def recommend(asked: dict[str, Any]) -> dict[str, Any]:
    """Titles after that of the last event, further on with each star."""
    last = asked["events"][-1]
    start = TITLES.index(last["item"]) + int(last.get("rating", 0)) + len(asked["answers"])
    titles = [TITLES[(start + place) % len(TITLES)] for place in range(asked["k"])]
    return {"items": [{"title": title, "item": "1", "score": -0.5 * place} for place, title in enumerate(titles)]}


class Stub:
    """Answers the requests of a browser's pages.

    Attributes:
      info: what GET /info says.
      asked: path and body of each request so far.
      instead: by path, what answers in place of what is made up here.
    """

    def __init__(self, context: play.BrowserContext):
        self.info = dict(INFO)
        self.asked: list[tuple[str, Any]] = []
        self.instead: dict[str, Callable[[play.Route], None]] = {}
        context.route(f"{ORIGIN}/**", self._answer)

    def bodies(self, path: str) -> list[Any]:
        return [body for asked, body in self.asked if asked == path]

    def _answer(self, route: play.Route) -> None:
        path = urllib.parse.urlsplit(route.request.url).path
        body = json.loads(route.request.post_data or "null")
        self.asked.append((path, body))
        if path in self.instead:
            self.instead[path](route)
        elif path == "/":
            route.fulfill(body=page.TEXT, content_type="text/html; charset=utf-8", headers=page.HEADERS)
        else:
            route.fulfill(json=self.reply(path, body, route.request.url))

    def reply(self, path: str, body: Any, url: str = "") -> Any:
        if path == "/items":
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query).get("query", [""])[0].casefold()
            found = [{"title": title, "item": "1"} for title in TITLES if query in title.casefold()]
            return {"items": found[:20], "total": len(found), "version": 0}
        if path == "/recommend":
            return recommend(body)
        if path == "/answer":
            if body["task"] == "review_generation":
                return {"answers": [{"text": f"<u>A</u> review of {body['about']['item']}", "score": None}]}
            return {"answers": [{"text": name, "score": -0.5} for name in self.info["categories"]]}
        if path == "/generate":
            return {"text": f"{body['prompt']} and <u>so on</u>"}
        if path == "/map" and body is None:
            points = [[place % 6, place // 6] for place in range(len(TITLES))]
            return {"points": points, "titles": TITLES, "categories": [place % 2 for place in range(len(TITLES))]}
        if path == "/map":
            return {"x": len(body["events"]) * 1.1, "y": 2.0}
        return {"/info": self.info}[path]


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> Callable[[play.Route], None]:
    """An error as the server sends it."""
    text = json.dumps({"type": "about:blank", "title": "Error", "status": status, "detail": detail})
    return lambda route: route.fulfill(
        status=status, body=text, content_type="application/problem+json", headers=headers or {}
    )
