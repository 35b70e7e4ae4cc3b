"""Lazy moves of tables: a step reads, differentiates and moves the rows that it meets, whatever the table's size.

All other rows stay as they are, to the bit: they have no gradient, and get neither decay nor a smaller moment. What is
done with the rows that are met is what the optimizer does with a whole table (`optimizer.scale_by_row_moments`), and
the norm of all gradients is the same, as those of other rows are zeros.

Where a step meets more rows than a device has of a table, it walks over the table as it lies, and leaves the other rows
as they were: of a catalogue that is small, or cut over many devices.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from user_llm.models.parameters import Parameters
from user_llm.models.sharding import class_axes
from user_llm.models.table_rows import TableRows, put_rows, take_rows
from user_llm.training.objectives import Batch, ItemObjective, Objective
from user_llm.training.optimizer import is_table


class MetRows(NamedTuple):
    """The rows of tables that a step meets; of no tables, where it meets all rows.

    Attributes:
      paths: of the tables [V, U], a row an item.
      gathered: those of them whose rows are gathered; of the others a step has all.
      ids: int32 [M], ascending and distinct; what fills them up is an id outside of all tables.
    """

    paths: tuple[str, ...]
    gathered: tuple[str, ...]
    ids: jax.Array

    def take(self, state: Any) -> Any:
        """`state` with the rows [M, …] of what is gathered: tables, and what is kept of their rows by the same path."""
        return jax.tree_util.tree_map_with_path(lambda at, x: self._rows(x) if _path(at) in self.gathered else x, state)

    def put(self, state: Any, moved: Any) -> Any:
        """The `state` after a step: `moved` (of what `take` gives), and of tables the rows that are not met."""

        def put(at: Sequence[Any], whole: jax.Array, rows: jax.Array) -> jax.Array:
            if _path(at) in self.gathered:
                return put_rows(_as_table(whole), self.ids, _as_table(rows)).reshape(whole.shape)
            return self._met_of(whole, rows) if _path(at) in self.paths else rows

        return jax.tree_util.tree_map_with_path(put, state, moved)

    def stand_in(self, parameters: Parameters) -> dict[str, Any]:
        """Parameters as a model takes them, of what `take` gives."""
        return {path: TableRows(self.ids, x) if path in self.gathered else x for path, x in parameters.items()}

    def _rows(self, whole: jax.Array) -> jax.Array:
        return take_rows(_as_table(whole), self.ids).reshape(-1, *whole.shape[1:])

    def _met_of(self, whole: jax.Array, moved: jax.Array) -> jax.Array:
        met = put_rows(jnp.zeros((len(whole), 1)), self.ids, jnp.ones((len(self.ids), 1))) > 0
        return jnp.where(met, _as_table(moved), _as_table(whole)).reshape(whole.shape)


def met_rows(
    config: ConfigDict,
    axes: Mapping[str, Sequence[str | None]],
    tuned: Parameters,
    objective: Objective,
    batch: Batch,
    keys: jax.Array,
    mesh: Mesh,
) -> MetRows:
    """What a step meets, where its tables are moved row by row and its objective reads some rows alone.

    Args:
      config: of the stage.
      axes: path → logical axes.
      tuned: the parameters that it trains.
      batch, keys: of the step; a key a microbatch.
      mesh: of the tables.
    """
    ids = objective.items_read(batch, keys) if isinstance(objective, ItemObjective) else None
    if ids is None or config.tables != "rowwise":
        return MetRows((), (), jnp.zeros(0, jnp.int32))
    paths = tuple(path for path in tuned if is_table(axes[path]) and axes[path][0] == "items")
    size = min([len(ids), *(len(tuned[path]) for path in paths)])  # no more are distinct
    gathered = tuple(path for path in paths if gathers(len(ids), len(tuned[path]), mesh))
    return MetRows(paths, gathered, jnp.unique(ids, size=size, fill_value=jnp.iinfo(ids.dtype).max))


def gathers(read: int, rows: int, mesh: Mesh | AbstractMesh) -> bool:
    """Whether a step gathers what it reads of a table of `rows`: less than any device has of it."""
    return read < rows // math.prod(mesh.shape[axis] for axis in class_axes(rows, mesh))


def _path(at: Sequence[Any]) -> str:
    return getattr(at[-1], "key", "")


def _as_table(x: jax.Array) -> jax.Array:
    """[V, U] of a table, [V, 1] of what has a number a row."""
    return x.reshape(len(x), -1)
