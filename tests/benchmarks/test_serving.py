"""The load generator against a server of a few lines, its rows and targets, and the peer's answers."""

import asyncio
import contextlib
import math
import socket
import sys
import threading
import time

import numpy as np
import pytest

from benchmarks import http_load, report, serving, serving_report
from benchmarks.http_load import Asked, Load, percentile, poisson, request
from tests.user_models import made_up
from user_llm.data.prompts import Prompts

MACHINE = {"cpu": "A CPU", "cores": 2, "caches": {}, "bfloat16": {}}


def test_percentiles_are_the_nearest_rank():
    values = [15.0, 20.0, 35.0, 40.0, 50.0]  # by hand: the 5 %, 30 %, 40 %, 50 % and 100 % of five
    assert [percentile(values, share) for share in (0.05, 0.3, 0.4, 0.5, 1.0)] == [15.0, 20.0, 20.0, 35.0, 50.0]
    assert percentile(list(reversed(range(1, 101))), 0.99) == 99
    assert math.isnan(percentile([], 0.5))


def test_a_summary_counts_what_ended_in_the_time():
    asked = [
        Asked(0.0, 0.5, 200),  # while it warmed up
        *(Asked(1.0, 1.0 + ms / 1e3, 200) for ms in (10, 20, 30, 40)),
        Asked(1.0, 1.1, 429),
        Asked(1.0, 1.2, 503),
        Asked(1.0, 1.3, 500),
        Asked(1.0, 1.4, 0),
        Asked(2.9, 3.1, 200),  # too late
    ]
    assert Load(asked, 1.0, 3.0, 0.25).summary() == {
        "requests": 8,
        "answered_per_second": 2.0,
        "p50_ms": 20.0,
        "p95_ms": 40.0,
        "p99_ms": 40.0,
        "turned_away": 0.25,
        "too_many": 0.125,
        "failed": 2,
        "client_core": 0.25,
    }
    none = Load([Asked(1.0, 2.0, 500)], 1.0, 3.0, 0.0).summary()
    assert (none["failed"], none["answered_per_second"]) == (1, 0.0)
    assert "p50_ms" not in none


def test_arrivals_are_poissons_and_the_same_for_a_seed():
    moments = poisson(200.0, 50.0, seed=3)
    np.testing.assert_array_equal(moments, poisson(200.0, 50.0, seed=3))
    assert not np.array_equal(moments[:100], poisson(200.0, 50.0, seed=4)[:100])
    assert moments[0] >= 0
    assert moments[-1] < 50
    gaps = np.diff(moments)
    assert (gaps >= 0).all()
    assert abs(len(moments) - 10_000) < 4 * 100  # four standard deviations
    assert abs(gaps.std() / gaps.mean() - 1) < 0.05  # of an exponential distribution they are the same


@contextlib.contextmanager
def stub(seconds=0.02, at_once=4, closes=False, says_so=True):
    """A server that takes `seconds` for a request, and turns away who comes while `at_once` are answered."""
    state = {"connections": 0, "most": 0, "now": 0}

    async def talk(reader, writer):
        state["connections"] += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(int(head.rpartition(b"content-length: ")[2]))
                status = "200 OK"
                if state["now"] >= at_once:
                    status = "429 Too Many Requests"
                else:
                    state["now"] += 1
                    state["most"] = max(state["most"], state["now"])
                    await asyncio.sleep(seconds)
                    state["now"] -= 1
                more = "Connection: close\r\n" if closes and says_so else ""
                writer.write(f"HTTP/1.1 {status}\r\n{more}Content-Length: 2\r\n\r\n{{}}".encode())
                await writer.drain()
                if closes:
                    break
        writer.close()

    ready, loop = threading.Event(), asyncio.new_event_loop()

    def run():
        server = loop.run_until_complete(asyncio.start_server(talk, http_load.HOST, 0))
        state["port"] = server.sockets[0].getsockname()[1]
        ready.set()
        loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    try:
        yield state
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


