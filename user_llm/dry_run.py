"""`--dry_run`: builds an experiment's models from shapes alone, and says what they weigh on each device."""

import math
from collections import defaultdict
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from user_llm.assembly import Assembly
from user_llm.models import parameters
from user_llm.parallel.mesh import AXES
from user_llm.parallel.rules import partition_spec
from user_llm.training.trainable import EVERYTHING, STRATEGIES, Rules, trainable

# Items, categories and rating classes of the published files, so that no download is needed to plan a run.
PUBLISHED = {
    "movielens/20m": (27_278, 20, 10),
    "movielens/25m": (62_423, 20, 10),
    "movielens/1m": (3_883, 18, 5),
    "movielens/latest_small": (9_742, 20, 10),
}

_MIN_WIDTH = 100  # columns; a narrower table would cut numbers


def assembly_of(config: ConfigDict) -> Assembly:
    """The models of `config`, without its data."""
    simulated = (config.data.simulated.num_items, 20, 10)
    items, categories, ratings = PUBLISHED.get(config.data.dataset, simulated)
    return Assembly(
        config=config,
        item_categories=np.zeros((items + 1, 1), np.int32),
        num_categories=categories,
        num_ratings=ratings,
        vocabulary_size=config.llm.vocabulary_size,
    )


def print_dry_run(config: ConfigDict) -> None:
    """Prints parameters and bytes per device of every stage of `config`.

    The mesh is the config's, whether this machine has the devices or not; an axis of -1 is what is left of them.
    """
    assembly, mesh = assembly_of(config), _abstract_mesh(config.compute.mesh)
    stages = {
        "llm": (assembly.language_model, EVERYTHING),
        "encoder": (assembly.encoder, EVERYTHING),
        "user_llm": (assembly.user_llm, STRATEGIES[config.strategy]),
    }
    console = Console(width=max(_MIN_WIDTH, Console().width))
    for name in config.stages:
        if name == "llm" and config.llm.checkpoint:
            continue
        build, rules = stages[name]
        console.print(_table(name, config, parameters.abstract(build), rules, mesh))


def _table(name: str, config: ConfigDict, model, rules: Rules, mesh: AbstractMesh) -> Table:
    """One row a component: parameters, those that train, and bytes per device of parameters, gradients, slots."""
    _, shapes, _ = parameters.split(model)
    axes, trains = parameters.logical_axes(model), trainable(shapes, rules)
    rows: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(5, np.int64))
    for path, shape in shapes.items():
        spec = partition_spec(path, shape.shape, axes[path], mesh)
        cut = math.prod(mesh.shape[axis] for axis in spec if axis is not None)
        dtype = jnp.dtype(config.compute.param_dtype if trains[path] else config.compute.frozen_dtype)
        held = shape.size // cut * dtype.itemsize
        component = path.split("/")[0] if name == "user_llm" else name
        rows[component] += [shape.size, trains[path] * shape.size, held, trains[path] * held, trains[path] * 2 * held]
    rows["total"] = sum(rows.values())
    devices = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    table = Table(
        title=f"{config.name}: stage {name}, mesh {devices}",
        caption="MiB per device; activations, the batch and a chunk of logits come on top",
    )
    headings = ("parameters", "that train", "parameters MiB", "gradients MiB", "optimizer MiB")
    for heading in ("component", *headings):
        table.add_column(heading, justify="left" if heading == "component" else "right")
    for component, values in rows.items():
        table.add_row(component, *(f"{v:,}" for v in values[:2]), *(f"{v / 2**20:,.1f}" for v in values[2:]))
    return table


def _abstract_mesh(sizes: Mapping[str, int]) -> AbstractMesh:
    known = math.prod(size for size in sizes.values() if size != -1)
    rest = max(1, jax.device_count() // known)
    return AbstractMesh(tuple(rest if sizes[axis] == -1 else sizes[axis] for axis in AXES), AXES)
