"""What stands before every route: who may ask, how much and how slowly, and what is written down of it."""

import asyncio
import hmac
import json
import logging
import re
import time
import traceback
import uuid
from collections.abc import Callable
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from user_llm.serving.metrics import Metrics
from user_llm.serving.problems import MEDIA_TYPE, Refused, problem
from user_llm.serving.settings import Settings

OPEN = ("/", "/healthz", "/readyz")
"""Routes that need no token."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")
_GONE = 499  # nginx' number for who has gone before the answer

_logger = logging.getLogger("user_llm.serving.requests")


def refusal(refused: Refused) -> JSONResponse:
    """A response that says why."""
    body = problem(refused.status, refused.detail)
    return JSONResponse(body, refused.status, headers=refused.headers, media_type=MEDIA_TYPE)


class Logged:
    """Writes a line of JSON a request, and counts it. What was asked and answered is not in it, nor who asked.

    An error of ours is answered with 500; where it happened is logged, without its message, which may quote a user.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        name = given.decode() if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})
        began, status, errors = time.perf_counter(), _GONE, {}

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", name.encode())]}
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception as error:
            errors = {"error": type(error).__name__, "at": _places(error)}
            if status == _GONE:
                await refusal(Refused(500, "the server has failed at this."))(scope, receive, send_named)
        finally:
            self._write(scope, name, status, time.perf_counter() - began, errors)

    def _write(self, scope: Scope, name: str, status: int, seconds: float, errors: dict[str, Any]) -> None:
        route = getattr(scope.get("route"), "path", scope["state"].get("route", "other"))
        self._metrics.requests.labels(route, scope["method"], status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        line = {"request": name, "method": scope["method"], "route": route, "status": status}
        line |= {"ms": round(seconds * 1e3, 2), "batch": scope["state"].get("batch"), **errors}
        _logger.log(logging.ERROR if errors else logging.INFO, line)


class Lines(logging.Formatter):
    """A line of JSON a message."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`; of an error, where it happened, and not what it says."""
        said = record.msg if isinstance(record.msg, dict) else {"says": record.getMessage()}
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), **said}
        if record.exc_info and record.exc_info[1]:
            line |= {"error": type(record.exc_info[1]).__name__, "at": _places(record.exc_info[1])}
        return json.dumps(line)


def _places(error: BaseException) -> list[str]:
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    return [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]


class Guarded:
    """Lets in who has the token and sends a body that is neither too long nor too slow; the body is read here.

    Who goes away before the answer is there ends the request.

    Args:
      app: behind it.
      settings: with the limits.
      token: None: none is wanted.
      turn_away: given a request's path before its body is looked at, it raises `Refused` where there is no room.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        token: str | None,
        turn_away: Callable[[str], None] = lambda path: None,
    ):
        self._app, self._settings, self._turn_away = app, settings, turn_away
        self._wanted = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_token(scope)
            body = await self._body(scope, receive)
            self._turn_away(scope["path"])
        except Refused as refused:
            if refused.status == 429:  # of a route, though the request did not get there
                scope["state"]["route"] = scope["path"]
            close = {"connection": "close"} if refused.status in (408, 413) else {}  # the rest of it is not read
            response = refusal(refused)
            response.headers.update(close)
            await response(scope, receive, send)
            return
        if body is not None:
            await self._answered(scope, body, receive, send)

    def _check_token(self, scope: Scope) -> None:
        if self._wanted is None or scope["path"] in OPEN:
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(given, self._wanted):
            raise Refused(401, "expected the header Authorization: Bearer with this server's token.")

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The request's body; None where the client has gone."""
        most = self._settings.body_bytes
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > most:
            raise Refused(413, f"a request has at most {most} bytes.")
        parts, size = list[bytes](), 0
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise Refused(413, f"a request has at most {most} bytes.")
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise Refused(408, f"the body did not come within {self._settings.body_seconds:g} s.") from None

    async def _answered(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Runs the app with the body, until it has answered or nobody waits for it any more."""
        given = False

        async def receive_read() -> Message:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": body, "more_body": False}
            return await gone

        async def wait_until_gone() -> Message:
            while (message := await receive())["type"] != "http.disconnect":
                pass
            return message

        gone = asyncio.ensure_future(wait_until_gone())
        answering = asyncio.ensure_future(self._app(scope, receive_read, send))
        try:
            await asyncio.wait([gone, answering], return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
            if not answering.cancelled():
                answering.result()  # which raises what it has raised
        finally:
            gone.cancel()
            answering.cancel()
