"""Options that change the whole way through, each run from raw files to results.

On one device: what meshes change is held in `tests/parallel`, in a step or two. XLA's collectives on eight virtual
devices and two cores now and then wait for one another for ever, the more so the more steps there are.
"""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from ml_collections.config_flags import config_path

import user_llm
from user_llm.checkpoints import huggingface
from user_llm.config import ConfigError
from user_llm.errors import UserError
from user_llm.experiment import experiment
from user_llm.experiment.validation import validate
from user_llm.host import Host
from user_llm.models import parameters
from user_llm.parallel.mesh import one_device
from user_llm.run import run

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

VARIANTS = {
    "text history, free beams": {
        "data.text_history": 4,
        "prompt.max_inputs": 40,
        "evaluation.constrained": False,
        "encoder.features": ("item",),
        "stages": ("encoder", "user_llm"),
    },
    "proj with a random encoder above the first layer, bf16, scanned, exact": {
        "strategy": "proj",
        "integration.every": 1,
        "integration.first_layer": 1,
        "encoder.init": "random",
        "stages": ("llm", "user_llm"),
        "compute.dtype": "bfloat16",
        "compute.frozen_dtype": "bfloat16",
        "compute.scan_layers": True,
        "compute.remat": True,
        "data.validation": False,
        "training.user_llm.keep_best": "",
        "llm.tie_embeddings": False,
        "evaluation.answers": "exact",
    },
    "items to spell, then several targets a window, taught by the encoder, some of label contexts": {
        "encoder.features": ("item",),
        "integration.spelling_steps": 2,
        "integration.newest": 3,
        "integration.targets": 4,
        "integration.whole_every": 2,
        "integration.encoder_dropout": False,
        "integration.label_contexts": 0.25,
        "integration.distillation": 0.5,
        "integration.within_catalogue": True,
        "integration.rates.encoder": 0.1,
        "integration.connector_first": 0.5,
        "integration.first_layer": 1,
        "integration.every": 1,
        "strategy": "enc",
        "training.user_llm.accumulate": 2,
    },
    "HSTU with all times, each event learnt once, all that was met left out": {
        "encoder.kind": "hstu",
        "encoder.time": "asked",
        "encoder.stride": 24,
        "evaluation.exclude": "timeline",
        "stages": ("encoder", "user_llm"),
    },
    "TextPrompt with adapters": {
        "integration.kind": "none",
        "integration.within_catalogue": True,
        "data.reader": "seqio",
        "strategy": "lora",
        "stages": ("llm", "user_llm"),
        "data.text_history": 20,
        "prompt.max_inputs": 60,
    },
    "dual encoder through a Perceiver into a soft prompt, adapters": {
        "stages": ("encoder", "user_llm"),
        "llm.checkpoint": "llm/huggingface",  # of a finished run
        "encoder.kind": "dual_encoder",
        "encoder.dual_encoder.num_outputs": 3,
        "integration.kind": "soft_prompt",
        "integration.perceiver.enabled": True,
        "integration.perceiver.num_layers": 2,
        "integration.perceiver.num_latents": 2,
        "integration.perceiver.num_heads": 2,
        "integration.task_prompt": 3,
        "strategy": "lora",
    },
    "a dual encoder of categories alone": {
        "stages": ("encoder",),
        "encoder.kind": "dual_encoder",
        "encoder.dual_encoder.label": "category",
        "training.encoder.keep_best": "loss",
    },
    "BERT4Rec alone, few users, seen items allowed": {
        "stages": ("encoder",),
        "encoder.kind": "bert4rec",
        "evaluation.max_users": 20,
        "evaluation.max_validation": 10,
        "evaluation.exclude": "nothing",
    },
}


def configured(data_dir, overrides):
    config = tiny.get_config()
    values = {"data.data_dir": str(data_dir), **overrides}
    for stage in config.stages:
        values |= {f"training.{stage}.{key}": 6 for key in ("steps", "eval_every", "checkpoint_every")}
    for key, value in values.items():
        config_path.set_value(key, config, value)
    validate(config)
    return config


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_runs_to_its_results(name, data_dir, pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "make_mesh", lambda sizes: one_device())
    values = VARIANTS[name]
    if "llm.checkpoint" in values:
        values = {**values, "llm.checkpoint": str(pretrained / values["llm.checkpoint"])}
    config = configured(data_dir, values)
    results = run(config, tmp_path / "run", Host(tensorboard=False))
    protocol = next(iter(results["protocols"].values()))
    assert protocol["users"] == (config.evaluation.max_users or 48)
    llm = "TextPrompt" if config.integration.kind == "none" else "User-LLM"
    assert (llm in protocol["rows"]) == ("user_llm" in config.stages)
    ranks_items = config.encoder.dual_encoder.label == "item"
    assert ("Encoder alone" in protocol["rows"]) == ("encoder" in config.stages and ranks_items)
    # No prompt here holds all the titles it should: what is left out is said.
    assert (results.get("dropped_events", 0) > 0) == (config.data.text_history > 0)
    for row in protocol["rows"].values():
        assert all(np.isfinite(value) for interval in row.values() for value in interval.values())
    assert (tmp_path / "run" / "user_llm" / "adapters").exists() == (config.strategy == "lora")
    assert (tmp_path / "run" / "text_states").exists() == (config.integration.first_layer > 0)
    rows = [json.loads(line) for line in (tmp_path / "run" / config.stages[-1] / "metrics.jsonl").open()]
    assert np.isfinite([row["loss"] for row in rows]).all()
    assert any(row["kind"] == "validation" for row in rows) == config.data.validation
    if config.integration.within_catalogue:
        model = user_llm.load(tmp_path / "run")
        events = [{"item": model.catalogue.titles[1], "rating": 4}]
        by_beams, of_all = (
            {answer.text: answer.score for answer in model.recommend(events, k=k, answers=answers)}
            for k, answers in ((10, "beams"), (len(model.catalogue.titles), "exact"))
        )
        assert 0.9 < sum(np.exp(list(of_all.values()))) < 1  # but for what was met
        assert by_beams == pytest.approx({title: of_all[title] for title in by_beams}, abs=1e-4)


