"""Lazy moves of tables: a step reads, differentiates and moves the rows that it meets, whatever the table's size.

All other rows stay as they are, to the bit: they have no gradient, and get neither decay nor a smaller moment. What is
done with the rows that are met is what the optimizer does with a whole table (`optimizer.scale_by_row_moments`), and
the norm of all gradients is the same, as those of other rows are zeros.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from user_llm.models.parameters import Parameters
from user_llm.models.table_rows import TableRows, put_rows, take_rows
from user_llm.training.objectives import Batch, ItemObjective, Objective
from user_llm.training.optimizer import is_table


class MetRows(NamedTuple):
    """The rows of tables that a step meets; of no tables, where it meets all rows.

    Attributes:
      paths: of the tables [V, U], a row an item.
      ids: int32 [M], ascending and distinct; what fills them up is an id outside of all tables.
    """

    paths: tuple[str, ...]
    ids: jax.Array

    def take(self, state: Any) -> Any:
        """`state` with the rows [M, …] alone of each table, and of what is kept of its rows under the same path."""
        return jax.tree_util.tree_map_with_path(lambda at, x: self._rows(x) if self._is_ours(at) else x, state)

    def put(self, state: Any, moved: Any) -> Any:
        """`moved`, with the tables of `state` in place of their rows, which are put into them."""

        def put(at: Sequence[Any], whole: jax.Array, rows: jax.Array) -> jax.Array:
            if not self._is_ours(at):
                return rows
            return put_rows(_as_table(whole), self.ids, _as_table(rows)).reshape(whole.shape)

        return jax.tree_util.tree_map_with_path(put, state, moved)

    def stand_in(self, parameters: Parameters) -> dict[str, Any]:
        """Parameters as a model takes them, of what `take` gives."""
        return {path: TableRows(self.ids, x) if path in self.paths else x for path, x in parameters.items()}

    def _rows(self, whole: jax.Array) -> jax.Array:
        return take_rows(_as_table(whole), self.ids).reshape(-1, *whole.shape[1:])

    def _is_ours(self, at: Sequence[Any]) -> bool:
        return getattr(at[-1], "key", None) in self.paths


def met_rows(
    config: ConfigDict,
    axes: Mapping[str, Sequence[str | None]],
    tuned: Parameters,
    objective: Objective,
    batch: Batch,
    keys: jax.Array,
) -> MetRows:
    """What a step meets, where its tables are moved row by row and its objective reads some rows alone.

    Args:
      config: of the stage.
      axes: path → logical axes.
      tuned: the parameters that it trains.
      batch, keys: of the step; a key a microbatch.
    """
    paths = tuple(path for path in tuned if is_table(axes[path]) and axes[path][0] == "items")
    ids = objective.items_read(batch, keys) if isinstance(objective, ItemObjective) else None
    if ids is None or config.tables != "rowwise":
        return MetRows((), jnp.zeros(0, jnp.int32))
    size = min([len(ids), *(len(tuned[path]) for path in paths)])  # no more are distinct
    return MetRows(paths, jnp.unique(ids, size=size, fill_value=jnp.iinfo(ids.dtype).max))


def _as_table(x: jax.Array) -> jax.Array:
    """[V, U] of a table, [V, 1] of what has a number a row."""
    return x.reshape(len(x), -1)