ASK = [request("POST", "/recommend", b'{"one": 1}'), request("POST", "/recommend", b"{}")]


@pytest.mark.parametrize("closes", [False, True])
def test_the_closed_loop_has_as_many_on_the_way_as_there_are_clients(closes):
    with stub(closes=closes) as state:
        load = asyncio.run(http_load.closed_loop(state["port"], ASK, 3, 0.6, 0.2))
    assert {one.status for one in load.asked} == {200}
    assert state["most"] == 3
    assert state["connections"] == (len(load.asked) if closes else 3)
    assert min(one.ended - one.began for one in load.asked) >= 0.02
    assert max(one.began for one in load.asked) < 0.6
    assert load.core > 0


def test_a_connection_that_was_closed_while_idle_is_made_anew():
    with stub(seconds=0.0, closes=True, says_so=False) as state:
        load = asyncio.run(http_load.open_loop(state["port"], ASK, [0.0, 0.1, 0.2], 0.3, 0.0))
    assert [one.status for one in load.asked] == [200] * 3
    assert state["connections"] == 3


def test_the_open_loop_asks_whether_or_not_it_is_answered():
    moments = np.arange(0, 0.5, 0.01)
    with stub(seconds=0.2) as state:
        load = asyncio.run(http_load.open_loop(state["port"], ASK, moments, 0.5, 0.0))
    assert sorted(one.began for one in load.asked) == pytest.approx(moments.tolist())  # as scheduled, to the last
    statuses = [one.status for one in load.asked]
    assert set(statuses) == {200, 429}
    assert state["most"] == 4
    assert state["connections"] >= 4


def test_a_latency_counts_from_when_the_request_should_have_come():
    with stub(seconds=0.0) as state:

        async def late():
            asyncio.get_running_loop().call_later(0.02, time.sleep, 0.3)  # the client has something else to do
            return await http_load.open_loop(state["port"], ASK, [0.0, 0.1], 0.2, 0.0)

        load = asyncio.run(late())
    assert max(load.asked, key=lambda one: one.began).ended > 0.3


def test_a_server_that_is_not_there_is_a_failure():
    with socket.socket() as free:
        free.bind((http_load.HOST, 0))
        load = asyncio.run(http_load.closed_loop(free.getsockname()[1], ASK, 1, 0.1, 0.0))
    assert {one.status for one in load.asked} == {0}
    assert load.summary()["failed"] == len(load.asked)


def rows():
    shared = {"run": "demo", "load": "closed", "p95_ms": 20.0, "too_many": 0.0, "turned_away": 0.0, "failed": 0}
    shared |= {"mean_batch": 4.5, "peak_mb": 1234, "client_core": 0.07}
    ours = {**shared, "contender": serving_report.OURS}
    opened = {**ours, "load": "open", "capacity_per_second": 200.0, "longest_wait_ms": 1600.0}
    return [
        {**ours, "clients": 8, "answered_per_second": 100.0, "p50_ms": 10.0, "p99_ms": 30.0},
        {**opened, "of_capacity": 0.7, "asked_per_second": 140.0, "answered_per_second": 139.5, "p50_ms": 20.0}
        | {"p99_ms": 70.0},
        {**opened, "of_capacity": 1.5, "asked_per_second": 300.0, "answered_per_second": 199.0, "p50_ms": 900.0}
        | {"p99_ms": 1500.0, "too_many": 0.33, "turned_away": 0.34, "failed": 1},
        {**shared, "contender": serving_report.PEER, "clients": 8, "answered_per_second": 20.0, "p50_ms": 400.0}
        | {"p99_ms": 500.0},
        {**shared, "contender": serving_report.TEXT_PEER, "clients": 8, "answered_per_second": 50.0, "p50_ms": 160.0}
        | {"p99_ms": 200.0},
    ]


