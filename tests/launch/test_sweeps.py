"""Every cell of every table is one that `user_llm.main` can fill, and runs that are the same are one."""

import itertools
import re
from pathlib import Path

import pytest

from user_llm.config import ConfigError
from user_llm.experiment.validation import validate
from user_llm.launch.plan import Plan
from user_llm.launch.report.paper import figures, paper_figure
from user_llm.launch.resolve import config_hash, parse_setting, resolve
from user_llm.launch.runs import EFFICIENCY, MAIN, with_needs
from user_llm.launch.scales import DATASETS, SCALES
from user_llm.launch.sweeps import TABLES, cells
from user_llm.tasks import favorite_category, next_item, review_generation, rows

CELLS = {
    (scale, table): cells(table, scale, [0, 1], settings=[("evaluation.max_users", 0)])
    for scale in SCALES
    for table in TABLES
}
RUNS = {
    scale: with_needs([run for table in TABLES for cell in CELLS[scale, table] for run in cell.runs])
    for scale in SCALES
}
every_table = pytest.mark.parametrize("table", TABLES)
every_scale = pytest.mark.parametrize("scale", SCALES)


@pytest.fixture(scope="module")
def somewhere(tmp_path_factory):
    """A folder in which what the runs leave for each other is there."""
    folder = tmp_path_factory.mktemp("somewhere")
    for run in itertools.chain(*RUNS.values()):
        for place in (folder / run.name, folder / run.name / "llm/huggingface"):
            place.mkdir(parents=True, exist_ok=True)
            (place / "config.json").write_text("{}")
    return folder


@every_scale
def test_every_run_resolves_against_the_locked_config_and_is_valid(scale, somewhere):
    for run in RUNS[scale]:
        config = resolve(run.config, run.values(somewhere))
        assert config.is_locked
        validate(config)
        if run.program == MAIN:
            assert f"{run.dataset}." in run.name
            assert f".{config.task}." in run.name
            assert len(config.stages) == 1
            if run.llm:
                assert config.prompt.max_inputs + config.prompt.max_targets <= config.llm.max_length


@every_table
def test_the_cells_are_those_of_the_paper(table):
    ours = {(cell.dataset, cell.task, cell.row, cell.column, cell.metric) for cell in CELLS["laptop", table]}
    theirs = {key[1:] for key in figures() if key[0] == TABLES[table].paper}
    lost = {("movielens", "next_item", "", "+Perceiver Enc", "recall@1")} if table == "6" else set()  # to the OCR
    assert ours - lost == theirs or table == "baselines"
    assert len(ours) == len(CELLS["laptop", table])


def test_a_cell_finds_its_figure_in_the_paper():
    (cell,) = (
        cell for cell in CELLS["paper", "fig3"] if (cell.column, cell.metric) == ("Frozen Len200 USER-LLM", "recall@10")
    )
    assert paper_figure(cell) == "0.159"
    assert all(paper_figure(cell) is None for cell in CELLS["paper", "baselines"])


@every_scale
def test_runs_of_equal_config_are_one_and_of_different_config_are_not(scale):
    by_config = {}
    for run in RUNS[scale]:
        by_config.setdefault((run.config, str(resolve(run.config, run.values(Path())))), set()).add(run.name)
    assert all(len(names) == 1 for names in by_config.values())
    assert len({run.name for run in RUNS[scale]}) == len(RUNS[scale]) == len(by_config)


def test_tables_share_runs_and_encoders_are_pretrained_once():
    wanted = [run for table in ("2", "5", "6", "7", "8") for cell in CELLS["paper", table] for run in cell.runs]
    runs = with_needs(wanted)
    full = {"2": "USER-LLM", "5": "Full", "6": "USER-LLM Full", "7": "AR50", "8": "cross-attention PT"}
    place = ("movielens", "next_item", "recall@1")
    shared = [
        cell.runs
        for table, column in full.items()
        for cell in CELLS["paper", table]
        if (cell.dataset, cell.task, cell.metric) == place and cell.column == column
    ]
    assert len(shared) == len(full)
    assert len({tuple(run.name for run in both) for both in shared}) == 1
    encoders = [run for run in runs if resolve(run.config, run.values(Path())).stages == ("encoder",)]
    # Two seeds of a dataset's dual encoder, BERT4Rec and autoregressive encoder: all tasks read the last.
    assert len(encoders) == 2 * 3 * len(DATASETS)
    readers = [run for run in runs if run.encoder and ".movielens" in f".{run.name}" and run.label.endswith("seed0")]
    assert len({run.encoder.name for run in readers if "dual_encoder" not in run.label}) == 1
    assert {run.config.rpartition(":")[2] for run in readers} == {"next_item", "favorite_category"}


