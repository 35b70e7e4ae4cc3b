"""Every cell of every table is one that `user_llm.main` can fill, and runs that are the same are one."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from tests.timelines import make_table
from user_llm.config import ConfigError, whole_titles
from user_llm.data.windows import Windows
from user_llm.experiment.validation import validate
from user_llm.launch.plan import Plan
from user_llm.launch.report.paper import figures, paper_figure
from user_llm.launch.resolve import config_hash, parse_setting, resolve
from user_llm.launch.runs import EFFICIENCY, MAIN, with_needs
from user_llm.launch.scales import BUILDS, DATASETS, SCALES, STANDS_FOR
from user_llm.launch.sweeps import TABLES, cells, most_informative_first, tables_of
from user_llm.shipped import config_file
from user_llm.tasks import cold_items, favorite_category, next_item, review_generation, rows

__all__ = ["make_table"]

CELLS = {
    (scale, table): cells(table, scale, [0, 1], settings=[("evaluation.bootstrap_samples", 1000)])
    for scale in SCALES
    for table in tables_of(scale)
}
RUNS = {
    scale: with_needs([run for table in tables_of(scale) for cell in CELLS[scale, table] for run in cell.runs])
    for scale in SCALES
}
every_table = pytest.mark.parametrize("table", tables_of("laptop"))
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
            assert len(config.stages) == (3 if config.evaluation.cold_share else 1)
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
    assert len(encoders) == 2 * 3 * len(SCALES["paper"].settings)
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


@pytest.mark.parametrize("scale", ["paper", "laptop", "workstation"])
def test_columns_of_a_length_read_so_many_events(scale):
    ours, long_text = SCALES[scale].lengths, {"paper": 200, "laptop": 50, "workstation": 50}[scale]
    for cell in CELLS[scale, "fig3"]:
        events = ours[int(re.search(r"Len(\d+)", cell.column)[1])]
        for run in cell.runs:
            config = resolve(run.config, run.values(Path()))
            assert config.data.history_length == events
            assert config.data.text_history == (events if cell.column.endswith("TP") else 0)
            split = config.data.text_history > long_text
            assert config.training.user_llm.accumulate == (4 if split else 1)
            assert config.strategy == {"UnfrozenTP": "full", "FrozenTP": "lora", "UnfrozenUSER-LLM": "full"}.get(
                cell.column.split()[0] + cell.column.split()[2], "enc"
            )


SOURCES = {
    "next_item": {
        *(next_item.POPULARITY, next_item.CATEGORY, next_item.FOLLOWERS, next_item.SIMILAR),
        *(rows.ENCODER, rows.RERANKED, rows.FUSED, rows.TWO_ENCODERS),
    },
    "favorite_category": {favorite_category.MAJORITY, favorite_category.LATEST, favorite_category.DUAL_ENCODER},
    "review_generation": {review_generation.FREQUENT, review_generation.LATEST},
}


@every_scale
def test_sources_are_rows_of_the_evaluation_and_one_a_model_gives(scale):
    contextualised = {rows.USER_LLM, rows.LLM, rows.SHUFFLED}
    for table in tables_of(scale):
        for cell in CELLS[scale, table]:
            if not cell.task:
                continue
            alone, text = (all(word in run.label for run in cell.runs) for word in ("alone", "text_prompt"))
            made = {rows.ENCODER, favorite_category.DUAL_ENCODER} if alone else contextualised
            assert cell.source in ({rows.TEXT_PROMPT} if text else made) | SOURCES[cell.task]
            assert cell.source in {rows.TEXT_PROMPT} | contextualised | SOURCES[cell.task]


def config_of(run):
    return resolve(run.config, run.values(Path()))


def test_the_most_informative_tables_run_first_and_nothing_is_lost():
    assert most_informative_first(tables_of("workstation"))[:6] == ["2", "5", "8", "7", "fig3", "1"]
    wanted = ("2", "4", "7", "fig3")
    runs = Plan("workstation", (0, 1), (), wanted, DATASETS).runs()
    place = {run.name: number for number, run in enumerate(runs)}
    ends = {}
    for table in wanted:
        names = {run.name for cell in cells(table, "workstation", [0]) for run in cell.runs}
        assert names <= set(place)
        ends[table] = max(place[name] for name in names)
    assert ends["2"] < ends["7"] < ends["fig3"] < ends["4"]  # though 4 stands before 7 in the report
    assert all(place[run.name] > ends["4"] for run in runs if ".seed1-" in run.name)


@pytest.mark.parametrize("scale", ["paper", "laptop", "workstation"])
def test_every_length_has_the_same_test_users(scale, make_table):
    """The split's own rule, on users of every length around the histories', under the keys that choose among them."""
    table = make_table([*range(1, 60), 99, 100, 101, 102, 199, 200, 201, 202, 300])
    asked, keys = {}, set()
    for run in {run for cell in CELLS[scale, "fig3"] for run in cell.runs if run.label.endswith("seed0")}:
        config = config_of(run)
        data, evaluation = config.data, config.evaluation
        windows = Windows(table, history_length=data.history_length, split="test", min_history=data.min_history or None)
        asked[data.history_length] = tuple(windows.gather(np.arange(len(windows)))["user"].tolist())
        keys.add((data.dataset, data.min_history, data.validation, evaluation.max_users, evaluation.exclude))
    assert len(asked) == 3
    assert len(keys) == 1
    if scale == "paper":  # whose histories are all full: users differ, and are compared length by length
        assert len(set(asked.values())) == 3
    else:
        (users,) = set(asked.values())
        assert len(users) == table.num_users - 1  # all who have an event before the one that is asked for


def test_what_the_paper_compares_has_seen_as_many_texts_but_for_long_prompts():
    for task in ("next_item", "favorite_category"):
        texts = {}
        for run in RUNS["workstation"]:
            config = config_of(run)
            if config.task == task and config.stages == ("user_llm",) and ".text_prompt." not in run.name:
                training = config.training.user_llm
                texts.setdefault(run.dataset, set()).add(training.steps * training.batch_size * whole_titles(config))
        assert set(texts) == {"movielens", "amazon_reviews"}
        assert all(len(numbers) == 1 for numbers in texts.values()), texts


def test_what_learns_from_labels_keeps_the_least_loss_on_them():
    """`amazon_beauty` keeps the last step of an LLM that learns from its encoder."""
    kept = set()
    for run in RUNS["workstation"]:
        config = config_of(run)
        if config.stages == ("user_llm",) and config.training.user_llm.learning_rate and run.dataset != "movielens":
            kept.add((bool(config.integration.distillation), config.training.user_llm.keep_best))
    assert kept == {(True, ""), (False, "loss")}


def test_what_strategies_train_can_move():
    for scale, runs in RUNS.items():
        rates = {config.integration.rates.encoder for config in map(config_of, runs) if config.stages == ("user_llm",)}
        assert min(rates) > 0, scale


def test_each_kind_of_encoder_of_a_length_learns_its_own_windows_and_as_many_events():
    events = set()
    for cell in CELLS["workstation", "fig3"]:
        for run in cell.runs:
            if run.encoder:
                config = config_of(run.encoder)
                assert config.encoder.stride == config.data.history_length
                events.add(config.training.encoder.batch_size * config.data.history_length)
    assert len(events) == 1
    towers = [run for run in RUNS["workstation"] if "dual_encoder.alone" in run.name]
    assert towers
    assert {config_of(run).encoder.stride for run in towers} == {1}


def test_a_dataset_beside_the_paper_s_has_the_paper_s_figures():
    (cell,) = (cell for cell in CELLS["workstation", "5"] if cell.dataset == "gift_cards" and cell.column == "Enc")
    assert paper_figure(cell) == "24.30"
    assert (cell.task, STANDS_FOR[cell.dataset]) == ("review_generation", "amazon_reviews")
    assert {cell.dataset for cell in CELLS["workstation", "2"]} == {"movielens", "amazon_reviews"}


def test_only_the_paper_s_user_llm_is_asked_with_its_encoder():
    fused = {run.label for run in RUNS["workstation"] if config_of(run).evaluation.answers == "fused"}
    assert fused == {
        f"{dataset}.next_item.autoregressive.cross_attention.full.n50.seed{seed}"
        for dataset in ("movielens", "amazon_reviews")
        for seed in (0, 1)
    } | {
        f"{dataset}.next_item.autoregressive.cross_attention.cold.full.n50.seed0"
        for dataset in ("movielens", "amazon_reviews")
    }


def test_what_is_asked_about_new_items_learns_as_user_llm_does_and_from_nothing_that_knows_them():
    found = CELLS["workstation", "cold"]
    assert {cell.row: cell.protocol for cell in found} == {
        "among all": cold_items.AMONG_ALL,
        "among the cold": cold_items.AMONG_COLD,
    }
    usual = {cell.dataset: cell.runs[0] for cell in CELLS["workstation", "2"] if cell.column == "USER-LLM"}
    for run in {run for cell in found for run in cell.runs}:
        assert not run.needs
        config, other = config_of(run), config_of(usual[run.dataset])
        assert config.stages == ("llm", "encoder", "user_llm")
        assert config.evaluation.cold_share == 0.05
        for parts in (config, other):
            parts.evaluation.cold_share = 0.0
            parts.encoder.checkpoint = parts.llm.checkpoint = ""
            parts.stages = ()
        assert config == other
    assert "cold" not in tables_of("laptop")


def test_a_zero_shot_prompt_moves_nothing():
    (run,) = {cell.runs[0] for cell in CELLS["pretrained", "pretrained"] if cell.column == "TP zero-shot"}
    training = config_of(run).training.user_llm
    assert (training.steps, training.learning_rate) == (1, 0.0)
    assert config_of(run).strategy == "lora"  # whose adapters begin at nothing


def test_a_setting_reaches_the_runs_that_read_it():
    settings = (("llm.checkpoint", "a/b"), ("llm.trim_vocabulary", True), ("integration.first_layer", 12))
    runs = Plan("pretrained", (0,), settings, ("pretrained",), ("movielens",)).runs()
    assert len(runs) == 5
    for run in runs:
        config = config_of(run)
        encoder, text = config.stages == ("encoder",), config.integration.kind == "none"
        assert config.llm.trim_vocabulary == (not encoder)
        assert config.integration.first_layer == (0 if encoder or text else 12)


def test_a_budget_of_the_user_s_is_what_the_tables_make_theirs_of():
    settings = (("training.user_llm.steps", 64), ("integration.spelling_steps", 5), ("evaluation.answers", "beams"))
    runs = Plan("workstation", (0,), settings, ("7",), ("movielens",)).runs()
    found = {run.label.split(".", 2)[2]: config_of(run) for run in runs if config_of(run).stages == ("user_llm",)}
    steps = {
        label: (config.training.user_llm.steps, config.integration.spelling_steps) for label, config in found.items()
    }
    assert steps == {
        "autoregressive.cross_attention.full.n50.seed0": (64, 5),
        "autoregressive.cross_attention.text_short.full.n50.seed0": (64, 0),
        "text_prompt.short.full.n50.seed0": (64, 0),
        "text_prompt.all.full.n50.seed0": (
            64 // dict(SCALES["workstation"].settings["movielens"]["next_item"].fewer)[50],
            0,
        ),
    }
    assert {config.evaluation.answers for config in found.values()} == {"beams"}
    favorites = Plan("workstation", (0,), settings, ("6",), ("movielens",)).runs()
    assert {config_of(run).integration.spelling_steps for run in favorites if ".favorite_category." in run.name} == {0}


def test_commands_that_build_a_dataset_are_those_of_its_config():
    said = " ".join(Path(config_file("amazon_beauty")).read_text().replace("\\\n", " ").split())
    assert BUILDS["custom/beauty"] in said


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
