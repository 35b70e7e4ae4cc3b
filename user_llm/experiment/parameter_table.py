"""What a stage's model weighs: parameters, those that train, and what they cost on each device."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh
from rich.console import Console
from rich.table import Table

from user_llm.experiment.assembly import Assembly
from user_llm.experiment.stages import Stage
from user_llm.models.parameters import Shaped
from user_llm.parallel.processes import is_lead
from user_llm.parallel.rules import partition_spec
from user_llm.training.cross_entropy import logits_bytes
from user_llm.training.lazy import gathers
from user_llm.training.optimizer import is_table
from user_llm.training.trainable import trainable

_MIN_WIDTH = 100  # columns; a narrower table would cut numbers
_HEADINGS = ("parameters", "that train", "parameters MiB", "gradients MiB", "optimizer MiB")


def print_parameter_table(
    assembly: Assembly,
    stage: Stage,
    shapes: Mapping[str, Shaped],
    axes: Mapping[str, Sequence[str | None]],
    mesh: Mesh | AbstractMesh,
) -> None:
    """Prints one row a component and their total, of several processes on the lead.

    Args:
      assembly: the experiment's.
      stage: which of its stages.
      shapes, axes: path → (abstract) parameter, and its logical axes.
      mesh: the devices they are cut over; an abstract one will do.
    """
    if not is_lead():
        return
    config = assembly.config
    trains = trainable(shapes, stage.rules(config))
    rows: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(_HEADINGS), np.int64))
    for path, shape in shapes.items():
        spec = partition_spec(path, shape.shape, axes[path], mesh)
        cut, cut_rows = (_devices(mesh, spec[:most]) for most in (None, 1))
        dtype = jnp.dtype(config.compute.param_dtype if trains[path] else config.compute.frozen_dtype)
        held = math.prod(shape.shape) // cut * dtype.itemsize
        counts = [math.prod(shape.shape), trains[path] * math.prod(shape.shape)]
        gradients, state = held, 2 * held
        if config.training[stage.name].tables == "rowwise" and is_table(axes[path]):
            table_rows, read = shape.shape[0], stage.rows_read(config)
            state = 4 * table_rows // cut_rows
            if axes[path][0] == "items" and read is not None and gathers(read, table_rows, mesh):
                gradients = read * math.prod(shape.shape[1:]) * dtype.itemsize
        rows[stage.component(path)] += [*counts, held, trains[path] * gradients, trains[path] * state]
    rows["total"] = sum(rows.values(), start=np.zeros(len(_HEADINGS), np.int64))
    devices = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    strategy = f", strategy {config.strategy}" if stage.name == "user_llm" else ""
    table = Table(
        title=f"{config.name}: stage {stage.name}{strategy}, mesh {devices}",
        caption="MiB per device; activations and the batch come on top, and a chunk of logits: "
        f"{_logits_bytes(assembly, stage) / 2**20:,.1f} MiB over all devices; --compile_for has what a step takes",
    )
    for heading in ("component", *_HEADINGS):
        table.add_column(heading, justify="left" if heading == "component" else "right")
    for component, values in rows.items():
        table.add_row(component, *(f"{v:,}" for v in values[:2]), *(f"{v / 2**20:,.1f}" for v in values[2:]))
    Console(width=max(_MIN_WIDTH, Console().width)).print(table)


def _devices(mesh: Mesh | AbstractMesh, spec: Sequence[str | tuple[str, ...] | None]) -> int:
    """How many devices cut dimensions that lie so."""
    axes = (axis for axes in spec for axis in ((axes,) if isinstance(axes, str) else axes or ()))
    return math.prod(mesh.shape[axis] for axis in axes)


def _logits_bytes(assembly: Assembly, stage: Stage) -> int:
    config, (rows, classes) = assembly.config, stage.softmax(assembly)
    training = config.training[stage.name]
    return logits_bytes(training.batch_size // training.accumulate * rows, classes, config.encoder.chunk_rows)
