"""The local launcher as a user starts it, with a stand-in for Python that trains nothing."""

import json
import shlex
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from user_llm.command_line import check_overrides
from user_llm.launch import local, runner
from user_llm.launch.plan import Plan
from user_llm.launch.resolve import resolve

STAND_IN = Path(__file__).with_name("stand_in.py")
PYTHON = [sys.executable, str(STAND_IN)]
FLAGS = ["--scale=laptop", "--datasets=movielens", "--jobs=2"]


def sweep(out, *flags, tables="2,6"):
    return local.main([f"--tables={tables}", f"--out={out}", *FLAGS, *flags], PYTHON)


def starts(out):
    return (out / "starts.txt").read_text().split()


def _wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def does(out, what, words):
    (out / "does").mkdir(parents=True, exist_ok=True)
    (out / "does" / what).write_text(words)


def test_runs_happen_once_over_tables_seeds_and_calls(tmp_path, capsys):
    assert sweep(tmp_path) == 0
    assert "Forecast: 14 runs" in capsys.readouterr().out
    first = starts(tmp_path)
    names = [run.name for run in Plan.load(tmp_path).runs()]
    assert sorted(first) == sorted(names)
    assert len(set(first)) == len(first) == 14
    assert sweep(tmp_path, "--seeds=0,1", tables="2,5") == 0
    plan = Plan.load(tmp_path)
    assert (plan.seeds, plan.tables) == ((0, 1), ("2", "5", "6"))
    assert len(set(starts(tmp_path))) == len(starts(tmp_path)) > len(first)
    assert "14 of 14 runs are finished" not in capsys.readouterr().out
    assert sweep(tmp_path) == 0
    said = capsys.readouterr().out
    assert "14 of 14 runs are finished already" in said
    assert "Forecast: 0 runs" in said
    assert Plan.load(tmp_path) == plan  # less is asked for: nothing is forgotten
    assert [start["stopped"] for start in json.loads((tmp_path / "starts.json").read_text())] == [False] * 3
    assert {path.name for path in tmp_path.glob("report.*")} == {"report.md", "report.html"}


def test_on_another_machine_only_models_that_are_read_are_trained_again(tmp_path, capsys):
    """Of a sweep its results are kept: a new run that reads a finished run's model needs that one anew."""
    here, there = tmp_path / "here", tmp_path / "there"
    assert sweep(here, tables="2") == 0
    there.mkdir()
    for name in ("sweep.json", "runs.json", "starts.json", "archive"):
        (here / name).rename(there / name)
    capsys.readouterr()
    assert sweep(there, tables="2") == 0
    assert not (there / "starts.txt").exists()
    assert "Forecast: 0 runs" in capsys.readouterr().out
    assert sweep(there, tables="6") == 0
    again = {name.rsplit("-", 1)[0] for name in starts(there)} & {name.rsplit("-", 1)[0] for name in starts(here)}
    assert {name.split(".", 2)[2] for name in again} == {"llm.seed0", "autoregressive.alone.n50.seed0"}
    assert "2 are run again for their models, as only their results are here: " in capsys.readouterr().out


def test_a_failure_is_told_and_the_rest_goes_on(tmp_path, capsys):
    does(tmp_path, "fail", "bert4rec")
    assert sweep(tmp_path, tables="2") == 1
    assert "bert4rec" in capsys.readouterr().err
    assert len(starts(tmp_path)) == 5
    assert "1 runs failed" in (tmp_path / "report.md").read_text()
    does(tmp_path, "fail", "")
    assert sweep(tmp_path, tables="2") == 0
    assert len(starts(tmp_path)) == 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_middle_it_lets_the_run_save_and_goes_on_from_there(tmp_path, number):
    does(tmp_path, "wait", "llm.seed0")
    code = (
        "import signal, sys; from user_llm.launch import local\n"
        "for number in (signal.SIGINT, signal.SIGTERM):\n"  # a shell may have started the tests with Ctrl-C ignored
        "    signal.signal(number, signal.default_int_handler)\n"
        "sys.exit(local.main(sys.argv[2:], [sys.executable, sys.argv[1]]))"
    )
    arguments = [sys.executable, "-c", code, str(STAND_IN), "--tables=2", f"--out={tmp_path}", *FLAGS]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _wait_for((tmp_path / "waiting").exists)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "The same command goes on" in stderr
    (llm,) = tmp_path.glob("*.llm.seed0-*")
    assert (llm / "saved").exists()
    states = {name: record["state"] for name, record in json.loads((tmp_path / "runs.json").read_text()).items()}
    assert states[llm.name] == "stopped"
    finished = {name for name, state in states.items() if state == "finished"}
    assert finished == {file.stem for file in (tmp_path / "archive").iterdir()} != set()
    again = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 0, again.stderr
    assert starts(tmp_path).count(llm.name) == 2
    assert [start["stopped"] for start in json.loads((tmp_path / "starts.json").read_text())] == [True, False]
    assert "(1 of them interrupted and continued)" not in stderr


