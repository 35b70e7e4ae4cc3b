"""`--compile_for`: compiles an experiment's training steps for devices that need not be here, and says what each takes.

The compiler of a TPU runs without one (`libtpu`). So it is known before a slice is rented that a step compiles, and
that it fits. Data, catalogue and vocabulary are the run's own; parameters are shapes alone.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from user_llm.checkpoints.transfer import Layout
from user_llm.errors import UserError
from user_llm.experiment.experiment import Experiment, check_batch_sizes
from user_llm.experiment.stages import Stage, stages_of
from user_llm.inspect.prepared import prepared
from user_llm.models import parameters
from user_llm.models.model import Model
from user_llm.parallel.mesh import BATCH, batch_shards, make_mesh, one_device
from user_llm.training.loop import TrainingRun, fresh_state, make_train_step
from user_llm.training.optimizer import make_optimizer
from user_llm.training.trainable import trainable

HERE = "here"

_WIDTH = 120  # columns; a narrower table would cut numbers
# What libtpu asks a machine with a TPU for, and waits for in vain elsewhere.
_NO_TPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
}
_TOO_LARGE = "RESOURCE_EXHAUSTED"

_logger = logging.getLogger(__name__)


class CompiledStep(NamedTuple):
    """What a stage's training step takes on each device, as XLA has compiled it.

    Attributes:
      stage: its name.
      state: bytes of parameters, optimizer and batch.
      temporary: bytes that the step takes besides.
      refused: what the compiler says of a step that does not fit, whose bytes are 0 here.
    """

    stage: str
    state: int = 0
    temporary: int = 0
    refused: str = ""


def devices_of(name: str) -> list[Any]:
    """The devices of a TPU topology, as "v5e:2x4", of which none is here; or `HERE`, this machine's.

    Raises:
      UserError: libtpu is not installed, or knows no such topology.
    """
    if name == HERE:
        return jax.devices()
    for key, value in _NO_TPU.items():
        os.environ.setdefault(key, value)
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(name, "tpu").devices)
    except Exception as error:  # of whatever type libtpu raises
        said, _, _ = str(error).partition("\n")
        raise UserError(
            f"--compile_for={name}: {said}: name {HERE!r} or a TPU as v5e:2x4, v5p:2x2x4 or "
            "v6e:2x4, whose compiler comes with pip install 'user-llm[tpu]'"
        ) from error


def print_compiled(config: ConfigDict, workdir: str | None, name: str) -> bool:
    """Compiles the stages of `config` for the devices of a `name` and prints what they take; whether all fit.

    Args:
      workdir: see `prepared`.
    """
    mesh = make_mesh(config.compute.mesh, devices_of(name))
    check_batch_sizes(config, batch_shards(mesh))
    with prepared(config, workdir, one_device()) as experiment:
        steps = []
        for stage in stages_of(config):
            _logger.info("Compiling stage %s (a large batch on many devices may take minutes)", stage.name)
            steps.append(compiled_step(experiment, stage, mesh))
    sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    table = Table(
        title=f"{config.name} compiled for {mesh.size} devices of kind {mesh.devices.flat[0].device_kind}, mesh {sizes}"
    )
    for heading in ("training step of stage", "parameters, optimizer and batch MiB", "temporaries MiB", "together MiB"):
        table.add_column(heading, justify="right" if "MiB" in heading else "left")
    table.caption = "a device, by XLA's own analysis of the compiled program; nothing was run"
    for step in steps:
        found = (step.state, step.temporary, step.state + step.temporary)
        table.add_row(step.stage, *(["does not fit"] * 3 if step.refused else [f"{b / 2**20:,.1f}" for b in found]))
    Console(width=max(_WIDTH, Console().width)).print(table)
    for step in steps:
        if step.refused:
            print(f"{step.stage}: {step.refused}")
    return not any(step.refused for step in steps)


def compiled_step(experiment: Experiment, stage: Stage, mesh: Mesh) -> CompiledStep:
    """Compiles one stage's training step for the devices of a mesh, for batches as they are on several hosts.

    Args:
      experiment: prepared, on any devices.
    """
    config = experiment.config
    layout, frozen_dtype = Layout.of(stage.builder(experiment.assembly), config.seed, mesh), config.compute.frozen_dtype
    model = parameters.abstract(stage.builder(experiment.assembly))
    trains, axes = trainable(layout.parameters, stage.rules(config)), parameters.logical_axes(model)
    tuned = {path: place for path, place in layout.parameters.items() if trains[path]}
    frozen = {path: place.update(dtype=frozen_dtype) for path, place in layout.parameters.items() if not trains[path]}
    whole = NamedSharding(mesh, PartitionSpec())
    buffers, objective = (_placed(x, whole) for x in (parameters.split(model)[2], stage.objective(experiment)))
    batches = stage.batches(experiment, lambda source: source)
    run = TrainingRun(
        name=stage.name,
        config=config.training[stage.name],
        model=Model(layout.graphdef, {}, {}, mesh),
        axes=axes,
        rules=stage.rules(config),
        objective=objective,
        batches=batches,
    )
    optimizer = make_optimizer(run.config, {path: axes[path] for path in tuned}, stage.paces(config))
    step = make_train_step(run, optimizer, config.seed)
    batch = _placed(dict(batches.whole_batch(0)), NamedSharding(mesh, BATCH))
    try:
        compiled = step.lower(_state(optimizer, tuned, mesh), frozen, buffers, batch, objective).compile()
    except jax.errors.JaxRuntimeError as error:
        if _TOO_LARGE not in str(error):
            raise
        return CompiledStep(stage.name, refused=str(error).partition("\n")[0])
    memory: Any = compiled.memory_analysis()
    # What is given away is not held twice.
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return CompiledStep(stage.name, memory.argument_size_in_bytes, memory.temp_size_in_bytes + made)


def _placed(values: Any, sharding: NamedSharding) -> Any:
    """A pytree of arrays, as their shapes."""

    def place(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype), sharding=sharding)

    return jax.tree.map(place, values)


def _state(optimizer: optax.GradientTransformation, tuned: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh) -> Any:
    """The state before the first step: what is held of a parameter lies as it does, and the rest is everywhere."""

    def place(path: Sequence[Any], x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        of = tuned.get(getattr(path[-1], "key", ""))
        spec = PartitionSpec() if of is None else PartitionSpec(*of.sharding.spec[: x.ndim])
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    rest = jax.eval_shape(lambda values: fresh_state(optimizer, values), tuned)
    return {"parameters": tuned, **jax.tree_util.tree_map_with_path(place, rest)}