@every_scale
def test_runs_stand_behind_those_they_need_which_have_their_seed(scale):
    seen = set()
    for run in RUNS[scale]:
        assert {other.name for other in run.needs} <= seen
        assert all(other.label[-1] == run.label[-1] for other in run.needs)
        seen.add(run.name)


@every_scale
def test_columns_of_a_length_read_so_many_events(scale):
    ours = SCALES[scale].lengths
    for cell in CELLS[scale, "fig3"]:
        events = ours[int(re.search(r"Len(\d+)", cell.column)[1])]
        for run in cell.runs:
            config = resolve(run.config, run.values(Path()))
            assert config.data.history_length == events
            assert config.data.text_history == (events if cell.column.endswith("TP") else 0)
            split = scale == "laptop" and config.data.text_history == 100
            assert config.training.user_llm.accumulate == (4 if split else 1)
            assert config.strategy == {"UnfrozenTP": "full", "FrozenTP": "lora", "UnfrozenUSER-LLM": "full"}.get(
                cell.column.split()[0] + cell.column.split()[2], "enc"
            )


SOURCES = {
    "next_item": {next_item.POPULARITY, next_item.CATEGORY, rows.ENCODER},
    "favorite_category": {favorite_category.MAJORITY, favorite_category.LATEST, favorite_category.DUAL_ENCODER},
    "review_generation": {review_generation.FREQUENT, review_generation.LATEST},
}


@every_scale
def test_sources_are_rows_of_the_evaluation_and_one_a_model_gives(scale):
    contextualised = {rows.USER_LLM, rows.LLM, rows.SHUFFLED}
    for table in TABLES:
        for cell in CELLS[scale, table]:
            if not cell.task:
                continue
            alone, text = (all(word in run.label for run in cell.runs) for word in ("alone", "text_prompt"))
            made = {rows.ENCODER, favorite_category.DUAL_ENCODER} if alone else contextualised
            assert cell.source in ({rows.TEXT_PROMPT} if text else made) | SOURCES[cell.task]
            assert cell.source in {rows.TEXT_PROMPT} | contextualised | SOURCES[cell.task]


def test_a_checkpoint_of_the_user_s_takes_the_place_of_our_language_model():
    settings = (("llm.checkpoint", "somewhere/llama"),)
    runs = Plan("paper", (0,), settings, ("7",), ("movielens",)).runs()
    assert not any(run.llm or ".llm." in run.label for run in runs)
    readers = [run for run in runs if "alone" not in run.label]
    assert 0 < len(readers) < len(runs)
    assert not any("llm.checkpoint" in dict(run.values(Path())) for run in runs if "alone" in run.label)
    for run in readers:
        assert dict(run.values(Path()))["llm.checkpoint"] == "somewhere/llama"
        assert "llm.max_length" not in dict(run.values(Path()))


def test_the_efficiency_measurement_is_one_run_of_its_own_program():
    (run,) = {cell.runs for cell in CELLS["laptop", "3"]}
    assert run[0].program == EFFICIENCY
    assert run[0].arguments(Path("out"))[-1] == f"--output=out/{run[0].name}/results.json"


def test_where_data_lie_and_how_a_checkpoint_is_reached_do_not_change_a_name():
    run = RUNS["laptop"][-1]
    assert run.flags(Path("here"), (("data.raw_path", "x.zip"),))[-1] == "--config.data.raw_path=x.zip"
    assert config_hash(run.config, run.values(Path())) == run.name[-8:]
    assert config_hash(run.config, (*run.values(Path()), ("evaluation.bootstrap_samples", 7))) != run.name[-8:]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("training.user_llm.steps=600", 600),
        ("encoder.dropout=0.5", 0.5),
        ("llm.tie_embeddings=false", False),
        ("encoder.features=('item',)", ("item",)),
        ("llm.checkpoint=a/b", "a/b"),
    ],
)
def test_settings_have_the_type_of_their_key(setting, value):
    assert parse_setting(setting) == (setting.partition("=")[0], value)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("strategie=enc", "did you mean config.strategy"),
        ("encoder.width=wide", "expected a whole number"),
        ("encoder.width", "expected key=value"),
        ("encoder.features=(item,", "expected a tuple"),
    ],
)
def test_a_setting_that_cannot_be_is_named(setting, says):
    with pytest.raises(ConfigError, match=says):
        parse_setting(setting)
