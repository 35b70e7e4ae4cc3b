"""docs/serving.md says what is true: its routes, metrics and limits are the server's, and its requests are answered."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from user_llm.serving.app import create_app
from user_llm.serving.service import Service
from user_llm.serving.settings import Settings
from user_llm.tasks.next_item import ANSWERS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def cells(heading):
    """Rows of the table below a heading."""
    part = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [re.split(r" *(?<!\\)\| *", line.strip("| ")) for line in part.splitlines() if line.startswith("| ")]
    return rows[2:]


@pytest.fixture(scope="module")
def service(model):
    service = Service("made_up", model, None, Settings())
    yield service
    service.stop()


def test_the_table_has_the_routes_of_the_server(service):
    described = create_app(service).openapi()["paths"]
    routes = {f"{method.upper()} {path}" for path, methods in described.items() for method in methods}
    told = {route for row in cells("Routes") for route in re.findall(r"`([A-Z]+ /[^`]*)`", row[0])}
    # Those that are not in the description of the routes.
    assert told == {re.sub(":path", "", route) for route in routes} | {"GET /", "GET /metrics"}


def test_the_table_has_the_metrics_of_the_server(service):
    kinds = {"counter": "_total"}
    found = {
        family.name + kinds.get(family.type, ""): {*family.samples[0].labels} - {"le"} if family.samples else None
        for family in service.metrics.registry.collect()
    }
    told = {row[0].strip("`"): {*filter(None, row[1].split(", "))} for row in cells("Metrics")}
    assert told.keys() == found.keys()
    for name, labels in found.items():
        assert labels is None or told[name] == labels, name


def test_the_table_has_the_limits_of_the_server():
    told = {row[0].strip("`-"): row[1] for row in cells("Limits")}
    defaults = dataclasses.asdict(Settings())
    assert told.pop("answers") == "all"
    assert defaults.pop("answers") == ANSWERS
    assert told == {name: str(value) for name, value in defaults.items()}


def requests():
    """(method, path, body) of every `curl` that asks the server of the page."""
    for block in re.findall(r"^```bash\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["curl"] and "http://127.0.0.1:8000/" in words[-1]:
                given = dict(zip(words[1:-1:2], words[2:-1:2], strict=True))
                assert {*given} <= {"-X", "--json", "-H"}
                method = given.get("-X", "POST" if "--json" in given else "GET")
                yield method, words[-1].removeprefix("http://127.0.0.1:8000"), given.get("--json")


def test_its_requests_are_answered(serving, model, tmp_path):
    titles = list(dict.fromkeys(model.catalogue.titles[1:]))
    small = dict(batch=1, answers=("beams",))  # little to compile
    with serving(store=tmp_path / "users", load=lambda name: model, **small) as (_, client):
        asked = list(requests())
        assert len(asked) == 9
        for method, path, body in asked:
            for named, here in (("Toy Story (1995)", titles[0]), ("Heat (1995)", titles[1])):
                body = body and body.replace(named, here)
            headers = {"content-type": "application/json"}
            response = client.request(method, path, content=body and body.encode(), headers=headers)
            assert response.status_code in (200, 202, 204), (method, path, response.text)