def opened(model):
    """Its gates, which begin at zero, let everything through: the user is read whatever the training."""
    gates = {path: value + 0.5 for path, value in model.parameters.items() if path.endswith("gate_D")}
    return model.with_parameters({**model.parameters, **gates})


def test_an_encoder_that_reads_names_and_times_asks_for_the_times(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "make_mesh", lambda sizes: one_device())
    short = {f"training.{stage}.steps": 2 for stage in ("llm", "encoder", "user_llm")}
    config = configured(data_dir, {"encoder.time": "asked", "encoder.item_text": True, **short})
    run(config, tmp_path / "run", Host(tensorboard=False))
    model = user_llm.load(tmp_path / "run")
    names = np.load(tmp_path / "run" / "item_text" / "table.npy")  # as they were, whatever was trained
    np.testing.assert_array_equal(model.contextualised.parameters["encoder/embedding/item_text_IE"], names)
    assert np.abs(names).max() > 1
    titles = model.catalogue.titles[1:4]
    events = [{"item": title, "rating": 4, "time": 1e9 + 60 * place} for place, title in enumerate(titles)]
    model.contextualised = opened(model.contextualised)
    soon, late = (model.recommend(events, now=1e9 + seconds) for seconds in (121, 10**8))
    assert [answer.score for answer in soon] != [answer.score for answer in late]
    for wrong, now, message in (
        (events, None, "encoder.time='asked' reads the time of the answer: give now="),
        (events, 1e9, "now is before the event before it"),
        (events, "today", "now must be a number of seconds since 1970, got 'today'"),
        ([{**events[0], "time": None}, *events[1:]], 2e9, "event 0: its time must be a number"),
        (events[::-1], 2e9, "event 1: its time is before the event before it: give events oldest first"),
    ):
        with pytest.raises(UserError, match=message):
            model.recommend(wrong, now=now)


@pytest.fixture(scope="module")
def pretrained(tiny_run):
    """The workdir of a run that trained an encoder and a language model."""
    return tiny_run[0]


def borrowing(data_dir, pretrained, **overrides):
    places = {"llm.checkpoint": str(pretrained / "llm" / "huggingface"), "encoder.checkpoint": str(pretrained)}
    return configured(data_dir, {"strategy": "enc", **places, **overrides})


def test_encoder_and_llm_of_another_run_take_the_place_of_the_stages(data_dir, pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "make_mesh", lambda sizes: one_device())
    config = borrowing(data_dir, pretrained)
    results = run(config, tmp_path / "run", Host(tensorboard=False))
    assert not (tmp_path / "run" / "llm").exists()
    assert not (tmp_path / "run" / "encoder").exists()
    theirs = json.loads((pretrained / "results.json").read_text())
    for name, protocol in results["protocols"].items():
        assert protocol["rows"]["Encoder alone"] == theirs["protocols"][name]["rows"]["Encoder alone"]
    # The frozen LLM is to the bit the one in that folder, as Hugging Face's layout holds it.
    downloaded = huggingface.load_language_model(pretrained / "llm" / "huggingface")
    model = user_llm.load(tmp_path / "run").contextualised.parameters
    for path, value in parameters.split(downloaded)[1].items():
        np.testing.assert_array_equal(model[f"language_model/{path}"], value)


@pytest.mark.drill
def test_adapters_of_a_run_are_where_another_starts(data_dir, pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "make_mesh", lambda sizes: one_device())
    first = borrowing(data_dir, pretrained, strategy="lora", **{"lora.targets": ("q", "down")})
    run(first, tmp_path / "first", Host(tensorboard=False))
    folder = tmp_path / "first" / "user_llm" / "adapters"
    second = borrowing(
        data_dir,
        pretrained,
        **{"strategy": "lora", "lora.targets": ("q", "down"), "lora.checkpoint": str(folder)},
        **{"training.user_llm.learning_rate": 0.0},
    )
    run(second, tmp_path / "second", Host(tensorboard=False))
    trained, kept = (user_llm.load(tmp_path / name).contextualised.parameters for name in ("first", "second"))
    adapters = [path for path in trained if "/lora/" in path]
    assert len(adapters) == 8  # two layers, two targets, A and B
    for path in adapters:
        np.testing.assert_array_equal(kept[path], trained[path])
        assert np.any(trained[path]), path


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"encoder.width": 32}, r"was made with config\.encoder\.width=16, this run has 32: they must agree"),
        ({"encoder.features": ("item",)}, r"config\.encoder\.features=\['item', 'category', 'rating'\], this run has"),
        ({"data.simulated.seed": 5, "data.data_dir": "other"}, "was trained on other raw files"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(overrides, message, data_dir, pretrained, tmp_path):
    if "data.data_dir" in overrides:
        overrides = {**overrides, "data.data_dir": str(tmp_path / "data")}
    with pytest.raises(ConfigError, match=message):
        run(borrowing(data_dir, pretrained, **overrides), tmp_path / "run", Host(tensorboard=False))


def test_a_batch_the_devices_cannot_share_is_refused(data_dir, tmp_path):
    config = configured(data_dir, {"training.encoder.batch_size": 12})
    with pytest.raises(ConfigError, match=r"training\.encoder\.batch_size / accumulate = 12: .* multiple of the 8"):
        run(config, tmp_path / "run", Host(tensorboard=False))
