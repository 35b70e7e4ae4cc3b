"""Wrong command lines and damaged folders of `user-llm sweep` and `report`: refused in words, nothing written.

Programs are started by none of them; what becomes of runs is in `tests/launch`.
"""

import json
import shlex
import zipfile

import pytest

from user_llm.launch import local
from user_llm.launch.plan import Plan
from user_llm.launch.report import __main__ as report

SWEEP = "--tables=5 --scale=laptop --datasets=movielens"
LLM = "movielens.next_item.llm.seed0-"

# Flags of `user-llm sweep`, besides those of SWEEP and --out=F/out → what is said. Status 2: nothing was started.
FLAGS = {
    "g7_set_neg": (
        "--set training.encoder.steps=-3",
        "config.training.encoder.steps=-3: expected at least 1",
        "(run mo",
    ),
    "g7_set_heads": (
        "--set encoder.num_heads=5",
        "config.encoder.width=64: expected a multiple of config.encoder.nu",
    ),
    "several at once": (
        "--seeds=0,1 --set llm.num_heads=0 training.llm.learning_rate=nan",
        "2 values cannot be used:",
        f"config.llm.num_heads=0: expected at least 1 (run {LLM}",
        f"config.training.llm.learning_rate=nan: expected at least 0.0 (run {LLM}",
    ),
    "for one stage alone": ("--set training.user_llm.accumulate=7", "(run movielens.next_item.autoregressive.cross"),
    "g7_neg_seed": ("--seeds=-1,0", "config.seed=-1: expected between 0 and 4294967295"),
    "g7_huge_seed": ("--seeds=99999999999999", "config.seed=99999999999999: expected between 0 and 4294967295"),
    "no seed": ("--seeds=", "expected whole numbers with commas between them"),
    "g7_raw_wrongtype": (
        "--raw movielens=/etc/passwd",
        "config.data.raw_path='/etc/passwd' is no zip, or a damaged",
    ),
    "no raw file": ("--raw movielens=F/none.zip", "no such file"),
    "an unknown key": (
        "--set encoder.witdh=3",
        "--set encoder.witdh=3: config.encoder.witdh: no such key; did you",
    ),
    "another type": ("--set encoder.width=wide", "config.encoder.width='wide': expected a whole number"),
    "twice": ("--set encoder.width=32 encoder.width=64", "--set encoder.width: it has 2 values; name one"),
    "no value": ("--set encoder.width", "expected key=value"),
    "of the tables": ("--set seed=3", "the tables give seed its values"),
    "no such checkpoint": ("--set llm.checkpoint=F/none", "config.llm.checkpoint='F/none': no config.json there"),
    "a bucket for data": ("--data_dir=gs://b/data", "config.data.data_dir=gs://b/data: gs:// is an address"),
    "a bucket for the sweep": ("--out=s3://b/sweep", "s3:// is an address", "mount the bucket"),
    "no folder": ("--out=", "expected the name of a folder"),
    "g7_out_is_workdir": ("--out=F/run", "F/run holds a run, no sweep (config.json is there, sweep.json is not): name"),
}

# --out → what is said of it, status 1.
FOLDERS = {
    "g7_out_file": ("F/file", "F/file is a file: expected a folder, or the name of a new one"),
    "below a file": ("F/file/out", "F/file/out cannot be written to"),
    "g7_out_proc": ("/proc/x", "/proc/x cannot be written to (No such file or directory): name another folder"),
}

GARBAGE = {
    "no JSON": "{",
    "nothing": "",
    "null": "null",
    "a number": "3",
    "a list": "[1]",
    "another object": '{"a": 1}',
    "not UTF-8": b"\xff\xfe",
}

GOOD = {
    "corrected": "--set training.encoder.steps=30",
    "several seeds": "--seeds=0,1,4294967295",
    "a zip": "--raw movielens=F/ml.zip",
    "a folder of raw files": "--raw movielens=F/run",
    "a language model": "--set llm.checkpoint=organisation/model",
    "a tuple": "--set \"lora.targets=('q','k')\"",
}


@pytest.fixture
def launched(tmp_path, capsys):
    """Calls `user-llm sweep` with F for a scratch folder; returns its status and all that it said."""
    (tmp_path / "file").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    zipfile.ZipFile(tmp_path / "ml.zip", "w").close()

    def call(line, main=local.main):
        try:
            status = main([word.replace("F/", f"{tmp_path}/") for word in shlex.split(line)])
        except SystemExit as end:
            status = end.code
        written = capsys.readouterr()
        return status, (written.out + written.err).replace(f"{tmp_path}/", "F/")

    return call


