"""What the softmax losses share: rows in chunks, the ones that have a weight first, and products with float32 sums."""

import jax
import jax.numpy as jnp

from user_llm.models.sharding import BATCH, CLASSES, COPIES, batch_shards, cut_by_class, shard


def row_products(a: jax.Array, b: jax.Array) -> jax.Array:
    """float32 [...], the products of vectors [..., U] with each other."""
    return jnp.sum(a.astype(jnp.float32) * b.astype(jnp.float32), axis=-1)


def matmul(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """The einsum, with sums in float32 whatever the operands are."""
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)


def num_chunks(total: int, chunk_rows: int) -> int:
    """Into how many chunks of at most `chunk_rows` the rows of a softmax are cut."""
    fewest = -(-total // chunk_rows)
    # Prefer a few more chunks that divide the rows evenly to padding, which would reshard a sharded row axis.
    return next((n for n in range(fewest, 2 * fewest) if total % n == 0), fewest)


class RowChunks:
    """Rows [M, ...] as chunks [chunks, R, ...], R <= `chunk_rows`: first those that have a weight, zeros at the end.

    Rows stay on their device: each of D shards has its own first ones in the first chunk, and so on. `used` chunks
    (traced) hold all that have a weight.

    Where the shards cut the table of the classes too (`class_axes`), a chunk's rows go to all that have classes, and
    those of `data` alone have sums of their own.

    Args:
      weights: float [M].
      chunk_rows: most rows of a chunk.
      classes: V, those of the softmax.
    """

    def __init__(self, weights: jax.Array, chunk_rows: int, classes: int):
        self._rows, self._chunks = len(weights), num_chunks(len(weights), chunk_rows)
        self._padding = -self._rows % self._chunks
        size = (self._rows + self._padding) // self._chunks
        shards = batch_shards(weights)
        self._shards = 1 if self._padding or size % shards else shards
        self._by_class = bool(cut_by_class(weights, classes))
        self._sums, self._classes = self._shards, classes
        if self._by_class and self._shards > 1:
            self._sums = jax.typeof(weights).sharding.mesh.shape[BATCH[0]]
        empty = self._padded(weights).reshape(self._shards, -1) == 0
        self._order = jnp.argsort(empty, axis=1, stable=True)
        self._place = jnp.argsort(self._order, axis=1)
        fullest = jnp.max(jnp.sum(~empty, axis=1))
        self.used = -(-fullest // (size // self._shards))

    def split(self, rows: jax.Array) -> jax.Array:
        """[M, ...] -> [chunks, R, ...]."""
        rows = self._take(self._padded(rows), self._order)
        rows = rows.reshape(self._shards, self._chunks, -1, *rows.shape[1:]).swapaxes(0, 1)
        return rows.reshape(self._chunks, -1, *rows.shape[3:])

    def join(self, chunks: jax.Array) -> jax.Array:
        """Undoes `split`."""
        rows = chunks.reshape(self._chunks, self._shards, -1, *chunks.shape[2:]).swapaxes(0, 1)
        return self._take(rows.reshape(-1, *rows.shape[3:]), self._place)[: self._rows]

    def chunk(self, rows: jax.Array) -> jax.Array:
        """A chunk's rows [R, ...] where they meet the classes."""
        return shard(rows, COPIES, ...) if self._by_class else rows

    def no_products(self, width: int) -> jax.Array:
        """float32 zeros [D, V, U], for `add_products`."""
        return self._of_shards(jnp.zeros((self._sums, self._classes, width), jnp.float32))

    def add_products(self, sums: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        """`sums` [D, V, U] plus `aᵀ b` of a chunk's `a` [R, V] and `b` [R, U], each of the D shards for itself.

        Summed over the shards in every chunk, a table's gradient would cross the mesh as often as there are chunks.
        """
        if self._sums == 1:
            return self._of_shards(sums + matmul("rv,ru->vu", a, b))
        a, b = (x.reshape(self._sums, -1, x.shape[1]) for x in (a, b))
        return self._of_shards(sums + matmul("drv,dru->dvu", a, b))

    def _of_shards(self, sums):
        return shard(sums, COPIES if self._by_class else "batch", CLASSES, None)

    def _padded(self, rows):
        return jnp.pad(rows, ((0, self._padding),) + ((0, 0),) * (rows.ndim - 1)) if self._padding else rows

    def _take(self, rows, places):
        """Rows of each shard, at these of its places [D, M / D]."""
        split = rows.reshape(*places.shape, *rows.shape[1:])
        places = places.reshape(*places.shape, *(1,) * (rows.ndim - 1))
        return jnp.take_along_axis(split, places, axis=1).reshape(rows.shape)
