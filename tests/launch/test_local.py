"""The local runner, with a stand-in for `user_llm.main` that trains nothing."""

import json
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from launch import local
from launch.results import table
from launch.sweeps import SWEEPS, Run

# Writes results, or does what its flags say; notes each start in `starts.txt`.
STAND_IN = """
import json, os, pathlib, signal, sys, time
flags = dict(flag.removeprefix("--").partition("=")[::2] for flag in sys.argv[1:])
workdir = pathlib.Path(flags["workdir"])
workdir.mkdir(parents=True, exist_ok=True)
with open(workdir.parent / "starts.txt", "a") as file:
    print(workdir.name, file=file)
does = flags.get("config.does", "")
if "config.after" in flags and not (workdir.parent / flags["config.after"] / "results.json").exists():
    sys.exit("error: too early")
if does == "linger":
    time.sleep(1)
if does == "fail" and not (workdir.parent / "mended").exists():
    print("error: the config is wrong")
    sys.exit(1)
if does == "wait" and not (workdir / "saved").exists():
    def stop(*_):
        (workdir / "saved").touch()
        print("Stopped.")
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    (workdir.parent / "waiting").touch()
    time.sleep(60)
value = float(flags.get("config.value", 0))
rows = {"User-LLM": {"recall@10": {"value": value, "low": 0, "high": 1}}}
protocols = {"all": {"users": 1234, "rows": rows}}
device = {"count": 1, "kind": "cpu"}
(workdir / "results.json").write_text(json.dumps({"protocols": protocols, "provenance": {"device": device}}))
"""

RUNS = [
    Run("llm", {"does": "linger"}),
    Run("a0", {"after": "llm", "value": 0.25}, ("llm",), {"A": "User-LLM"}),
    Run("a1", {"after": "llm", "value": 0.5}, ("llm",), {"A": "User-LLM"}),
]


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    file = tmp_path_factory.mktemp("command") / "stand_in.py"
    file.write_text(STAND_IN)
    return [sys.executable, str(file)]


@pytest.fixture
def quiet():
    return Console(quiet=True)


def starts(out):
    return (out / "starts.txt").read_text().split()


def states(sweep):
    return {name: record["state"] for name, record in sweep.records.items()}


def test_runs_follow_those_they_need_and_finished_ones_are_left_alone(command, quiet, tmp_path):
    sweep = local.Sweep(RUNS, ["--config=c.py"], tmp_path, command)
    sweep.execute(2, quiet)
    assert starts(tmp_path)[0] == "llm"
    assert sorted(starts(tmp_path)) == ["a0", "a1", "llm"]
    assert {*states(sweep).values()} == {local.FINISHED}
    again = local.Sweep(RUNS, ["--config=c.py"], tmp_path, command)
    again.execute(1, quiet)
    assert len(starts(tmp_path)) == 3
    assert again.records == sweep.records == json.loads((tmp_path / "runs.json").read_text())
    assert sweep.records["a1"]["flags"] == ["--config=c.py", "--config.after=llm", "--config.value=0.5"]


def test_a_failure_stops_those_that_need_it_and_is_tried_again(command, quiet, tmp_path):
    runs = [
        Run("bad", {"does": "fail"}),
        Run("needs_bad", {}, ("bad",)),
        Run("needs_that", {}, ("needs_bad",)),
        Run("good", {}),
    ]
    sweep = local.Sweep(runs, [], tmp_path, command)
    sweep.execute(1, quiet)
    assert list(states(sweep).values()) == [local.FAILED, local.SKIPPED, local.SKIPPED, local.FINISHED]
    assert sweep.failures() == [
        "bad failed: exit status 1: error: the config is wrong",
        "needs_bad skipped: needs bad",
        "needs_that skipped: needs needs_bad",
    ]
    (tmp_path / "mended").touch()
    sweep = local.Sweep(runs, [], tmp_path, command)
    sweep.execute(1, quiet)
    assert {*states(sweep).values()} == {local.FINISHED}
    assert starts(tmp_path) == ["bad", "good", "bad", "needs_bad", "needs_that"]


def test_no_more_processes_than_jobs(command, quiet, tmp_path, monkeypatch):
    sweep = local.Sweep([Run(str(index), {}) for index in range(4)], [], tmp_path, command)
    most = []
    start = sweep._start
    monkeypatch.setattr(sweep, "_start", lambda *arguments: (start(*arguments), most.append(len(sweep._active))))
    sweep.execute(2, quiet)
    assert max(most) == 2


