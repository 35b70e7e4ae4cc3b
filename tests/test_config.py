"""A config that cannot run is answered with the key, what was expected and the way out."""

import functools
import json
import re
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from user_llm import command_line, schema
from user_llm import config as config_lib
from user_llm.builders.families import FAMILIES
from user_llm.experiment.stages import STAGES
from user_llm.experiment.validation import problems, validate
from user_llm.keys import DEFAULTS, flatten
from user_llm.models import event_embedding, layers
from user_llm.paper import LEARNT

ROOT = Path(__file__).resolve().parents[1]


def changed(**values) -> ConfigDict:
    """The base config with dotted keys (`__` for the dot) set."""
    config = schema.get_config()
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in values.items()})
    return config


def message(config: ConfigDict) -> str:
    with pytest.raises(config_lib.ConfigError) as caught:
        validate(config)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_every_config_of_the_project_is_valid(path):
    validate(command_line.load(str(path)))


# Appendix C of the paper (Table 9): encoder pretraining, then every task; rate, decay, batch, steps.
TABLE_9 = {
    "ml20m": {
        "encoder": (1e-1, 1e-1, 32_768, 10_000),
        "next_item": (1e-3, 1e-3, 8_192, 10_000),
        "favorite_category": (1e-3, 1e-3, 1_024, 5_000),
    },
    "google_local": {
        "encoder": (1e-4, 1e-1, 16_384, 10_000),
        "next_item": (1e-3, 1e-1, 2_048, 5_000),
        "favorite_category": (1e-3, 1e-1, 2_048, 5_000),
        "review_generation": (1e-3, 1e-1, 1_024, 5_000),
    },
    "amazon": {
        "encoder": (1e-4, 1e-1, 12_800, 7_000),
        "next_item": (1e-3, 1e-1, 8_192, 10_000),
        "favorite_category": (1e-3, 1e-1, 1_024, 5_000),
        "review_generation": (1e-3, 1e-1, 2_048, 5_000),
    },
}


@pytest.mark.parametrize(("name", "task"), [(name, task) for name in TABLE_9 for task in TABLE_9[name]])
def test_the_papers_experiments_have_its_hyperparameters(name, task):
    stage = "encoder" if task == "encoder" else "user_llm"
    suffix = "" if task == "encoder" else f":{task}"
    config = command_line.load(f"{ROOT / 'configs' / name}.py{suffix}")
    validate(config)
    training = config.training[stage]
    found = training.learning_rate, training.weight_decay, training.batch_size, training.steps
    assert found == TABLE_9[name][task]
    assert config.training[stage].warmup_fraction == 0.1
    assert config.task == ("next_item" if task == "encoder" else task)


@pytest.mark.parametrize(("name", "task"), [(name, task) for name in TABLE_9 for task in list(TABLE_9[name])[1:]])
def test_what_was_learnt_is_valid_and_each_difference_to_the_paper_is_documented(name, task):
    paper, learnt = (command_line.load(f"{name}:{task}{suffix}") for suffix in ("", LEARNT))
    validate(learnt)
    found = {}
    for (key, old), (_, new) in zip(flatten(paper), flatten(learnt), strict=True):
        if old != new:
            each = [", ".join(value) if isinstance(value, tuple) else str(value) for value in (old, new)]
            found[key] = [value or "the last" for value in each]
    steps = found.get("integration.spelling_steps")
    if steps:
        assert int(steps[1]) == paper.training.user_llm.steps // 4
        steps[1] = "a quarter of the steps"
    section = (ROOT / "docs" / "reproduce.md").read_text().split("## The paper's values, and what was learnt")[1]
    every_task, next_item = section.split("\n## ")[0].split("and for the next item")
    rows = every_task + next_item if task == "next_item" else every_task
    documented = {}
    for key, old, *new in re.findall(r"^\| `(\S+)` \| (.+?) \| (.+?) \| (.+?) \|", rows, re.M):
        each = old.split(", ")  # one value for all, or one a config
        one_each = key.startswith("training") and len(each) > 1
        documented[key] = [each[list(TABLE_9).index(name)] if one_each else old, new[name != "ml20m"]]
    assert found == documented


@pytest.mark.parametrize(("name", "source"), [("ml20m", "ml_1m"), ("amazon", "amazon_beauty")])
def test_what_was_learnt_is_as_in_the_run_that_taught_it(name, source):
    learnt, source = command_line.load(f"{name}:next_item{LEARNT}"), command_line.load(source)
    for part, keys in {
        "encoder": ("features", "dropout"),
        "training.encoder": ("learning_rate", "weight_decay"),
        "integration": ("newest", "targets", "whole_every", "label_contexts", "distillation", "within_catalogue"),
        "integration.rates": ("encoder", "llm"),
        "evaluation": ("exclude",),
    }.items():
        for key in (f"{part}.{key}" for key in keys):
            assert dict(flatten(learnt))[key] == dict(flatten(source))[key], key


