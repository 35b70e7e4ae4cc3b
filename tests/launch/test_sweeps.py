"""Every run of a sweep is one that `user_llm.main` takes."""

from pathlib import Path

import pytest

from launch.sweeps import SWEEPS
from user_llm import run
from user_llm.command_line import check_overrides, load
from user_llm.config import as_flag, validate

CONFIG = "configs/ml_latest_small.py"
RUNS = SWEEPS["models"](Path("runs/models"), [0, 1])


@pytest.fixture(scope="module")
def somewhere(tmp_path_factory):
    """A folder in which what the runs leave for each other is there."""
    folder = tmp_path_factory.mktemp("somewhere")
    for chosen in RUNS:
        workdir = folder / "runs/models" / chosen.name
        for place in (workdir, workdir / "llm/huggingface"):
            place.mkdir(parents=True)
            (place / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("name", [run.name for run in RUNS if run.name.endswith("seed1")])
def test_overrides_are_keys_of_the_config_and_go_together(name, somewhere, monkeypatch):
    (chosen,) = (run for run in RUNS if run.name == name)
    flags = [as_flag(key, value) for key, value in chosen.overrides.items()]
    check_overrides(["main", f"--config={CONFIG}", *flags])
    config = load(CONFIG)
    config.update_from_flattened_dict(chosen.overrides)
    monkeypatch.chdir(somewhere)
    validate(config)
    assert config.seed == 1
    assert config.prompt.max_inputs + config.prompt.max_targets <= 1024


def test_runs_need_earlier_ones_of_their_own_seed():
    seen = set()
    for chosen in RUNS:
        assert {*chosen.needs} <= seen
        assert {name[-1] for name in chosen.needs} <= {chosen.name[-1]}
        named = [value for key, value in chosen.overrides.items() if key.endswith("checkpoint")]
        assert {Path(value).relative_to("runs/models").parts[0] for value in named} == {*chosen.needs}
        seen.add(chosen.name)
    assert len(seen) == len(RUNS)


def test_rows_are_the_evaluation_s_and_every_row_has_all_seeds():
    rows = {}
    for chosen in RUNS:
        for row, theirs in chosen.rows.items():
            rows.setdefault(row, []).append((chosen.overrides["seed"], theirs))
    theirs = {run.POPULARITY, run.CATEGORY, run.ENCODER, run.USER_LLM, run.TEXT_PROMPT}
    assert {name for values in rows.values() for _, name in values} == theirs
    assert all([seed for seed, _ in values] == [0, 1] for values in rows.values())
    assert {"Popularity", "DualEnc", "BERT4Rec", "SASRec-style", "TextPrompt 10", "TextPrompt 50"} <= rows.keys()
    assert len(rows) == 20
