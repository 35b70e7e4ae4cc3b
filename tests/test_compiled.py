"""Steps that are compiled from shapes are those of the run, and a plan of one that does not fit says so."""

import jax
import pytest
from ml_collections.config_flags import config_path

from user_llm import schema
from user_llm.config import ConfigError
from user_llm.errors import UserError
from user_llm.experiment.experiment import Experiment
from user_llm.experiment.prepare import prepare
from user_llm.experiment.stages import stages_of
from user_llm.experiment.workdir import NoRun
from user_llm.inspect import compiled
from user_llm.parallel.mesh import make_mesh, one_device, put_batch
from user_llm.training.loop import fresh_state, make_train_step, replicate_scalars
from user_llm.training.optimizer import make_optimizer
from user_llm.training.trainable import trainable

SMALL = {
    "data.simulated.num_users": 24,
    "data.simulated.num_items": 60,
    "data.simulated.mean_events": 26,
    "data.dataset": "movielens/simulated",
    "data.min_history": 4,
    "data.history_length": 8,
    "encoder.num_layers": 1,
    "encoder.width": 32,
    "encoder.num_heads": 2,
    "encoder.hidden": 64,
    "llm.num_layers": 1,
    "llm.width": 32,
    "llm.hidden": 64,
    "llm.vocabulary_size": 400,
    "llm.head_dim": 8,
    "strategy": "enc",
    "compute.frozen_dtype": "bfloat16",
    "training.encoder.tables": "rowwise",
    **{f"training.{stage}.batch_size": 16 for stage in ("llm", "encoder", "user_llm")},
    "training.user_llm.accumulate": 2,
    "evaluation.batch_size": 16,
    **{f"compute.mesh.{axis}": 2 for axis in ("data", "fsdp", "tensor")},
}


@pytest.fixture
def config(tmp_path):
    config = schema.get_config()
    config.name = "small"
    for key, value in {**SMALL, "data.data_dir": str(tmp_path / "data")}.items():
        config_path.set_value(key, config, value)
    return config


def as_the_run_begins(stage, experiment, finished):
    """The first step's program and arguments, as `training.loop.train` has them."""
    run = stage.training_run(experiment, stage.initial(experiment, finished))
    trains = trainable(run.model.parameters, run.rules)
    tuned, frozen = (
        {path: value for path, value in run.model.parameters.items() if trains[path] == which}
        for which in (True, False)
    )
    optimizer = make_optimizer(run.config, {path: run.axes[path] for path in tuned}, run.paces)
    state = replicate_scalars({"parameters": tuned, **fresh_state(optimizer, tuned)}, experiment.mesh)
    batch = put_batch(run.batches.whole_batch(0), experiment.mesh)
    return run.model, make_train_step(run, optimizer, 0), (state, frozen, run.model.buffers, batch)


def test_steps_of_shapes_are_those_of_the_run(config, tmp_path):
    mesh = make_mesh(config.compute.mesh)
    planned, real = (Experiment(config, tmp_path / "run", on) for on in (one_device(), mesh))
    (tmp_path / "run").mkdir()
    prepare(planned)
    finished = {}
    for stage in stages_of(config):
        finished[stage.name], step, arguments = as_the_run_begins(stage, real, finished)
        if stage.name == "llm":
            continue
        found, first = compiled.compiled_step(planned, stage, mesh), mesh.devices.flat[0]
        shards = [one for x in jax.tree.leaves(arguments) for one in x.addressable_shards if one.device == first]
        held = sum(one.data.nbytes for one in shards)
        assert 0.99 * held < found.state <= held  # what nothing reads is left out, as counters
        memory = step.lower(*arguments).compile().memory_analysis()
        assert found.state == memory.argument_size_in_bytes
        made = memory.output_size_in_bytes - memory.alias_size_in_bytes
        assert found.temporary == memory.temp_size_in_bytes + made
        assert found.temporary > 0


def test_what_fits_and_what_does_not_is_told(config, capsys, monkeypatch):
    config.stages = ("encoder",)
    assert compiled.print_compiled(config, None, compiled.HERE)
    told = " ".join(capsys.readouterr().out.split())
    assert "small compiled for 8 devices of kind cpu, mesh data 2, fsdp 2, tensor 2" in told

    def refuse(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 17.5G of 15.8G hbm.\nLargest program …")

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    assert not compiled.print_compiled(config, None, compiled.HERE)
    told = capsys.readouterr().out
    assert "does not fit" in told
    assert "encoder: RESOURCE_EXHAUSTED: Used 17.5G of 15.8G hbm.\n" in told


def test_devices_that_nobody_knows_and_batches_that_do_not_divide_are_refused(config, tmp_path):
    with pytest.raises(UserError, match=r"--compile_for=v5e:2x4: .*name 'here' or a TPU as v5e:2x4"):
        compiled.devices_of("v5e:2x4")  # its compiler is not installed here
    with pytest.raises(NoRun):
        compiled.print_compiled(config, str(tmp_path), compiled.HERE)
    assert list(tmp_path.iterdir()) == []
    config.training.encoder.batch_size = 18
    with pytest.raises(ConfigError, match=r"training\.encoder\.batch_size"):
        compiled.print_compiled(config, None, compiled.HERE)
