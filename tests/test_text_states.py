"""States kept in a workdir: the same losses and answers as without them, and never those of other weights or texts."""

import dataclasses
import importlib.util
import logging
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections.config_flags import config_path

from user_llm.checkpoints.transfer import initialise
from user_llm.data.sources import UserLLMSource
from user_llm.experiment import text_states
from user_llm.experiment.experiment import Experiment
from user_llm.experiment.prepare import prepare
from user_llm.experiment.stages import STAGES
from user_llm.experiment.text_states import make_states, open_states, with_states
from user_llm.models import parameters
from user_llm.models.model import Model
from user_llm.parallel.mesh import make_mesh, one_device
from user_llm.tasks import TASKS

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parent / "end_to_end" / "tiny.py")
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

FROZEN = {"strategy": "enc", "integration.every": 1, "integration.first_layer": 1}
STAGE = STAGES["user_llm"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data folder, and a workdir with catalogue and vocabulary, which are the same for all configs here."""
    data_dir, workdir = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("prepared")
    prepare(Experiment(configured(data_dir), workdir, one_device()))
    return data_dir, workdir


def configured(data_dir, **overrides):
    config = tiny.get_config()
    for key, value in {"data.data_dir": str(data_dir), **FROZEN, **overrides}.items():
        config_path.set_value(key, config, value)
    return config


@pytest.fixture
def make(prepared, tmp_path):
    def make(mesh=None, name="run", **overrides) -> tuple[Experiment, Model]:
        data_dir, before = prepared
        workdir = tmp_path / name
        shutil.copytree(before, workdir)
        experiment = Experiment(configured(data_dir, **overrides), workdir, mesh or one_device())
        build = experiment.assembly.user_llm
        return experiment, Model(*initialise(build, 0, experiment.mesh, values_for(build)), experiment.mesh)

    return make


def values_for(build) -> dict[str, np.ndarray]:
    """Gates open, logits that differ. NumPy's values, to spare compilations."""
    generator, shapes = np.random.default_rng(1), parameters.split(parameters.abstract(build))[1]
    return {path: generator.normal(size=v.shape).astype(v.dtype) * 0.3 for path, v in sorted(shapes.items())}


def loss(experiment, model, reader) -> float:
    return STAGE.validation(experiment, STAGE.objective(experiment), reader)(model)["loss"]


def plain(source):
    return source


def test_losses_gradients_and_answers_are_those_of_the_plain_model(make):
    experiment, model = make(task="next_item,favorite_category")
    expected = loss(experiment, model, plain)
    expected_answers = answers(experiment, model)
    reader = STAGE.reader(experiment, model)
    source = experiment.answered_prompts("train")
    batch = reader(source).gather(np.arange(0, len(source), len(source) // 7))
    assert batch["decoder_states"].shape == (*batch["decoder_input_tokens"].shape, experiment.config.llm.width)
    assert loss(experiment, model, reader) == pytest.approx(expected, abs=1e-5)
    states = experiment.text_states("next_item", model)
    assert states is not None
    assert experiment.text_states("next_item", model) is states
    assert experiment.text_states("next_item", changed(model, "language_model/layers/0/mlp/down_FD", 0.1)) is None
    for found, wanted in zip(answers(experiment, model), expected_answers, strict=True):
        assert [answer.text for answer in found] == [answer.text for answer in wanted]
        np.testing.assert_allclose([a.score for a in found], [a.score for a in wanted], atol=1e-4)


def answers(experiment, model) -> list[list]:
    """Of some users, by beams and exactly, and their favourite categories."""
    found = []
    for task, k in (("next_item", 10), ("next_item", 101), ("favorite_category", 3)):
        asked = experiment.source(task, "test").gather(np.arange(3))
        found += TASKS[task].asker(experiment, model, k)(asked)
    return found


def test_several_devices_read_them_too(make):
    experiment, model = make(make_mesh({"data": 2, "fsdp": 2, "tensor": 2}))
    expected = loss(experiment, model, plain)
    reader = STAGE.reader(experiment, model)
    assert loss(experiment, model, reader) == pytest.approx(expected, abs=1e-5)
    asked = experiment.source("next_item", "test").gather(np.arange(8))
    kept = TASKS["next_item"].asker(experiment, model, 10)(asked)
    (experiment.workdir / text_states.FOLDER / "next_item" / "facts.json").unlink()
    anew = Experiment(experiment.config, experiment.workdir, experiment.mesh)
    assert anew.text_states("next_item", model) is None
    for found, wanted in zip(kept, TASKS["next_item"].asker(anew, model, 10)(asked), strict=True):
        assert [answer.text for answer in found] == [answer.text for answer in wanted]


def changed(model, path, by):
    return model.with_parameters({**model.parameters, path: model.parameters[path].at[..., -1].add(by)})


@pytest.mark.parametrize("path", ["embedding_VD", "layers/0/mlp/down_FD"])
def test_other_weights_are_never_answered_with(make, path):
    experiment, model = make()
    make_states(experiment, model)
    first = open_states(experiment, "next_item", model).table.copy()
    other = changed(model, f"language_model/{path}", 0.1)
    assert open_states(experiment, "next_item", other) is None
    make_states(experiment, other)
    assert np.abs(open_states(experiment, "next_item", other).table - first).max() > 1e-3
    assert open_states(experiment, "next_item", model) is None


def test_weights_above_may_change(make):
    experiment, model = make()
    make_states(experiment, model)
    for path in (
        "language_model/layers/1/mlp/down_FD",
        "language_model/final_norm/scale_D",
        "encoder/final_norm/scale_D",
    ):
        assert open_states(experiment, "next_item", changed(model, path, 1.0)) is not None


def test_other_titles_are_never_answered_with(make):
    experiment, model = make()
    make_states(experiment, model)
    titles = [*experiment.catalogue.titles]
    renamed = Experiment(experiment.config, experiment.workdir, experiment.mesh)
    renamed.catalogue = dataclasses.replace(renamed.catalogue, titles=[*titles[:-1], titles[-1] + " II"])
    assert open_states(renamed, "next_item", model) is None
    assert open_states(Experiment(experiment.config, experiment.workdir, experiment.mesh), "next_item", model)


def test_a_second_start_computes_nothing_and_a_damaged_file_is_made_anew(make, caplog, monkeypatch):
    experiment, model = make()
    made = []
    monkeypatch.setattr(text_states, "_make", lambda *args, real=text_states._make: (made.append(args[1]), real(*args)))
    make_states(experiment, model)
    make_states(experiment, model)
    assert made == ["next_item"]
    table = experiment.workdir / text_states.FOLDER / "next_item" / "table.npy"
    content = bytearray(table.read_bytes())
    content[-3] ^= 1
    table.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert open_states(experiment, "next_item", model) is None
    assert "has changed at bytes" in caplog.text
    make_states(experiment, model)
    assert made == ["next_item"] * 2
    assert open_states(experiment, "next_item", model) is not None


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"strategy": "full"}, "strategy 'full' trains layers below 1"),
        ({"strategy": "lora"}, "strategy 'lora' trains layers below 1"),
        ({"data.text_history": 4, "prompt.max_inputs": 60}, "each prompt has a history of its own"),
        ({"integration.stored_gib": 1e-6}, "they take 0.00 GiB, above config.integration.stored_gib=1e-06"),
    ],
)
def test_what_is_computed_in_every_step_is_said(make, caplog, overrides, says):
    experiment, model = make(**overrides)
    with caplog.at_level(logging.INFO):
        make_states(experiment, model)
    assert says in caplog.text
    assert not (experiment.workdir / text_states.FOLDER).exists()
    source = experiment.answered_prompts("train")
    assert with_states(experiment, model, source) is source
    assert isinstance(source, UserLLMSource)


def test_adapters_above_leave_the_states_as_they_are(make):
    experiment, model = make(strategy="lora", **{"lora.first_layer": 1})
    assert not any("layers/0/attention/lora" in path for path in model.parameters)
    make_states(experiment, model)
    adapter = next(path for path in model.parameters if "/lora/" in path)
    assert open_states(experiment, "next_item", changed(model, adapter, 1.0)) is not None


def test_bfloat16_and_scanned_layers_keep_the_same(make):
    experiment, model = make()
    make_states(experiment, model)
    expected = open_states(experiment, "next_item", model).table
    scanned, stacked = make(name="scanned", **{"compute.scan_layers": True, "compute.dtype": "bfloat16"})
    values = dict(stacked.parameters)
    for path in values:
        if path.startswith("language_model/"):
            name = path.removeprefix("language_model/layers/")
            own = [model.parameters.get(f"language_model/layers/{layer}/{name}") for layer in range(2)]
            values[path] = model.parameters[path] if own[0] is None else jnp.stack(own)
    stacked = stacked.with_parameters(values)
    make_states(scanned, stacked)
    found = open_states(scanned, "next_item", stacked).table
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(np.float32), expected, atol=0.05 * np.abs(expected).max())
