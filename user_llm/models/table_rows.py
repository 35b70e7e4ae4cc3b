"""Rows of tables [V, U], read and added to. Where a mesh cuts a large table by its classes, no device makes it whole:
each reads the rows that it has for everybody, and what all have read is summed.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from user_llm.models.sharding import ANY, BATCH, batch_shards, cut_by_class, shard

_WHOLE = PartitionSpec()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TableRows:
    """Some rows of a table, in its place: of a parameter that is read by ids alone, and by these (`training/lazy.py`).

    Attributes:
      ids: int [M], ascending.
      rows: float [M, U].
    """

    ids: jax.Array
    rows: jax.Array

    def take(self, ids: jax.Array) -> jax.Array:
        """Rows [..., U] for `ids` int [...]; NaN where an id is none of ours."""
        place = jnp.searchsorted(self.ids, ids)
        ours = self.ids[jnp.minimum(place, len(self.ids) - 1)] == ids
        return jnp.take(self.rows, jnp.where(ours, place, len(self.ids)), axis=0, mode="fill")


def take_rows(table: jax.Array | TableRows, ids: jax.Array) -> jax.Array:
    """Rows [..., U] of `table` [V, U] for `ids` int [...]; an id outside the table gives NaN, never another's row."""
    if isinstance(table, TableRows):
        return table.take(ids)
    axes = cut_by_class(table, len(table))
    if not axes:
        # Rows are gathered whole: cut by their width as the table is, all rows of the batch would be moved afterwards.
        return jnp.take(shard(table, ANY, None), ids, axis=0, mode="fill")
    batch = _batch(ids, table)

    def local(table: jax.Array, ids: jax.Array) -> jax.Array:
        place, mine = _places(len(table), _of_all(ids, batch, "fsdp"), axes)
        rows = jnp.where(mine[..., None], table[place], 0)
        if batch == _WHOLE:
            return jax.lax.psum(rows, axes)
        return jax.lax.psum(jax.lax.psum_scatter(rows, "fsdp", tiled=True), "tensor")

    rows = jax.shard_map(local, mesh=_mesh(table), in_specs=(PartitionSpec(axes), batch), out_specs=batch)(table, ids)
    return jnp.where(((ids >= 0) & (ids < len(table)))[..., None], rows, jnp.nan)


def add_rows(table: jax.Array, ids: jax.Array, rows: jax.Array) -> jax.Array:
    """`table` [V, U] plus `rows` [M, U] at their `ids` int [M]."""
    return _write(table, ids, rows, lambda table, places, rows: table.at[places].add(rows, mode="drop"))


def put_rows(table: jax.Array, ids: jax.Array, rows: jax.Array) -> jax.Array:
    """`table` [V, U] with `rows` [M, U] in place of its own at their `ids` int [M], distinct where within the table."""
    return _write(table, ids, rows, lambda table, places, rows: table.at[places].set(rows, mode="drop"))


def _write(table: jax.Array, ids: jax.Array, rows: jax.Array, write: Callable[..., jax.Array]) -> jax.Array:
    axes = cut_by_class(table, len(table))
    if not axes:
        return write(table, ids, rows)
    batch, cut = _batch(ids, table), PartitionSpec(axes)

    def local(table: jax.Array, ids: jax.Array, rows: jax.Array) -> jax.Array:
        place, mine = _places(len(table), _of_all(ids, batch, BATCH), axes)
        return write(table, jnp.where(mine, place, len(table)), _of_all(rows, batch, BATCH))

    # What is gathered of all is the same everywhere, which JAX does not know.
    options = dict(mesh=_mesh(table), in_specs=(cut, batch, batch), out_specs=cut, check_vma=False)
    return jax.shard_map(local, **options)(table, ids, rows)


def _mesh(x: jax.Array):
    return jax.typeof(x).sharding.mesh


def _batch(ids: jax.Array, table: jax.Array) -> PartitionSpec:
    """How ids [B, ...] lie: as a batch, where the mesh of the table divides them."""
    return _WHOLE if len(ids) % batch_shards(table) else PartitionSpec(BATCH)


def _of_all(x: jax.Array, cut: PartitionSpec, over: str | tuple[str, ...]) -> jax.Array:
    """The rows of all devices along the axes `over`."""
    return x if cut == _WHOLE else jax.lax.all_gather(x, over, tiled=True)


def _places(rows: int, ids: jax.Array, axes: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    """Of a device that has some `rows` of a table: where ids are among these, and whether they are."""
    place = ids - jax.lax.axis_index(axes) * rows
    mine = (place >= 0) & (place < rows)
    return jnp.where(mine, place, 0), mine