def test_rows_and_targets_are_told():
    text = report.render({"date": "today", "machine": MACHINE, "serving": rows()})
    cells = "8 clients | \N{EN DASH} | 100.0 | 10.0 | 20.0 | 30.0 | 4.5 | 0.0% | 0.0% | 0 | 1,234 | 7% |"
    assert f"| {serving_report.OURS} | {cells}" in text
    assert "| 150% of 200/s | 300.0 | 199.0 | 900.0 | 20.0 | 1,500.0 | 4.5 | 33.0% | 34.0% | 1 |" in text
    assert "- met: demo, 8 clients, requests a second ours / transformers without the user: 5 (target ≥ 4)" in text
    assert "- MISSED: demo, 8 clients, requests a second ours / transformers with the user as text: 2" in text
    assert "- MISSED: demo, at 70% of capacity, p99 / p50: 3.5 (target ≤ 3)" in text
    assert "a full queue and a batch: 1.5e+03 (target ≤ 1.6e+03)" in text
    assert "- met: demo, at 150% of capacity, share turned away by 429: 0.33 (target > 0)" in text
    assert "- MISSED: demo, at 150% of capacity, requests that failed: 1 (target ≤ 0)" in text


def test_what_was_not_measured_meets_no_target():
    skipped = {"run": "demo", "contender": serving_report.PEER, "skipped": "no PyTorch"}
    over = {name: value for name, value in rows()[2].items() if name not in ("p50_ms", "p99_ms")}
    text = report.render({"date": "today", "machine": MACHINE, "serving": [rows()[0], over, skipped]})
    assert "| skipped: no PyTorch |" in text
    assert "ours / transformers" not in text
    assert "- MISSED: demo, at 150% of capacity, p99 ms of what is answered" in text
    assert "MISSED: demo, at 150% of capacity, share turned away" not in text


def test_a_server_that_ends_says_why():
    command = [sys.executable, "-c", "import sys; sys.exit('no such run')"]
    with pytest.raises(serving.ContenderFailed, match="ended with 1: no such run"), serving.started(command):
        raise AssertionError("nothing has started")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return made_up(tmp_path_factory.mktemp("peer"))


@pytest.mark.parametrize("text", [False, True])
def test_the_peer_finds_the_titles_of_the_runs_language_model_by_itself(model, text, tmp_path):
    torch = pytest.importorskip("torch", reason="the extra `test` installs PyTorch on Python 3.11 only")
    transformers = pytest.importorskip("transformers")
    from benchmarks.contenders.transformers_server import Peer
    from user_llm.serving.settings import Settings

    peer = Peer("made_up", model, Settings(answers=("beams",), batch=8), text)
    history = np.array([[0, 0, 5], [3, 9, 1], [0, 0, 5]])
    found = peer.likeliest(history)
    order = [[answer.text for answer in row] for row in found]
    assert order[0] == order[2]
    assert (order[0] == order[1]) == (not text)
    # Each title by itself, without a cache or beams.
    model.save_language_model(tmp_path / "alone")
    alone = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "alone", dtype=torch.float32)
    names = model.study.names.titles
    wording = model.study.prompts("next_item").wording
    prompts = Prompts(model.study.names, wording, max_inputs=100, text_history=3 * text)
    prompt, lengths, _ = prompts.build(history[:1])
    start = prompt[0, : lengths[0]].tolist()
    said = names.vocabulary.decode(start[1:])
    assert (model.catalogue.titles[5] in said) == text
    wanted = {}
    for item in range(1, len(names.tokens)):
        answer = [*names.tokens[item, : names.lengths[item]].tolist(), names.vocabulary.eos_id]
        with torch.inference_mode():
            logits = alone(torch.tensor([start + answer])).logits[0, len(start) - 1 : -1].log_softmax(-1)
        wanted[model.catalogue.titles[item]] = float(logits.gather(1, torch.tensor(answer)[:, None]).sum())
    assert len(found[0]) == 10
    for answer in found[0]:
        assert answer.score == pytest.approx(wanted[answer.text], rel=1e-4)
    assert found[0][0].score > np.median(list(wanted.values()))
    scores = [answer.score for answer in found[0]]
    assert scores == sorted(scores, reverse=True)
