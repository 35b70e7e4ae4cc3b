"""The command as a user runs it: killed and started again, refused, skipped, loaded from Python."""

import hashlib
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import user_llm
from tests.faults.harness import Outcome, ended, results, start, train


def kill_when(flags, workdir: Path, stage: str, step: int, number: int) -> Outcome:
    """Starts the command and sends it signal `number` once `stage` has written a row of `step` or later."""
    log = workdir.parent / f"{stage}-{step}.log"
    process = start("user_llm.main", *flags, f"--workdir={workdir}", log=log)
    metrics, until = workdir / stage / "metrics.jsonl", time.monotonic() + 300
    while process.is_alive() and time.monotonic() < until:
        rows = metrics.read_text().splitlines() if metrics.exists() else []
        if rows and json.loads(rows[-1])["step"] >= step:
            break
        time.sleep(0.02)
    os.kill(process.pid, number)
    return ended(process, log)


def parameters(workdir: Path) -> dict[str, str]:
    """Hashes of every tensor of the finished contextualised LLM."""
    values = user_llm.load(workdir).contextualised.parameters
    return {path: hashlib.sha256(np.asarray(value).tobytes()).hexdigest() for path, value in values.items()}


@pytest.fixture(scope="module")
def finished(tiny_run):
    return tiny_run[0]


@pytest.fixture(scope="module")
def flags(tiny_run):
    return tiny_run[1]


def test_a_run_prints_the_table_and_leaves_its_files(tiny_run):
    workdir, _, printed = tiny_run
    for row in ("Popularity", "Encoder alone", "LLM without context", "User-LLM", "User-LLM, shuffled contexts"):
        assert row in printed
    written = json.loads((workdir / "results.json").read_text())
    everyone, paper = written["protocols"].values()
    assert everyone["users"] == 48 > paper["users"] > 0
    assert set(written["provenance"]) >= {"commit", "dataset", "device"}
    predictions = [json.loads(line) for line in (workdir / "predictions.jsonl").read_text().splitlines()]
    assert len(predictions) == 48
    # What the table says follows from the predictions.
    for name, row in everyone["rows"].items():
        found = [line["ranks"][name] is not None and line["ranks"][name] <= 10 for line in predictions]
        assert row["recall@10"]["value"] == pytest.approx(sum(found) / 48)
    files = ("config.json", "environment.json", "operative_config.gin", "catalogue/facts.json")
    for name in (*files, "vocabulary/tokenizer.model", "llm/huggingface/config.json"):
        assert (workdir / name).is_file()


def test_stopped_then_killed_and_started_again_gives_the_same_bits(finished, flags, tmp_path):
    workdir = tmp_path / "run"
    kill_when(flags, workdir, "encoder", 8, signal.SIGTERM).check(143, "the same command resumes there")
    kill_when(flags, workdir, "user_llm", 14, signal.SIGKILL).check(137, "encoder: restored step")
    assert not (workdir / "results.json").exists()
    train(*flags, f"--workdir={workdir}", folder=tmp_path, timeout=400).check(0, "user_llm: restored step")
    assert results(workdir) == results(finished)
    assert parameters(workdir) == parameters(finished)


def test_a_finished_run_is_not_run_again(finished, flags, tmp_path):
    before = {path: os.stat(path).st_mtime_ns for path in finished.rglob("*")}
    train(*flags, f"--workdir={finished}", folder=tmp_path).check(0, "User-LLM")
    assert {path: os.stat(path).st_mtime_ns for path in finished.rglob("*")} == before


def test_the_results_say_what_training_cost(finished):
    costs = json.loads((finished / "results.json").read_text())["training"]
    assert list(costs) == ["llm", "encoder", "user_llm"]
    assert [cost["examples"] for cost in costs.values()] == [12 * 16, 18 * 16, 18 * 16]
    # An encoder's positions are events alone, and every parameter of it meets each (24 a history).
    assert costs["encoder"]["flops_6nd"] == 6 * costs["encoder"]["parameters"] * 18 * 16 * 24
    assert costs["user_llm"]["parameters"] > costs["llm"]["parameters"] + costs["encoder"]["parameters"] // 2


def test_the_workdir_of_another_config_is_refused(finished, flags, tmp_path):
    refused = train(*flags, f"--workdir={finished}", "--config.seed=1", folder=tmp_path)
    refused.check(1, "holds a run of another config", "config.seed was 0, is 1")


def test_a_finished_run_recommends_to_new_users(finished):
    model = user_llm.load(finished)
    titles = model.catalogue.titles
    history = [{"item": titles[item], "rating": 4.0} for item in (3, 5, 8)]
    answers = model.recommend(history, k=7)
    assert len({answer.text for answer in answers}) == 7
    assert not {answer.text for answer in answers} & {titles[3], titles[5], titles[8]}
    assert {answer.text for answer in answers} <= set(titles)
    scores = [answer.score for answer in answers]
    assert scores == sorted(scores, reverse=True)
    # Only the latest `history_length` events are read.
    long = [{"item": titles[20], "rating": 1.0}] * 5 + [{"item": titles[item], "rating": 3.0} for item in range(1, 25)]
    assert model.recommend(long) == model.recommend(long[-24:])


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"item": "No Such Film (1999)", "rating": 4.0}, "event 0: 'No Such Film .1999.' is no title"),
        ({"rating": 4.0}, r"event 0: expected {\"item\": title, \"rating\": number}, got {'rating': 4.0}"),
        ({"item": "{title}", "rating": 11}, "event 0: rating 11; expected one of 0.5, 1,"),
        ({"item": "{title}"}, "event 0: rating None; expected one of"),
    ],
)
def test_an_event_that_cannot_be_read_is_named(finished, event, message):
    model = user_llm.load(finished)
    event = {key: model.catalogue.titles[3] if value == "{title}" else value for key, value in event.items()}
    with pytest.raises(ValueError, match=message):
        model.recommend([event])


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist: name the --workdir"):
        user_llm.load(tmp_path)
