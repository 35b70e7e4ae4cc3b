"""A server's answers against the library's, and what it says of requests that are wrong."""

import concurrent.futures
import gc
import json
import logging

import jax
import pytest

from tests.serving.asking import Compilations, events_of, problem, same, titles_of
from tests.user_models import HISTORY, ITEMS
from user_llm.errors import UserError
from user_llm.serving import requests
from user_llm.serving.served import RECOMMEND, Key, Payload
from user_llm.serving.settings import Settings


@pytest.fixture(scope="module")
def server(serving, tmp_path_factory):
    """A service with a store, which all tests of this file may ask, and its client."""
    with serving(store=tmp_path_factory.mktemp("store") / "users") as (service, client):
        yield service, client


@pytest.fixture(scope="module")
def client(server):
    return server[1]


def test_many_who_ask_at_once_get_the_librarys_answers_whoever_is_wrong(server, model, monkeypatch):
    service, client = server
    # On a busy machine eight at once may have taken longer than eight times one.
    monkeypatch.setattr(service.served, "_measured", {})
    asked = [
        {
            "events": events_of(model, seed, 1 + seed % 6),
            "k": 1 + seed % 10,
            "answers": ["beams", "exact"][seed % 5 == 0],
        }
        for seed in range(40)
    ]
    for seed in (7, 19, 31):
        asked[seed]["events"][0] = {"item": "Nothing", "rating": 4.0}
    for seed in (8, 16):
        asked[seed]["exclude"] = [event["item"] for event in events_of(model, seed + 1, seed)]
    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda one: client.post("/recommend", json=one), asked))
    for one, response in zip(asked, found, strict=True):
        events = one.pop("events")
        if events[0]["item"] == "Nothing":
            assert "'Nothing' is no title" in problem(response, 422)
            continue
        assert response.status_code == 200, response.text
        own = response.json()
        wanted = model.recommend(events, 10, answers=one["answers"], exclude=one.get("exclude", []))
        same(own["items"], wanted[: one["k"]])
        titles = model.catalogue.titles
        assert all(titles[1 + int(item["item"])] == item["title"] for item in own["items"])
        assert (own["answers"], own["model"]) == (one["answers"], model.fingerprints[0][:12])
    text = client.get("/metrics").text
    (batches,) = (
        float(line.split()[1])
        for line in text.splitlines()
        if line.startswith('user_llm_batch_users_count{lane="recommend"}')
    )
    assert batches < 37  # some were answered together


def test_after_the_warm_up_nothing_is_compiled(server, model):
    _, client = server
    assert client.post("/events", json={"user": "warm", "events": events_of(model, 1)}).status_code == 200
    titles = titles_of(model)
    asked = [
        {"user": "warm", "k": 3},
        {"events": events_of(model, 2, 1)},
        {"events": events_of(model, 3, 9), "k": 1, "exclude": titles[:64]},
        {"events": events_of(model, 4), "answers": "exact", "category": "Genre 2"},
        {"events": events_of(model, 5), "allow": titles[5:25]},
        {"user": "warm", "answers": "exact", "exclude": titles[:3]},
    ]
    with Compilations() as made, concurrent.futures.ThreadPoolExecutor(8) as threads:
        for response in threads.map(lambda one: client.post("/recommend", json=one), [*asked, *asked[:3] * 4]):
            assert response.status_code == 200, response.text
    assert made.count == 0
    with Compilations() as made:
        jax.jit(lambda x: x + len(titles))(3.5)
    assert made.count == 1, "compilations are not counted"
    assert gc.get_freeze_count() > 100_000, "what is there for good is looked through for garbage"
    assert client.delete("/users/warm").status_code == 204


def test_batches_are_as_large_as_was_measured_to_be_best(server):
    service, _ = server
    (key, _) = service.served._kinds()[1]
    assert (key.kind, key.options) == ("recommend", ("beams", None, None))
    some = key._replace(options=("beams", ("Glass 2",), None))
    for size in service.settings.sizes:
        assert 0 < service.served.seconds(key, size) < 1
        assert service.served.seconds(some, size) == service.served.seconds(key, size)
    assert service._lanes["recommend"]._seconds(key, 8) == service.served.seconds(key, 8)
    assert service.served.seconds(key._replace(kind="append", options=()), 8) == 1


