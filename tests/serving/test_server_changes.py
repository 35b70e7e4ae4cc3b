"""A server whose items or run change, that begins or ends, that is full, or whose store fails."""

import concurrent.futures
import json
import logging
import threading
import time

from tests.serving.asking import Compilations, events_of, problem, same
from tests.serving.conftest import anew, wait_until
from user_llm.errors import UserError
from user_llm.serving.served import RECOMMEND, Key, Payload, Person, Served
from user_llm.store.engine import StoreError


def test_what_may_be_answered_changes_with_the_reply(serving, model):
    events = events_of(model, 3)
    with serving(answers=("beams",)) as (_, client):
        ask = lambda **more: client.post("/recommend", json={"events": events, **more}).json()  # noqa: E731
        before = ask()["items"]
        assert client.request("DELETE", "/items", json={"titles": [before[0]["title"]]}).json() == {
            "version": 1,
            "added": 0,
            "removed": 1,
        }
        after = ask()
        assert after["items_version"] == 1
        assert before[0]["title"] not in [item["title"] for item in after["items"]]
        assert client.put("/items", json={"items": [{"title": "Dune (2031)"}]}).json() == {
            "version": 2,
            "added": 1,
            "removed": 0,
        }
        with Compilations() as made:
            own = ask(allow=["Dune (2031)"])
            ask()
        assert made.count == 0, "the change was seen before it was compiled for"
        assert (own["items"][0]["title"], own["items"][0]["item"], own["items_version"]) == (
            "Dune (2031)",
            "Dune (2031)",
            2,
        )
        assert client.get("/items", params={"query": "dune"}).json()["items"][0]["title"] == "Dune (2031)"
        again = client.put("/items", json={"items": [{"title": before[0]["title"]}, {"title": "Later (2032)"}]}).json()
        assert again == {"version": 3, "added": 2, "removed": 0}
        assert before[0]["title"] in [item["title"] for item in ask()["items"]]
        with Compilations() as made:
            assert client.put("/items", json={"items": [{"title": "Last (2033)"}]}).status_code == 200
        assert made.count == 0, "there was room"


def test_another_run_takes_over_without_a_request_lost(serving, model, tmp_path):
    other = anew(model, "f" * 64)

    def load(name):
        if name == "absent":
            raise FileNotFoundError(name)
        if name == "strange":
            strange = anew(model)
            strange.__dict__["fingerprints"] = model.fingerprints[0], "0" * 64
            return strange
        return other

    events = events_of(model, 5)
    # It has fitted no mix, and is served all the same, whatever was offered.
    with serving(store=tmp_path / "users", load=load, answers=("beams", "fused")) as (_, client):
        assert client.post("/events", json={"user": "a", "events": events}).status_code == 200
        client.put("/items", json={"items": [{"title": "Dune (2031)"}]})
        assert "there is no finished run 'absent'" in problem(client.post("/model", json={"run": "absent"}), 404)
        assert "has other items" in problem(client.post("/model", json={"run": "strange"}), 409)
        seen, stop = [], threading.Event()

        def ask():
            while not stop.is_set():
                seen.append(client.post("/recommend", json={"user": "a", "k": 3}))

        with concurrent.futures.ThreadPoolExecutor(3) as threads:
            asking = [threads.submit(ask) for _ in range(3)]
            try:
                response = client.post("/model", json={"run": "other"})
                assert (response.status_code, response.json()) == (202, {"run": "other"})
                wait_until(lambda: client.get("/info").json()["run"] == "other")
                wait_until(lambda: seen[-1].json().get("model") == "f" * 12)
            finally:
                stop.set()
            [done.result(60) for done in asking]
        assert [response.status_code for response in seen] == [200] * len(seen)
        models = [response.json()["model"] for response in seen]
        assert {*models} == {model.fingerprints[0][:12], "f" * 12}
        for response in seen:  # the kept user was made by another encoder
            same(response.json()["items"], model.recommend(events, 3))
        told = client.get("/info").json()
        assert (told["loading"], told["items_version"]) == (None, 1)
        assert "user_llm_items_version 1.0" in client.get("/metrics").text
        own = client.post("/recommend", json={"user": "a", "allow": ["Dune (2031)"]}).json()
        assert own["items"][0]["title"] == "Dune (2031)"
        assert client.post("/events", json={"user": "a", "events": events[:1]}).status_code == 200


