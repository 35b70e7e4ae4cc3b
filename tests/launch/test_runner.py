"""Jobs that build on one another, with small commands that train nothing."""

import json
import sys

import pytest
from rich.console import Console

from user_llm.launch import runner
from user_llm.launch.progress import stage_progress
from user_llm.launch.runner import Job, Runner

# Leaves results in its folder, or does what its word says; notes each start.
SCRIPT = """
import os, pathlib, signal, sys, time
out, name, word = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
with open(out / "starts.txt", "a") as file:
    print(name, file=file)
if word == "linger":
    time.sleep(1)
if word == "held" and not (out / "free").exists():
    print(f"error: {name} is in use by process 12 on a host")
    sys.exit(75)
if word.isdecimal():
    sys.exit(int(word))
if word.startswith("killed by:"):
    signal.signal(int(word[10:]), signal.SIG_DFL)  # a shell's background job inherits that SIGINT is ignored
    os.kill(os.getpid(), int(word[10:]))
if word.startswith("after:") and not (out / word[6:] / "results.json").exists():
    sys.exit("error: too early")
if word == "fail" and not (out / "mended").exists():
    print("error: the config is wrong")
    sys.exit(1)
(out / name / "results.json").write_text("{}")
"""


@pytest.fixture
def quiet():
    return Console(quiet=True)


@pytest.fixture
def job(tmp_path):
    def make(name, word="", needs=()):
        return Job(name, [sys.executable, "-c", SCRIPT, str(tmp_path), name, word], needs)

    return make


def starts(out):
    return (out / "starts.txt").read_text().split()


def states(made):
    return [made.state(name) for name in made.jobs]


def test_jobs_follow_those_they_need_and_finished_ones_are_left_alone(job, quiet, tmp_path):
    jobs = [job("llm", "linger"), job("a", "after:llm", ["llm"]), job("b", "after:llm", ["llm"])]
    first = Runner(jobs, tmp_path)
    first.execute(2, quiet)
    assert starts(tmp_path)[0] == "llm"
    assert sorted(starts(tmp_path)) == ["a", "b", "llm"]
    assert {*states(first)} == {runner.FINISHED}
    again = Runner([*jobs, job("c")], tmp_path)
    again.execute(1, quiet)
    assert starts(tmp_path)[3:] == ["c"]
    assert again.records == json.loads((tmp_path / "runs.json").read_text())
    assert again.records["llm"]["seconds"] >= 1
    assert list(again.records) == ["llm", "a", "b", "c"]


def test_a_failure_stops_those_that_need_it_and_is_tried_again(job, quiet, tmp_path):
    jobs = [job("bad", "fail"), job("needs_bad", "", ["bad"]), job("needs_that", "", ["needs_bad"]), job("good")]
    first = Runner(jobs, tmp_path)
    first.execute(1, quiet)
    assert states(first) == [runner.FAILED, runner.SKIPPED, runner.SKIPPED, runner.FINISHED]
    assert first.failures() == [
        "bad failed: exit status 1: error: the config is wrong",
        "needs_bad skipped: needs bad",
        "needs_that skipped: needs needs_bad",
    ]
    (tmp_path / "mended").touch()
    again = Runner(jobs, tmp_path)
    again.execute(1, quiet)
    assert {*states(again)} == {runner.FINISHED}
    assert again.failures() == []
    assert starts(tmp_path) == ["bad", "good", "bad", "needs_bad", "needs_that"]


def test_what_another_process_holds_is_waited_for_and_tried_again(job, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_BUSY_SECONDS", 0.3)
    console = Console(record=True, width=200)
    made = Runner([job("mine", "held"), job("after", "", ["mine"])], tmp_path)
    note = made._note

    def free_after_two_tries(name, state, message):
        if state == runner.BUSY and starts(tmp_path).count("mine") == 2:
            (tmp_path / "free").touch()
        note(name, state, message)

    monkeypatch.setattr(made, "_note", free_after_two_tries)
    made.execute(1, console)
    assert states(made) == [runner.FINISHED] * 2
    assert starts(tmp_path) == ["mine", "mine", "mine", "after"]
    assert "mine waits: error: mine is in use by process 12 on a host" in console.export_text()


def test_what_another_process_finishes_is_not_started_again(job, quiet, tmp_path, monkeypatch):
    made = Runner([job("mine", "held"), job("good")], tmp_path)
    note = made._note

    def finished_by_another(name, state, message):
        note(name, state, message)
        if state == runner.BUSY:
            (tmp_path / name / "results.json").write_text("{}")

    monkeypatch.setattr(made, "_note", finished_by_another)
    made.execute(1, quiet)
    assert states(made) == [runner.FINISHED] * 2
    assert starts(tmp_path) == ["mine", "good"]


@pytest.mark.parametrize("end", ["143", "130", "killed by:15", "killed by:2"])
def test_what_another_stops_is_no_failure(job, quiet, tmp_path, end):
    made = Runner([job("mine", end), job("after", "", ["mine"]), job("good")], tmp_path)
    made.execute(1, quiet)
    assert states(made) == [runner.STOPPED, runner.SKIPPED, runner.FINISHED]
    assert made.failures() == ["mine stopped: the same command goes on", "after skipped: needs mine"]


def test_no_more_processes_than_are_allowed(job, quiet, tmp_path, monkeypatch):
    made = Runner([job(str(number)) for number in range(4)], tmp_path)
    most = []
    start = made._start
    monkeypatch.setattr(made, "_start", lambda *arguments: (start(*arguments), most.append(len(made._active))))
    made.execute(2, quiet)
    assert max(most) == 2


def test_the_summary_says_how_many_are_done_and_how_long_the_rest_takes(job, tmp_path):
    made = Runner([job(name) for name in ("llm", "a0", "a1", "b")], tmp_path)
    assert made.summary(1) == "0 of 4 done"
    made.records["llm"] |= {"state": runner.FINISHED, "seconds": 3000.0}
    made.records["a0"] |= {"state": runner.FAILED}
    assert made.summary(2) == "2 of 4 done · 1 failed · about 50 min left"


def test_a_terminal_has_a_live_table(job, tmp_path):
    console = Console(force_terminal=True, width=200, record=True)
    jobs = [job("good", "linger"), job("bad", "fail"), job("after_bad", "", ["bad"])]
    made = Runner(jobs, tmp_path)
    seen = []
    board = made._board
    made._board = lambda parallel: seen.append(board(parallel)) or seen[-1]
    made.execute(1, console)
    pages = Console(width=200, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    for page in seen:
        pages.print(page)
    text = pages.export_text()
    assert "good" in text
    assert "starts" in text
    assert "failed: exit status 1: error: the config is wrong" in text
    assert "skipped: needs bad" in text
    assert "waits" in text
    assert "1 waiting" in text


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (['{"step": 10}', '{"step": 120}'], "encoder 120/600"),
        (['{"step": 120}', '{"step": 13'], "encoder 120/600"),  # a line that is being written
        (['{"step": 600}'], "evaluation"),
        ([], "encoder 0/600"),
    ],
)
def test_how_far_a_run_is(tmp_path, lines, says):
    assert stage_progress(tmp_path) == ""
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "metrics.jsonl").write_text("\n".join(lines))
    assert stage_progress(tmp_path) == ""  # without a config
    (tmp_path / "config.json").write_text(json.dumps({"training": {"encoder": {"steps": 600}}}))
    assert stage_progress(tmp_path) == says