def contents(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def put(path, garbage):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(garbage if isinstance(garbage, bytes) else garbage.encode())


@pytest.mark.parametrize("fault", FLAGS)
def test_what_cannot_be_is_never_remembered(fault, launched, tmp_path):
    line, *words = FLAGS[fault]
    before = contents(tmp_path)
    for more in ("", " --write_commands"):
        status, said = launched(f"{SWEEP} --out=F/out {line}{more}")
        assert status == 2
        for word in ("error: ", *words):
            assert word in said
        assert contents(tmp_path) == before


@pytest.mark.parametrize("fault", FOLDERS)
def test_a_folder_that_cannot_be_is_named(fault, launched, tmp_path):
    out, *words = FOLDERS[fault]
    before = contents(tmp_path)
    for more in ("", " --write_commands"):
        status, said = launched(f"{SWEEP} --out={out}{more}")
        assert status == 1
        for word in ("error: ", *words):
            assert word in said
        assert contents(tmp_path) == before


@pytest.mark.parametrize("case", GOOD)
def test_what_is_right_is_written(case, launched, tmp_path):
    launched(f"{SWEEP} --out=F/out --set training.encoder.steps=-3 --write_commands")  # leaves nothing behind
    assert launched(f"{SWEEP} --out=F/out {GOOD[case]} --write_commands") == (0, "F/out/wave1.txt\nF/out/wave2.txt\n")
    assert Plan.load(tmp_path / "out").scale == "laptop"


WHOLE = {"scale": "laptop", "seeds": [0], "settings": [], "tables": ["5"], "datasets": ["movielens"]}
SWEEPS = GARBAGE | {
    "no tables": json.dumps({**WHOLE, "tables": None}),
    "an unknown table": json.dumps({**WHOLE, "tables": ["5", "99"]}),
    "an unknown scale": json.dumps({**WHOLE, "scale": "large"}),
    "a seed of another type": json.dumps({**WHOLE, "seeds": ["zero"]}),
    "a setting that is none": json.dumps({**WHOLE, "settings": [["encoder.witdh", 3]]}),
    "a setting of another type": json.dumps({**WHOLE, "settings": [["encoder.width", "wide"]]}),
}


@pytest.mark.parametrize("garbage", SWEEPS)
def test_g7_sweepjson_garbage(garbage, launched, tmp_path):
    put(tmp_path / "out" / "sweep.json", SWEEPS[garbage])
    for line, main in ((f"{SWEEP} --out=F/out", local.main), ("--out=F/out", report.main)):
        status, said = launched(line, main)
        assert status == 2
        assert said.startswith("error: F/out/sweep.json is damaged (")
        assert "delete it and start the launcher again" in said


@pytest.mark.parametrize("name", ["runs.json", "starts.json"])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_g7_runsjson_garbage(garbage, name, launched, tmp_path):
    put(tmp_path / "out" / name, GARBAGE[garbage])
    status, said = launched(f"{SWEEP} --out=F/out")
    assert status == 1
    assert said.startswith(f"error: F/out/{name} is damaged (")
    assert "delete it; only" in said
    assert not (tmp_path / "out" / "logs").exists()


@pytest.mark.parametrize("name", ["results.json", "predictions.jsonl", "user_llm/metrics.jsonl"])
@pytest.mark.parametrize("garbage", ["no JSON", "a list", "not UTF-8"])
def test_g7_report_garbage(garbage, name, launched, tmp_path):
    assert launched(f"{SWEEP} --out=F/out --write_commands")[0] == 0
    run = next(run for run in Plan.load(tmp_path / "out").runs() if "full" in run.label)
    found = {"training": {}, "provenance": {"commit": "", "dataset": "", "device": {}, "python": "", "versions": {}}}
    put(tmp_path / "out" / run.name / "results.json", json.dumps(found))
    text = GARBAGE[garbage]
    put(tmp_path / "out" / run.name / name, text + (b"\n" if isinstance(text, bytes) else "\n"))
    status, said = launched("--out=F/out", report.main)
    assert status == 2
    assert said.startswith(f"error: F/out/{run.name}/")
    assert f"delete F/out/{run.name} and start the sweep again" in said


def test_no_sweep_has_no_report(launched):
    status, said = launched("--out=F/run", report.main)
    assert status == 2
    assert said == "error: F/run has no sweep.json: name the --out of a sweep that user-llm sweep ran\n"
