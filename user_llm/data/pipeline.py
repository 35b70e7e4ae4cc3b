"""Batches as a pure function of (seed, step): globally shuffled without a buffer, resumed by seeking."""

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from user_llm.data.permutation import Permutation
from user_llm.errors import UserError

if TYPE_CHECKING:
    import grain


class Source(Protocol):
    """Examples by integer: windows, or a converter around them."""

    def __len__(self) -> int: ...

    def gather(self, ids: np.ndarray) -> dict[str, np.ndarray]: ...


class TrainSource(Source, Protocol):
    """Examples that can be trained on in shards."""

    def bounds(self, shards: int) -> np.ndarray:
        """Where each shard begins, and the last ends: int64 [shards + 1], from 0 to len."""
        ...


class Order(Protocol):
    """An endless stream of example numbers."""

    def ids(self, positions: np.ndarray) -> np.ndarray:
        """The example numbers int64 [B] at positions int64 [B] of the stream."""
        ...


class Shuffled:
    """Epochs that follow one another without a seam, each a fresh permutation of all examples.

    Position k of the stream is place k mod n of epoch k div n; no example is ever left out. Nothing is held: every
    number is computed (`Permutation`).

    Args:
        size: n, examples.
        seed: a non-negative integer.
        first: number of the first of them.

    Raises:
        UserError: no example, or a negative seed.
    """

    def __init__(self, size: int, seed: int, first: int = 0):
        if size == 0:
            raise UserError(
                "there is no training example, as no timeline is long enough: lower history_length or min_history."
            )
        if seed < 0:
            raise UserError(f"the data seed must not be negative, got {seed}.")
        self._size = size
        self._seed = seed
        self._first = first

    def ids(self, positions: np.ndarray) -> np.ndarray:
        """See `Order`."""
        if not positions.size:
            return positions
        epoch = int(positions.min()) // self._size
        if int(positions.max()) // self._size == epoch:  # as in most batches
            return self._in_epoch(epoch, positions)
        epochs, ids = positions // self._size, np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            ids[here] = self._in_epoch(epoch, positions[here])
        return ids

    def _in_epoch(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        order = Permutation(self._size, (self._seed, epoch))
        return self._first + order(positions - epoch * self._size)


class Sharded:
    """Batches of which every shard has the same rows: of K shards, shard k has the k-th part of each batch.

    So a host whose rows are those of some shards reads no other. The stream depends on K alone, and not on how
    many hosts there are.

    Args:
        shards: each one's own endless stream.
        batch_size: rows of a batch.

    Raises:
        UserError: the batch cannot be cut into so many equal parts.
    """

    def __init__(self, shards: Sequence[Order], batch_size: int):
        if batch_size % len(shards):
            raise UserError(f"a batch of {batch_size} rows: expected a multiple of the {len(shards)} shards.")
        self._shards = shards
        self._batch_size = batch_size

    def ids(self, positions: np.ndarray) -> np.ndarray:
        """See `Order`."""
        rows = self._batch_size // len(self._shards)
        step, row = np.divmod(positions, self._batch_size)
        shard, place = np.divmod(row, rows)
        ids = np.empty_like(positions)
        for number in np.unique(shard):
            here = shard == number
            ids[here] = self._shards[number].ids(step[here] * rows + place[here])
        return ids


class TrainBatches:
    """An endless stream of batches, which may straddle two epochs. Each of several hosts reads its own rows of each.

    Args:
        source: what to read.
        batch_size: rows of the global batch.
        seed: with the step, it determines the batch.
        rows: int `[rows]`, those of the global batch to read here (`parallel.mesh.local_rows`); None: all.
        order: which examples, one after the other; None: `Shuffled` by the seed.

    Raises:
        UserError: an empty batch, or what `Shuffled` refuses.
        ValueError: rows that are not in the batch.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int,
        *,
        rows: np.ndarray | None = None,
        order: Order | None = None,
    ):
        self._all_rows = _rows(batch_size)
        self._rows = self._all_rows if rows is None else np.asarray(rows, np.int64)
        if not np.isin(self._rows, self._all_rows).all():
            raise ValueError(f"rows must lie between 0 and {batch_size - 1}, got {self._rows}.")
        self._source = source
        self._batch_size = batch_size
        self._order = Shuffled(len(source), seed) if order is None else order

    def ids(self, step: int) -> np.ndarray:
        """The example numbers of this host's rows at a step: int64 [rows]."""
        return self._ids(step, self._rows)

    def _ids(self, step: int, rows: np.ndarray) -> np.ndarray:
        if step < 0:
            raise ValueError(f"steps count from 0, got {step}.")
        return self._order.ids(step * self._batch_size + rows)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """This host's rows of the global batch at a step."""
        return self._source.gather(self.ids(step))

    def whole_batch(self, step: int) -> dict[str, np.ndarray]:
        """The global batch at a step, on any host."""
        return self._source.gather(self._ids(step, self._all_rows))

    def iterator(self, start_step: int = 0, *, threads: int = 2, prefetch: int = 4) -> "grain.DatasetIterator":
        """Batches from `start_step` on, up to `prefetch` of them gathered ahead by `threads`.

        The iterator's whole state is the step (`get_state`, `set_state`): a restored one continues exactly.
        """
        import grain  # only training reads so, and a finished run is loaded without it

        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
        iterator = iter(grain.MapDataset.range(sys.maxsize).map(self.batch).to_iter_dataset(options))
        iterator.set_state({"next_index": start_step})
        return iterator


def evaluation_batches(
    source: Source, batch_size: int, rows: np.ndarray | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Every example once, in order, in batches of `batch_size` rows.

    Args:
        rows: int [rows], those of each batch to read here; None: all.

    Yields:
        The source's batch and `weight`, float32 [rows]: 1 for an example, 0 for rows that fill the last batch.
    """
    rows = _rows(batch_size) if rows is None else rows
    for start in range(0, len(source), batch_size):
        ids = start + rows
        real = ids < len(source)
        # Padding repeats example 0: a real history keeps every softmax of the model finite.
        yield {**source.gather(np.where(real, ids, 0)), "weight": real.astype(np.float32)}


def _rows(batch_size: int) -> np.ndarray:
    if batch_size < 1:
        raise UserError(f"batch_size must be positive, got {batch_size}.")
    return np.arange(batch_size, dtype=np.int64)
