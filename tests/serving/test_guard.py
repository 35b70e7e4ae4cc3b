"""What stands before the routes, told of bodies that are long, slow or cut off."""

import asyncio
import json

import pytest

from user_llm.serving.guard import Guarded
from user_llm.serving.settings import Settings


class Answered:
    """An app behind the guard, which says how much came; held, it says what became of it."""

    def __init__(self, held=False):
        self.held, self.said = held, []

    async def __call__(self, scope, receive, send):
        message = await receive()
        try:
            while self.held:
                self.said.append("begun")
                await asyncio.sleep(30)
        except asyncio.CancelledError:
            self.said.append("cancelled")
            raise
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": message["body"]})


def ask(app, messages, headers=(), **settings):
    """Sends a request whose messages come so many seconds after each other; status, headers and body of the answer."""
    waiting, sent = iter(messages), []

    async def receive():
        pause, message = next(waiting, (60, {"type": "http.disconnect"}))
        await asyncio.sleep(pause)
        return message

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/recommend", "headers": [*headers]}
    guarded = Guarded(app, Settings(**{"body_bytes": 10, "body_seconds": 0.2, **settings}), None)
    asyncio.run(asyncio.wait_for(guarded(scope, receive, send), 20))
    if not sent:
        return None
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(message.get("body", b"") for message in sent[1:])


def part(body, more=False):
    return {"type": "http.request", "body": body, "more_body": more}


@pytest.mark.parametrize("cut", [0, 1, 5, 10])
def test_a_body_that_is_short_enough_comes_as_it_was_sent(cut):
    body = b"0123456789"
    assert ask(Answered(), [(0, part(body[:cut], True)), (0.01, part(body[cut:]))]) == (200, {}, body)


def test_a_body_that_is_too_long_is_refused_by_its_head_or_as_it_comes():
    said_so = [(b"content-length", b"11")]
    endless = [(0, part(b"012345", True))] * 1000
    for messages, headers in (([], said_so), (endless, ()), ([], [(b"content-length", b"-1")])):
        status, headers, body = ask(Answered(), messages, headers)
        assert (status, json.loads(body)["status"]) == (413, 413)
        assert headers[b"connection"] == b"close"


def test_a_body_that_is_too_slow_is_refused():
    status, headers, body = ask(Answered(), [(0.05, part(b"0", True))] * 100)
    assert (status, json.loads(body)["status"]) == (408, 408)
    assert headers[b"content-type"] == b"application/problem+json"


def test_who_goes_before_the_answer_ends_the_request():
    app = Answered(held=True)
    assert ask(app, [(0, part(b"0")), (0.05, {"type": "http.disconnect"})]) is None
    assert app.said == ["begun", "cancelled"]
    assert ask(app, [(0, {"type": "http.disconnect"})]) is None
    assert app.said == ["begun", "cancelled"]


def test_an_error_of_the_app_is_passed_on():
    async def broken(scope, receive, send):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ask(broken, [(0, part(b""))])