def test_users_are_kept_asked_about_and_forgotten(server, model):
    _, client = server
    events, user = events_of(model, 11, HISTORY + 2), "jürgen/42 ü"
    for part in (events[:3], events[3:]):
        response = client.post("/events", json={"user": user, "events": part})
        assert response.json() == {"user": user, "events": len(part)}
    assert client.get(f"/users/{user}").json() == {"user": user, "items": [e["item"] for e in events[-HISTORY:]]}
    same(client.post("/recommend", json={"user": user}).json()["items"], model.recommend(events))
    place = {"user": user}, {"events": events}
    assert client.post("/map", json=place[0]).json() == client.post("/map", json=place[1]).json()
    assert client.delete(f"/users/{user}").status_code == 204
    for method, path in (("GET", f"/users/{user}"), ("DELETE", f"/users/{user}")):
        assert "has no user" in problem(client.request(method, path), 404)
    for path, more in (
        ("/recommend", {}),
        ("/answer", {"task": "favorite_category"}),
        ("/generate", {"prompt": "a"}),
        ("/map", {}),
    ):
        assert "has no user" in problem(client.post(path, json={"user": user, **more}), 404)


def test_events_of_one_user_at_once_are_all_kept(server, model):
    _, client = server
    titles = titles_of(model)[: 3 * HISTORY]
    asked = [{"user": f"user {n % 3}", "events": [{"item": title, "rating": 4.0}]} for n, title in enumerate(titles)]
    with concurrent.futures.ThreadPoolExecutor(12) as threads:
        assert all(r.status_code == 200 for r in threads.map(lambda one: client.post("/events", json=one), asked))
    for number in range(3):
        kept = client.get(f"/users/user {number}").json()["items"]
        assert sorted(kept) == sorted(titles[number::3])


def test_tasks_are_answered_and_texts_continued(server, model):
    _, client = server
    events = events_of(model, 21)
    assert model.tasks[0] == "next_item"
    own = client.post("/answer", json={"events": events}).json()
    assert own["task"] == "next_item"
    assert [answer["text"] for answer in own["answers"]] == [a.text for a in model.recommend(events, 10)[:5]]
    own = client.post("/answer", json={"events": events, "task": "favorite_category", "k": 2}).json()["answers"]
    assert [answer["text"] for answer in own] == [a.text for a in model.answer(events, "favorite_category", 2)]
    prompts = [("The user's next", 3), ("The user's next", 40), ("A", 17)]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        asked = [{"events": events, "prompt": prompt, "max_new_tokens": most} for prompt, most in prompts]
        found = list(threads.map(lambda one: client.post("/generate", json=one).json()["text"], asked))
    assert found == [model.generate([events], [prompt], [most])[0] for prompt, most in prompts]


def test_what_is_wrong_in_a_batch_all_the_same_is_told_to_whom_it_belongs(server, model):
    """As a title that came to the run before, and that the run of now does not know."""
    service, _ = server
    served = service.served
    people = [served.read(events_of(model, seed), None, "error") for seed in range(3)]
    payloads = [Payload(person, exclude) for person, exclude in zip(people, [(), ("Gone",), ()], strict=True)]
    found = served.run(Key(served, RECOMMEND, ("beams", None, None)), payloads)
    assert "'Gone' is no title" in str(found[1])
    for seed in (0, 2):
        wanted = model.recommend(events_of(model, seed))
        assert [answer.text for answer in found[seed].answers] == [answer.text for answer in wanted]


def test_it_says_what_it_serves(server, model):
    service, client = server
    told = client.get("/info").json()
    assert requests.Info(**told)
    assert told | {"run": "made_up", "answers": ["beams", "exact"], "k": 10, "num_items": ITEMS, "store": True} == told
    assert (told["ratings"], told["reads_times"]) == ([half / 2 for half in range(1, 11)], "")
    assert told["categories"] == list(model.catalogue.category_names)[1:]
    items = client.get("/items", params={"query": "harbour 1", "limit": 3}).json()
    assert items["items"][0]["title"].startswith("Harbour 1")
    assert (len(items["items"]), items["version"]) == (3, service.served.model.items.version)
    points = client.get("/map").json()
    assert len(points["points"]) == len(points["titles"]) == len(points["categories"]) == ITEMS