def test_a_second_launcher_ends_at_once_and_a_killed_one_s_orphan_is_waited_for(tmp_path, capsys, monkeypatch):
    """The orphan holds its folder, as a run of `user_llm.main` does, and says so with status 75."""
    monkeypatch.setattr(runner, "_BUSY_SECONDS", 0.5)
    does(tmp_path, "wait", "llm.seed0")
    code = (
        "import sys; from user_llm.launch import local; "
        "sys.exit(local.main(sys.argv[2:], [sys.executable, sys.argv[1]]))"
    )
    flags = ["--tables=2", f"--out={tmp_path}", *FLAGS, "--jobs=1"]
    first = subprocess.Popen([sys.executable, "-c", code, str(STAND_IN), *flags])
    _wait_for((tmp_path / "waiting").exists)
    for more in ([], ["--write_commands"]):
        assert local.main([*flags, *more], PYTHON) == 75
        assert f"{tmp_path} is in use by process {first.pid} on {socket.gethostname()}" in capsys.readouterr().err
    assert not list(tmp_path.glob("wave*"))
    first.kill()
    first.wait()
    note = runner.Runner._note

    def free_when_waited_for(self, name, state, message):
        note(self, name, state, message)
        if state == runner.BUSY:
            (tmp_path / "does" / "leave").touch()

    monkeypatch.setattr(runner.Runner, "_note", free_when_waited_for)
    assert local.main(flags, PYTHON) == 0
    said = capsys.readouterr().out
    (llm,) = tmp_path.glob("*.llm.seed0-*")
    assert f"{llm.name} waits: error: {llm} is in use by process " in said
    runs = [run.name for run in Plan.load(tmp_path).runs()]
    assert sorted(set(starts(tmp_path))) == sorted(runs)
    assert json.loads((tmp_path / "runs.json").read_text())[llm.name]["state"] == "finished"


def test_commands_for_a_cluster_come_in_two_waves(tmp_path, monkeypatch):
    raw = tmp_path / "ml.zip"
    zipfile.ZipFile(raw, "w").close()
    assert sweep(tmp_path, "--write_commands", "--raw", f"movielens={raw}", "--data_dir=data", tables="3,7") == 0
    assert not (tmp_path / "starts.txt").exists()
    first, second = ((tmp_path / f"wave{number}.txt").read_text().splitlines() for number in (1, 2))
    runs = [run for run in Plan.load(tmp_path).runs() if run.dataset]  # Table 3 is no run of main
    assert len(first) + len(second) == len(runs)
    for line, run in zip([*first, *second], sorted(runs, key=lambda run: bool(run.needs)), strict=True):
        *flags, workdir = shlex.split(line)
        check_overrides(["main", *flags])
        assert workdir == f"--workdir={tmp_path / run.name}"
        assert flags[-2:] == [f"--config.data.raw_path={raw}", "--config.data.data_dir=data"]
        assert flags[:-2] == run.flags(tmp_path)
        assert resolve(run.config, run.values(tmp_path)).seed == 0


def test_a_dataset_that_no_run_builds_is_asked_for_before_anything_starts(tmp_path, capsys):
    flags = ["--tables=2", "--scale=workstation", f"--out={tmp_path / 'out'}", f"--data_dir={tmp_path / 'data'}"]
    assert local.main(flags, PYTHON) == 2
    said = capsys.readouterr().err
    assert f"custom/beauty is not built ({tmp_path / 'data'}" in said
    assert "user-llm build custom/beauty --files interactions.csv" in said
    assert not (tmp_path / "out").exists()
    assert local.main([*flags, "--datasets=movielens"], PYTHON) == 0
    assert local.main([*flags, "--write_commands"], PYTHON) == 0


def test_a_scale_has_its_own_tables(tmp_path, capsys):
    flags = [f"--out={tmp_path}", "--scale=pretrained", "--write_commands"]
    assert local.main(["--tables=2", *flags], PYTHON) == 2
    assert "scale pretrained has no table 2: it has pretrained" in capsys.readouterr().err
    assert local.main(["--tables=all", "--datasets=gift_cards", *flags], PYTHON) == 2
    assert "scale pretrained has no dataset gift_cards: it has movielens" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert local.main(["--tables=all", *flags], PYTHON) == 0
    assert (Plan.load(tmp_path).tables, Plan.load(tmp_path).datasets) == (("pretrained",), ("movielens",))


def test_a_folder_of_another_sweep_is_refused(tmp_path, capsys):
    assert sweep(tmp_path, "--write_commands") == 0
    assert sweep(tmp_path, "--set", "encoder.width=32") == 2
    assert "holds a sweep of scale laptop with settings {}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--set", "strategy=enc"], "the tables give strategy its values"),
        (["--set", "strategie=enc"], "did you mean config.strategy"),
        (["--set", "steps"], "expected key=value"),
        (["--seeds=0,x"], "expected whole numbers"),
        (["--jobs=0"], "expected a whole number of at least 1"),
        (["--tables=9"], "no table 9: expected all, or some of 1,2,"),
        (["--datasets=netflix"], "no dataset netflix"),
        (["--raw", "movielens=nowhere.zip"], "movielens=nowhere.zip: no such file"),
        (["--raw", "ml.zip"], "expected DATASET=PATH"),
    ],
)
def test_wrong_arguments_are_named_and_start_nothing(tmp_path, capsys, flags, says):
    try:
        status = sweep(tmp_path, *flags)
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
