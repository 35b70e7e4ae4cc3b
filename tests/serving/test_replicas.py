"""Two real servers of one Redis: what one is told the other knows, and a death loses nothing that was acknowledged."""

import concurrent.futures
import http.client
import json
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.serving.conftest import wait_until
from user_llm.store.user_store import UserStore

SETTINGS = {"answers": ["beams"], "poll_seconds": 0.1, "max_delay": 0.2}  # the last: what was accepted is soon waiting


class Server:
    """A process that serves the made-up run."""

    def __init__(self, folder, store):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        asked = [sys.executable, "-m", "tests.serving.made_up_server", str(folder), str(self.port), store]
        with open(f"{folder}.log", "w") as log:
            self.process = subprocess.Popen([*asked, json.dumps(SETTINGS)], stderr=log)

    def ask(self, method, path, body=None, timeout=60.0):
        """Status and JSON of an answer; None: there was none, as the server is dead or ends."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, json.dumps(body), {"content-type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"null")
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def wait(self):
        def ready():
            assert self.process.poll() is None, "the server has ended"
            return (self.ask("GET", "/readyz") or [0])[0] == 200

        wait_until(ready)


@pytest.fixture(scope="module")
def store(redis_address):
    import redis

    redis.Redis.from_url(f"{redis_address}/3").flushdb()
    return f"{redis_address}/3"


@pytest.fixture(scope="module")
def pair(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("servers")
    servers = [Server(folder / name, store) for name in ("one", "other")]
    try:
        [server.wait() for server in servers]
        yield servers
    finally:
        for server in servers:
            server.process.kill()
            server.process.wait()


@pytest.fixture(scope="module")
def titles(model):
    return list(dict.fromkeys(model.catalogue.titles[1:]))


def test_what_one_is_told_the_other_knows(pair, titles, model):
    one, other = pair
    for server, title in zip([one, other, one], titles, strict=False):
        body = {"user": "shared", "events": [{"item": title, "rating": 4.0}]}
        assert server.ask("POST", "/events", body) == (200, {"user": "shared", "events": 1})
    assert other.ask("GET", "/users/shared") == (200, {"user": "shared", "items": titles[:3]})
    answers = [server.ask("POST", "/recommend", {"user": "shared"}) for server in pair]
    assert answers[0] == answers[1]
    wanted = model.recommend([{"item": title, "rating": 4.0} for title in titles[:3]])
    assert [item["title"] for item in answers[0][1]["items"]] == [answer.text for answer in wanted]
    best = wanted[0].text
    assert one.ask("DELETE", "/items", {"titles": [best]}) == (200, {"version": 1, "added": 0, "removed": 1})
    wait_until(lambda: other.ask("GET", "/info")[1]["items_version"] == 1, 20)
    found = other.ask("POST", "/recommend", {"user": "shared"})[1]
    assert best not in [item["title"] for item in found["items"]]
    assert other.ask("PUT", "/items", {"items": [{"title": best}]})[1]["version"] == 2


def test_one_that_is_killed_under_load_has_lost_nothing_it_acknowledged(pair, titles):
    one, other = pair
    acknowledged = []

    def send(worker):
        for number in range(400):
            user, title = f"{worker}: {number // 4}", titles[(worker + number) % len(titles)]
            body = {"user": user, "events": [{"item": title, "rating": 4.0}]}
            server = (one, other)[number % 2]
            answer = server.ask("POST", "/events", body)
            if answer is None:
                assert server is one, "the other has lost a request"
                return
            assert answer[0] == 200
            acknowledged.append((user, title, server))

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        sending = [threads.submit(send, worker) for worker in range(8)]
        wait_until(lambda: len(acknowledged) > 60)
        one.process.send_signal(signal.SIGKILL)
        [done.result(60) for done in sending]
    assert one.process.wait(10) == -signal.SIGKILL
    assert sum(server is one for _, _, server in acknowledged) > 20
    for user, title, _ in acknowledged:
        status, kept = other.ask("GET", f"/users/{user.replace(' ', '%20')}")
        assert status == 200
        assert title in kept["items"]


def test_a_signal_ends_it_when_what_it_accepted_is_answered(pair, titles, model, store):
    _, server = pair
    body = {"user": "last", "events": [{"item": titles[5], "rating": 4.0}]}
    asked = [("/events", body), ("/recommend", {"events": body["events"]})] * 4
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        sending = [threads.submit(server.ask, "POST", *one) for one in asked]
        time.sleep(SETTINGS["max_delay"] / 2)  # they wait for others
        server.process.send_signal(signal.SIGTERM)
        assert [done.result(60)[0] for done in sending] == [200] * 8
    assert server.process.wait(20) == 0
    with UserStore(model, store) as kept:
        (items,) = kept.get_many(["last"]).items
    assert [model.catalogue.titles[item] for item in items] == [titles[5]] * 4