ABOUT_SOMEBODY = ("/recommend", "/answer", "/generate")
WRONG = [
    ("POST", "/recommend", b"{", 400, "the body is no JSON"),
    ("POST", "/recommend", b"[]", 422, "valid dictionary"),
    ("POST", "/recommend", {}, 422, "name either a user who is kept, or give events"),
    ("POST", "/recommend", {"user": "a", "events": [{"item": "Glass 2"}]}, 422, "name either a user"),
    ("POST", "/recommend", {"events": []}, 422, "events: List should have at least 1 item"),
    ("POST", "/recommend", {"events": [{"item": "Glass 2", "rating": "4"}]}, 422, "events.0.rating: Input"),
    ("POST", "/recommend", {"events": [{"item": "Glass 2"}]}, 422, "event 0: rating None; expected one of"),
    ("POST", "/recommend", {"events": [{"item": "Glass 2", "rating": 4.2}]}, 422, "rating 4.2; expected one of 0.5"),
    ("POST", "/recommend", {"events": [{"item": "Glas 2", "rating": 4}]}, 422, "did you mean 'Glass 2'"),
    ("POST", "/recommend", b'{"events": [{"item": "Glass 2", "rating": NaN}]}', 422, "rating: Input should be"),
    ("POST", "/recommend", b'{"user": "\\ud800"}', 422, "user: "),
    ("POST", "/recommend", {"user": "a\0b"}, 422, "user: Value error, a user's name holds no null character"),
    ("POST", "/recommend", {"user": "a" * 121}, 422, "user: String should have at most 120 characters"),
    ("POST", "/recommend", {"user": "nobody", "now": 3.0}, 422, "leave it out"),
    ("POST", "/recommend", {"key": 1}, 422, "key: Extra inputs are not permitted"),
    ("POST", "/recommend", {"k": 11}, 422, "k must be a whole number from 1 to 10, got 11"),
    ("POST", "/recommend", {"k": 0}, 422, "k: Input should be greater than or equal to 1"),
    ("POST", "/recommend", {"answers": "best"}, 422, "answers: Input should be 'beams'"),
    ("POST", "/recommend", {"answers": "fused"}, 422, "answers='fused': this server answers by beams, exact alone"),
    ("POST", "/recommend", {"exclude": ["Glass 2"] * 65}, 422, "exclude has 65 titles: at most 64"),
    ("POST", "/recommend", {"exclude": ["Glas"]}, 422, "exclude: 'Glas' is no title"),
    ("POST", "/recommend", {"allow": ["Glas"]}, 422, "allow: 'Glas' is no title"),
    ("POST", "/recommend", {"category": "Glas"}, 422, "category must be one of"),
    ("POST", "/recommend", {"now": 3.0}, 422, "reads no time of the answer"),
    ("POST", "/answer", {"task": "review_generation"}, 422, "made_up answers next_item and favorite_category"),
    ("POST", "/answer", {"task": "favorite_category", "about": {"item": "Glass 2"}}, 422, "asks about none"),
    ("POST", "/answer", {"k": 11}, 422, "k must be a whole number from 1 to 10"),
    ("POST", "/generate", {"prompt": "a", "max_new_tokens": 129}, 422, "max_new_tokens must be at most 128"),
    ("POST", "/generate", {"prompt": "a " * 2000}, 422, "has room"),
    ("POST", "/events", {"user": "a", "events": [{"item": "Glas 2", "rating": 4}]}, 422, "event 0: 'Glas 2'"),
    ("POST", "/events", {"user": "a", "events": [{"item": "Glass 2"}]}, 422, "event 0: rating None"),
    ("PUT", "/items", {"items": [{"title": "Glass 2"}]}, 422, "'Glass 2' is a title of the catalogue"),
    ("DELETE", "/items", {"titles": ["Glas"]}, 422, "'Glas' is no title"),
    ("POST", "/model", {"run": "../other"}, 409, "this server has no folder of runs"),
    ("GET", "/items?limit=0", None, 422, "limit: Input should be greater"),
    ("GET", "/nothing", None, 404, "Not Found"),
    ("GET", "/recommend", None, 405, "Method Not Allowed"),
    ("GET", "/users/%FF", None, 404, "has no user"),
    ("GET", "/users/" + "a" * 600, None, 422, "user: String should have at most 120 characters"),
    ("DELETE", "/users/a%00b", None, 422, "user: Value error, a user's name holds no null character"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "status", "sentence"), WRONG)