def test_a_task_that_a_dataset_has_not_is_refused_with_those_it_has():
    path = ROOT / "configs" / "ml20m.py"
    with pytest.raises(config_lib.ConfigError, match=r"expected one of next_item, favorite_category"):
        command_line.load(f"{path}:review_generation")
    assert "MovieLens has no reviews" in message(changed(task="review_generation"))
    dual = dict(encoder__kind="dual_encoder", encoder__dual_encoder__label="favorite_category")
    assert "is the baseline of --config.task=favorite_category" in message(changed(**dual))


def test_the_family_of_a_dataset_is_checked_and_its_config_left_to_the_builder():
    assert "did you mean 'movielens'" in message(changed(data__dataset="movielen/20m"))
    assert "family/config" in message(changed(data__dataset="movielens"))
    validate(changed(data__dataset="custom/my_shop"))


def test_every_number_and_every_name_of_the_schema_has_a_rule():
    free_text = {"name", "data.dataset", "data.raw_path", "data.data_dir", "llm.checkpoint", "llm.vocabulary"}
    free_text |= {"llm.architecture", "encoder.checkpoint", "lora.checkpoint", "evaluation.second_encoder"}
    ruled = set(config_lib.CHOICES) | free_text | {"task", "encoder.kind"}
    ruled |= {f"training.{stage}.keep_best" for stage in STAGES.names}
    for key in config_lib.RANGES:
        ruled |= {key.replace("*", stage) for stage in STAGES.names}
    for key, value in flatten(schema.get_config()):
        if type(value) in (int, float, str) and not key.startswith("compute.mesh."):
            assert key in ruled, f"config.{key} is not validated"