def test_what_is_added_while_another_run_is_loaded_is_answered_by_it(serving, model, monkeypatch):
    def add(served, going):
        added = client.put("/items", json={"items": [{"title": "Dune (2031)"}]})
        assert added.json()["version"] == 1
        assert service.info().loading == "other"
        assert "other is being loaded" in problem(client.post("/model", json={"run": "third"}), 409)

    with serving(answers=("beams",), load=lambda name: anew(model, "f" * 64)) as (service, client):
        monkeypatch.setattr(Served, "warm_up", add)
        assert client.post("/model", json={"run": "other"}).status_code == 202
        wait_until(lambda: client.get("/info").json()["loading"] is None)
        told = client.get("/info").json()
        assert (told["run"], told["items_version"]) == ("other", 1)

        def fail(served, going):
            raise UserError("no room")

        monkeypatch.setattr(Served, "warm_up", fail)
        assert client.post("/model", json={"run": "third"}).status_code == 202
        wait_until(lambda: client.get("/info").json()["loading"] is None)
        assert client.get("/info").json()["run"] == "other"


def test_before_it_is_ready_and_while_it_ends_it_says_so(serving, model):
    before = {*threading.enumerate()}
    with serving(ready=False, answers=("beams",)) as (service, client):
        assert client.get("/healthz").status_code == 200
        response = client.get("/readyz")
        assert "warming" in problem(response, 503)
        assert response.headers["retry-after"] == "1"
        problem(client.post("/recommend", json={"events": events_of(model, 1)}), 503)
        service.drain()
        assert "draining" in problem(client.get("/readyz"), 503)
        service.start()
        time.sleep(0.2)
        service.stop()  # in the middle of the warm-up
        ours = [thread.name for thread in {*threading.enumerate()} - before]
        assert not [name for name in ours if name == "service" or name.startswith("lane")]


def test_a_full_lane_and_a_long_wait_are_told_to_come_again(serving, model):
    with serving(ready=False, queue=2, timeout=0.3, retry_after=7) as (service, client):
        service.state, free, begun = "ready", threading.Event(), threading.Semaphore(0)
        service.served.run = lambda key, payloads: (
            begun.release(),
            free.wait(30),
            [UserError("held")] * len(payloads),
        )[2]
        body = {"events": events_of(model, 1)}
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            first = threads.submit(client.post, "/recommend", json=body)
            assert begun.acquire(timeout=30)
            waiting = [threads.submit(client.post, "/recommend", json=body) for _ in range(2)]
            wait_until(lambda: len(service._lanes["recommend"]) == 2)
            response = client.post("/recommend", json=body)
            assert "too many" in problem(response, 429)
            unread = client.post("/recommend", content="no JSON")
            assert "too many" in problem(unread, 429), "it is refused before it is read"
            assert 'method="POST",route="/recommend",status="429"' in client.get("/metrics").text
            assert response.headers["retry-after"] == "7"
            for late in waiting:
                assert "was not computed" in problem(late.result(30), 503)
            time.sleep(0.2)
            assert not first.done(), "what was begun is waited for"
            free.set()
            assert problem(first.result(30), 422) == "held"
        text = client.get("/metrics").text
        assert 'user_llm_turned_away_total{lane="recommend",why="full"} 2.0' in text
        assert 'user_llm_turned_away_total{lane="recommend",why="late"} 2.0' in text


def test_our_errors_and_a_lost_store_say_nothing_of_themselves(serving, model, caplog):
    secret = "Glass 2 of jürgen"

    def fail(error):
        def run(key, payloads):
            raise error

        service.served.run = run
        return client.post("/recommend", json={"events": events_of(model, 1)}, headers={"x-request-id": "abc-1"})

    with serving(ready=False) as (service, client), caplog.at_level(logging.INFO, "user_llm.serving.requests"):
        service.state = "ready"
        response = fail(ZeroDivisionError(secret))
        assert problem(response, 500) == "the server has failed at this."
        assert response.headers["x-request-id"] == "abc-1"
        response = fail(StoreError(secret))
        assert "the store of users fails" in problem(response, 503)
        assert secret not in response.text
    (line, _) = (record.msg for record in caplog.records if record.name == "user_llm.serving.requests")
    assert line["request"] == "abc-1"
    assert (line["route"], line["status"], line["error"]) == ("/recommend", 500, "ZeroDivisionError")
    assert any("run" in place for place in line["at"])
    assert secret not in json.dumps(line)


def test_a_store_that_fails_is_asked_once_and_is_not_a_store_without_the_user(serving, tmp_path, monkeypatch):
    with serving(ready=False, store=tmp_path / "users") as (service, client):
        service.state, served, asked = "ready", service.served, []

        def fail(keys):
            asked.append(keys)
            raise StoreError("down")

        monkeypatch.setattr(served.store._engine, "get_many", fail)
        assert "the store of users fails" in problem(client.get("/users/a"), 503)
        assert "the store of users fails" in problem(client.post("/recommend", json={"user": "a"}), 503)
        asked.clear()
        key = Key(served, RECOMMEND, ("beams", None, None))
        found = served.run(key, [Payload(Person(None, name), ()) for name in "abc"])
        assert [type(one) for one in found] == [StoreError] * 3
        assert len(asked) == 1