def test_a_folder_of_other_runs_is_refused(command, quiet, tmp_path):
    local.Sweep(RUNS[:1], ["--config=c.py"], tmp_path, command).execute(1, quiet)
    with pytest.raises(ValueError, match=r"holds a run llm with other flags.*Different: --config=c\.py --config=d\.py"):
        local.Sweep(RUNS, ["--config=d.py"], tmp_path, command)
    assert local.Sweep(RUNS, ["--config=c.py"], tmp_path, command).records["a0"]["state"] == ""  # more runs are welcome


MAIN = """
import signal, sys
from pathlib import Path
from launch import local, sweeps
sweeps.SWEEPS["toy"] = lambda out, seeds: [sweeps.Run("long", {"does": "wait"}), sweeps.Run("next", {}, ("long",))]
for number in (signal.SIGINT, signal.SIGTERM):  # a shell may have started the tests with Ctrl-C ignored
    signal.signal(number, signal.default_int_handler)
sys.exit(local.main(["--sweep=toy", "--config=c.py", f"--out={sys.argv[1]}"], [sys.executable, sys.argv[2]]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_middle_it_lets_the_run_save_and_goes_on_from_there(command, tmp_path, number):
    arguments = [sys.executable, "-c", MAIN, str(tmp_path), command[1]]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "waiting").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "The same command goes on" in stderr
    assert (tmp_path / "long" / "saved").exists()
    assert json.loads((tmp_path / "runs.json").read_text())["long"]["state"] == local.STOPPED
    again = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 0, again.stderr
    assert starts(tmp_path) == ["long", "long", "next"]


def test_the_table_has_means_and_ranges_over_seeds(command, quiet, tmp_path):
    runs = [*RUNS, Run("b0", {}, rows={"B": "User-LLM"}), Run("c0", {"value": 1}, rows={"C": "User-LLM"})]
    sweep = local.Sweep(runs, [], tmp_path, command)
    assert table(runs, sweep.records, tmp_path) == "No run is finished.\n"
    local.Sweep([*RUNS, runs[-1]], [], tmp_path, command).execute(2, quiet)
    text = table(runs, sweep.records, tmp_path)
    assert text.splitlines()[:7] == [
        "**all**, 1,234 test users",
        "",
        "|  | recall@10 | seeds |",
        "| --- | --- | --- |",
        "| A | 0.375 ±0.125 | 2 |",
        "| B | - | 0 |",
        "| C | 1.000 | 1 |",
    ]
    assert "4 of 5 runs, 0.0 h on 1 x cpu" in text


def test_progress_says_what_runs_and_how_long_the_rest_takes(command, tmp_path):
    sweep = local.Sweep([*RUNS, Run("b", {})], [], tmp_path, command)
    assert sweep.progress(1) == "0 of 4 done"
    sweep.records["llm"] |= {"state": local.FINISHED, "seconds": 3000.0}
    sweep.records["a0"] |= {"state": local.FAILED}
    assert sweep.progress(2) == "2 of 4 done · 1 failed · about 50 min left"


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(SWEEPS, "toy", lambda out, seeds: [Run(f"r{seed}", {"value": seed}) for seed in seeds])


def test_the_command_line(toy, command, tmp_path, capsys):
    flags = ["--sweep=toy", "--config=c.py", f"--out={tmp_path}", "--seeds=0,3", "--set", "a.b=1", "c=2"]
    assert local.main(flags, command) == 0
    assert json.loads((tmp_path / "runs.json").read_text())["r3"]["flags"] == [
        *("--config=c.py", "--config.a.b=1", "--config.c=2", "--config.value=3")
    ]
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out
    assert local.main([*flags, "--set", "does=fail"], command) == 2
    assert "with other flags" in capsys.readouterr().err
    assert local.main([*flags[:2], f"--out={tmp_path / 'other'}", "--set", "does=fail"], command) == 1
    assert "r0 failed: exit status 1: error: the config is wrong" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--set", "value=2"], "the sweep gives value its values"),
        (["--set", "steps"], "expected key=value"),
        (["--seeds=0,x"], "expected whole numbers"),
        (["--seeds=1,1"], "every seed another"),
        (["--jobs=0"], "--jobs must be at least 1"),
        (["--sweep=table9"], "invalid choice"),
    ],
)
def test_wrong_arguments_are_named_and_start_nothing(toy, command, tmp_path, capsys, flags, says):
    try:
        status = local.main(["--sweep=toy", "--config=c.py", f"--out={tmp_path}", *flags], command)
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