def test_a_value_off_its_list_is_answered_with_the_nearest():
    assert "did you mean 'next_item'" in message(changed(task="next_itme"))
    assert "did you mean 'bert4rec'" in message(changed(encoder__kind="bertrec"))
    assert "did you mean 'loss'" in message(changed(training__llm__keep_best="los"))
    said = message(changed(strategy="porj"))
    assert said == "config.strategy='porj': expected 'full' or 'lora' or 'enc' or 'proj'; did you mean 'proj'?"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (dict(encoder__num_layers=0), "config.encoder.num_layers=0: expected at least 1"),
        (dict(training__encoder__steps=10**19), "expected at least 1 that 32 bits hold"),
        (dict(lora__alpha=float("inf")), "config.lora.alpha=inf: expected at least 0.0 that 32 bits hold"),
        (dict(data__max_malformed=1.0), "config.data.max_malformed=1.0: expected between 0.0 and 0.99"),
        (dict(data__data_dir="gs://bucket/data"), "config.data.data_dir=gs://bucket/data: gs:// is an address"),
        (dict(training__llm__learning_rate=float("nan")), "config.training.llm.learning_rate=nan: expected"),
        (dict(evaluation__num_beams=5), "config.evaluation.num_beams=5: expected at least 10"),
        (dict(stages=("encoder", "llm")), "each once and in this order"),
        (dict(stages=("llm", "decoder")), "each once and in this order"),
        (dict(stages=("llm", "user_llm")), "--config.encoder.init=random"),
        (
            dict(stages=("encoder", "user_llm"), integration__rates__llm=0.0),
            "config.integration.rates.llm=0.0 freezes a language model that nothing has trained",
        ),
        (dict(stages=("encoder", "user_llm"), strategy="enc"), "--config.llm.checkpoint=FOLDER"),
        (dict(data__min_history=51), "config.data.min_history=51 is more than config.data.history_length=50"),
        (dict(data__dataset="movielens/simulated", data__raw_path="."), "writes its own files"),
        (dict(data__raw_path="/no/such.zip"), "config.data.raw_path='/no/such.zip': no such file"),
        (dict(encoder__width=100), "config.encoder.num_heads=8, as in --config.encoder.width=104"),
        (dict(encoder__features=("rating",)), "expected 'item'"),
        (dict(encoder__features=("item", "item")), "expected 'item'"),
        (dict(encoder__checkpoint="/no/such"), "expected the workdir of a finished run"),
        (
            dict(encoder__kind="dual_encoder", encoder__dual_encoder__label="category"),
            "ranks no items, so that config.training.encoder.keep_best='recall@10' cannot be had",
        ),
        (dict(integration__kind="none", strategy="enc"), "take full or lora"),
        (dict(integration__kind="none"), "set --config.data.text_history"),
        (dict(encoder__init="random", encoder__checkpoint="."), "is not read with config.encoder.init='random'"),
        (dict(integration__kind="none", encoder__checkpoint="."), "is not read with config.integration.kind='none'"),
        (dict(integration__kind="soft_prompt", integration__first_layer=2), "config.integration.first_layer=2 is for"),
        (dict(integration__first_layer=4), "config.integration.first_layer=4: expected below config.llm.num_layers=4"),
        (dict(lora__first_layer=9), "config.lora.first_layer=9: expected below config.llm.num_layers=4"),
        (
            dict(strategy="lora", lora__first_layer=1, compute__scan_layers=True),
            "config.lora.first_layer=1: scanned layers are all alike",
        ),
        (dict(evaluation__answers="exact", evaluation__constrained=False), "is for beams of an LLM alone"),
        (dict(evaluation__answers="fused", stages=("llm", "user_llm"), encoder__init="random"), "trained encoder"),
        (dict(evaluation__second_encoder="."), "is a control of fused answers"),
        (dict(evaluation__cold_share=0.1, task="favorite_category"), "is for answers that are items"),
        (dict(evaluation__cold_share=0.1, encoder__checkpoint="."), "may have learnt of these items"),
        (
            dict(evaluation__answers="fused", data__validation=False, training__encoder__keep_best=""),
            "is fitted on validation windows",
        ),
        (dict(integration__label_contexts=0.2), "is for encoders of items alone"),
        (dict(integration__distillation=0.5), "is for encoders of items alone"),
        (dict(integration__targets=4, task="favorite_category"), "is for answers that are an event's title"),
        (
            dict(integration__targets=4, integration__perceiver__enabled=True),
            "is for all embeddings: set --config.integration.perceiver.enabled=false",
        ),
        (dict(integration__targets=4, encoder__kind="bert4rec"), "is for causal encoders"),
        (dict(integration__targets=4, data__text_history=4), "config.integration.targets=4 is for texts without"),
        (
            dict(integration__targets=4, integration__label_contexts=0.2, data__reader="seqio"),
            "config.integration.targets=4 is for the reader windows",
        ),
        (dict(integration__newest=1, integration__kind="none"), "reads no embeddings, of which"),
        (dict(integration__newest=51), "config.integration.newest=51 is more than config.data.history_length=50"),
        (dict(integration__newest=1, encoder__kind="dual_encoder"), "is for encoders with an embedding an event"),
        (dict(encoder__softmax="sampled", encoder__kind="dual_encoder"), "set --config.encoder.softmax=full"),
        (dict(integration__spelling_steps=3), "config.integration.spelling_steps=3 is for encoders of items alone"),
        (dict(integration__spelling_steps=1000), "expected fewer than config.training.user_llm.steps="),
        (
            dict(integration__targets=4, integration__whole_every=3),
            "expected a divisor of config.integration.targets=4",
        ),
        (dict(integration__within_catalogue=True, task="favorite_category"), "is for answers that are items"),
        (dict(integration__within_catalogue=True, evaluation__constrained=False), "free beams know no catalogue"),
        (dict(integration__targets=51), "config.integration.targets=51 is more than config.data.history_length=50"),
        (dict(integration__kind="none", integration__perceiver__enabled=True), "leave it out"),
        (dict(integration__perceiver__num_heads=3), "expected a multiple of config.integration.perceiver.num_heads=3"),
        (dict(lora__targets=("q", "query")), "config.lora.targets=('q', 'query'): expected some of ('q',"),
        (dict(lora__checkpoint="/no/such", strategy="lora"), "expected a folder of PEFT adapters"),
        (dict(lora__checkpoint="/no/such"), "is for strategy lora; this one is 'full'"),
        (dict(lora__targets=("v", "q")), "each once and in this order"),
        (dict(llm__vocabulary="/no/such.model"), "expected tokenizer.model, tokenizer.json or their folder"),
        (dict(llm__checkpoint="/no/such"), "expected organisation/model of the hub, or a folder with config.json"),
        (dict(llm__architecture="/no/such.json"), "expected a Hugging Face config.json, as"),
        (
            dict(llm__num_kv_heads=3),
            "config.llm.num_heads=4: expected a multiple of config.llm.num_kv_heads=3",
        ),
        (dict(llm__head_dim=31), "expected an even number"),
        (dict(llm__max_length=55), "config.prompt.max_inputs=32 and config.prompt.max_targets=24 together"),
        (
            dict(data__shards=3),
            "config.training.llm.batch_size=128: expected a multiple of config.data.shards=3",
        ),
        (dict(data__shards=2, data__reader="seqio"), "config.data.shards=2 is for the reader windows"),
        (dict(data__text_history=60), "is more than config.data.history_length=50"),
        (dict(compute__remat=True), "add --config.compute.scan_layers=true"),
        (dict(compute__mesh__fsdp=0), "config.compute.mesh.fsdp=0: expected a number of devices"),
        (dict(compute__mesh__fsdp=-1), "one axis at most can be -1"),
        (
            dict(training__encoder__accumulate=3),
            "expected a multiple of config.training.encoder.accumulate=3",
        ),
        (dict(training__encoder__eval_every=0), "needs an evaluation at every checkpoint"),
        (dict(training__encoder__eval_every=300), "needs an evaluation at every checkpoint"),
        (dict(data__validation=False), "needs validation windows"),
    ],
)
def test_what_cannot_run_is_named_with_the_fix(values, expected):
    assert expected in message(changed(**values))


