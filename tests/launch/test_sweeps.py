"""Every run of a sweep is one that `user_llm.main` takes."""

from pathlib import Path

import pytest

from launch.sweeps import SWEEPS
from user_llm.command_line import check_overrides, load
from user_llm.config import as_flag, validate
from user_llm.task_evaluation import common, favorite_category, next_item

# Sweep → its config.
CONFIGS = {"models": "configs/ml_latest_small.py", "favorite_category": "configs/ml_latest_small.py:favorite_category"}
SWEEP = {name: SWEEPS[name](Path("runs/sweep"), [0, 1]) for name in CONFIGS}
every_sweep = pytest.mark.parametrize("sweep", CONFIGS)


def test_every_sweep_is_tested():
    assert set(CONFIGS) == set(SWEEPS)


@pytest.fixture(scope="module")
def somewhere(tmp_path_factory):
    """A folder in which what the runs leave for each other is there."""
    folder = tmp_path_factory.mktemp("somewhere")
    for name in {run.name for runs in SWEEP.values() for run in runs}:
        workdir = folder / "runs/sweep" / name
        for place in (workdir, workdir / "llm/huggingface"):
            place.mkdir(parents=True)
            (place / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("sweep", "name"), [(sweep, run.name) for sweep in SWEEP for run in SWEEP[sweep] if run.name.endswith("seed1")]
)
def test_overrides_are_keys_of_the_config_and_go_together(sweep, name, somewhere, monkeypatch):
    (chosen,) = (run for run in SWEEP[sweep] if run.name == name)
    flags = [as_flag(key, value) for key, value in chosen.overrides.items()]
    check_overrides(["main", f"--config={CONFIGS[sweep]}", *flags])
    config = load(CONFIGS[sweep])
    config.update_from_flattened_dict(chosen.overrides)
    monkeypatch.chdir(somewhere)
    validate(config)
    assert config.seed == 1
    assert config.prompt.max_inputs + config.prompt.max_targets <= 1024


@every_sweep
def test_runs_need_earlier_ones_of_their_own_seed(sweep):
    seen = set()
    for chosen in SWEEP[sweep]:
        assert {*chosen.needs} <= seen
        assert {name[-1] for name in chosen.needs} <= {chosen.name[-1]}
        named = [value for key, value in chosen.overrides.items() if key.endswith("checkpoint")]
        assert {Path(value).relative_to("runs/sweep").parts[0] for value in named} == {*chosen.needs}
        seen.add(chosen.name)
    assert len(seen) == len(SWEEP[sweep])


ROWS = {
    "models": {next_item.POPULARITY, next_item.CATEGORY, next_item.ENCODER},
    "favorite_category": {favorite_category.MAJORITY, favorite_category.LATEST, favorite_category.DUAL_ENCODER},
}


@every_sweep
def test_rows_are_the_evaluation_s_and_every_row_has_all_seeds(sweep):
    rows = {}
    for chosen in SWEEP[sweep]:
        for row, theirs in chosen.rows.items():
            rows.setdefault(row, []).append((chosen.overrides["seed"], theirs))
    theirs = {*ROWS[sweep], common.USER_LLM, common.TEXT_PROMPT}
    assert {name for values in rows.values() for _, name in values} == theirs
    assert all([seed for seed, _ in values] == [0, 1] for values in rows.values())
    assert len(rows) == {"models": 20, "favorite_category": 6}[sweep]