def test_a_wrong_request_is_told_what_is_wrong(client, model, method, path, body, status, sentence):
    if isinstance(body, dict) and body and path in ABOUT_SOMEBODY and not {"user", "events"} & {*body}:
        body = {"events": [{"item": model.catalogue.titles[3], "rating": 4.0}], **body}
    content = body if isinstance(body, bytes) or body is None else json.dumps(body)
    response = client.request(method, path, content=content, headers={"content-type": "application/json"})
    assert sentence in problem(response, status)
    assert str(model.study.workdir) not in response.text


def test_examples_are_requests_that_can_be_read(client):
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    shown = {name: schema["examples"] for name, schema in schemas.items() if "examples" in schema}
    assert {"Recommend", "Append", "Question", "Generate", "AddItems", "RemoveItems", "ChangeModel"} <= {*shown}
    for name, examples in shown.items():
        for example in examples:
            getattr(requests, name).model_validate(example)


def test_the_page_may_load_nothing_from_elsewhere(client):
    response = client.get("/")
    assert response.headers["content-type"].startswith("text/html")
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert not any("http" in sources or "*" in sources or "unsafe" in sources for sources in policy.values())


def test_who_has_no_token_is_told_so(serving, model):
    with serving(token="sesame", ready=False) as (_, client):
        for path in ("/info", "/metrics", "/items", "/openapi.json", "/nothing"):
            assert "Authorization: Bearer" in problem(client.get(path), 401)
        for wrong in ("Bearer sesam", "sesame", "bearer sesame", "Bearer sesame2"):
            assert client.get("/metrics", headers={"authorization": wrong}).status_code == 401
        assert client.get("/metrics", headers={"authorization": "Bearer sesame"}).status_code == 200
        assert [client.get(path).status_code for path in ("/", "/healthz", "/readyz")] == [200, 200, 503]


def test_a_line_is_written_of_each_request_without_what_was_asked(server, model, caplog):
    _, client = server
    with caplog.at_level(logging.INFO, "user_llm.serving.requests"):
        client.post("/events", json={"user": "secretive", "events": events_of(model, 1)})
        client.post("/recommend", json={"user": "secretive"})
        client.post("/recommend", json={"events": [{"item": "secretive", "rating": 4.0}]})
        client.get("/users/secretive", headers={"x-request-id": "two\nlines"})
        client.delete("/users/secretive")
    lines = [record.msg for record in caplog.records if record.name == "user_llm.serving.requests"]
    assert [(line["route"], line["status"]) for line in lines] == [
        ("/events", 200),
        ("/recommend", 200),
        ("/recommend", 422),
        ("/users/{user:path}", 200),
        ("/users/{user:path}", 204),
    ]
    assert [line["batch"] for line in lines] == [1, 1, None, None, None]
    assert "secretive" not in json.dumps(lines)
    assert len({line["request"] for line in lines}) == 5
    assert all(line["ms"] > 0 for line in lines)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"k": 0}, "k must be a whole number from 1 to 100"),
        ({"batch": 7}, "batch must be one of 1, 8, 32, 64"),
        ({"timeout": -1}, "timeout must be a number of seconds"),
        ({"answers": ("beam",)}, "answers must be some of beams"),
        ({"answers": ()}, "answers must be some of beams"),
        ({"queue": 0}, "queue must be a whole number"),
    ],
)
def test_settings_that_are_none_are_refused(wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        Settings(**wrong)


def test_a_server_without_a_store_keeps_nobody(serving, model):
    with serving(ready=False) as (service, client):
        service.state = "ready"
        for method, path, body in (
            ("POST", "/events", {"user": "a", "events": events_of(model, 1)}),
            ("POST", "/recommend", {"user": "a"}),
            ("GET", "/users/a", None),
            ("DELETE", "/users/a", None),
        ):
            assert "--store" in problem(client.request(method, path, json=body), 409)