@pytest.mark.parametrize(
    "values",
    [
        dict(data__min_history=50),
        dict(compute__scan_layers=True, compute__remat=True, integration__every=2),
        dict(stages=("user_llm",), encoder__init="random"),
        dict(data__validation=False, training__encoder__keep_best="", training__user_llm__keep_best=""),
        dict(llm__max_length=56),
        dict(stages=("llm", "user_llm"), integration__kind="none", strategy="lora", data__text_history=1),
        dict(llm__checkpoint="organisation/model", stages=("encoder", "user_llm"), strategy="lora"),
    ],
)
def test_what_can_run_passes(values):
    validate(changed(**values))


def test_a_checkpoint_takes_the_place_of_the_dimensions(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    validate(changed(llm__checkpoint=str(tmp_path), llm__num_kv_heads=3))


def test_an_encoder_of_another_run_takes_the_place_of_the_stage(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    validate(changed(encoder__checkpoint=str(tmp_path), stages=("llm", "user_llm")))


def test_dimensions_come_from_one_place(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    both = changed(llm__checkpoint=str(tmp_path), llm__architecture=str(tmp_path / "config.json"))
    assert "leave one of the two out" in message(both)


def test_what_another_run_will_leave_need_not_be_there():
    config = changed(encoder__checkpoint="/not/yet", lora__checkpoint="/no/such", strategy="lora")
    (problem,) = problems(config, awaited=("encoder.checkpoint",))
    assert problem.startswith("config.lora.checkpoint='/no/such': no adapter_config.json there")


def test_a_raw_file_is_a_zip(tmp_path):
    (tmp_path / "ml.zip").write_text("no zip")
    assert "is no zip, or a damaged one" in message(changed(data__raw_path=str(tmp_path / "ml.zip")))
    with zipfile.ZipFile(tmp_path / "ml.zip", "w"):
        pass
    validate(changed(data__raw_path=str(tmp_path / "ml.zip")))


def test_a_config_from_json_is_the_same_config():
    validate(ConfigDict(json.loads(schema.get_config().to_json_best_effort())))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from([10**400, -(10**19)]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", min_size=1, max_size=2), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(DEFAULTS)), VALUES), min_size=1, max_size=3))
def test_whatever_a_key_holds_it_is_taken_or_answered(changes):
    values = json.loads(schema.get_config().to_json_best_effort())
    for key, value in changes:
        *groups, name = key.split(".")
        functools.reduce(dict.__getitem__, groups, values)[name] = value
    assert all(isinstance(line, str) and line.count("\n") == 0 for line in problems(ConfigDict(values)))


def test_keys_that_are_not_the_schema_s_are_told_before_any_is_looked_up():
    values = json.loads(schema.get_config().to_json_best_effort())
    values["encoder"]["witdh"] = 3
    values["seed"] = "zero"
    del values["llm"]["width"], values["evaluation"]
    heading, *lines = message(ConfigDict(values)).splitlines()
    assert heading == "3 values cannot be used:"
    assert sorted(line.strip().split(":")[0] for line in lines) == [
        "config.encoder.witdh",
        "config.seed='zero'",
        "it lacks evaluation.answers, evaluation.batch_size, evaluation.bootstrap_samples and 9 more",
    ]


def test_all_problems_are_told_at_once():
    said = message(changed(encoder__width=100, llm__head_dim=31)).splitlines()
    assert said[0] == "2 values cannot be used:"
    assert len(said) == 3


def test_the_names_of_parts_are_those_of_the_models():
    assert config_lib.FEATURES == event_embedding.FEATURES
    assert tuple(layers.PROJECTIONS) == config_lib.PROJECTIONS


def test_the_families_are_those_that_can_be_built():
    assert set(config_lib.FAMILIES) == set(FAMILIES)
