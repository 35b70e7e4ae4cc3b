"""Batches as a pure function of (seed, step): globally shuffled without a buffer, resumed by seeking."""

import collections
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np

from user_llm.errors import UserError

if TYPE_CHECKING:
    import grain


class Source(Protocol):
    """Examples by integer: windows, or a converter around them."""

    def __len__(self) -> int: ...

    def gather(self, ids: np.ndarray) -> dict[str, np.ndarray]: ...


class Order(Protocol):
    """An endless stream of example numbers."""

    def ids(self, positions: np.ndarray) -> np.ndarray:
        """The example numbers int64 [B] at positions int64 [B] of the stream."""
        ...


class Shuffled:
    """Epochs that follow one another without a seam, each a fresh permutation of all examples.

    Position k of the stream is place k mod n of epoch k div n; no example is ever left out.

    Args:
        size: n, examples.
        seed: a non-negative integer.

    Raises:
        UserError: no example, or a negative seed.
    """

    def __init__(self, size: int, seed: int):
        if size == 0:
            raise UserError(
                "there is no training example, as no timeline is long enough: lower history_length or min_history."
            )
        if seed < 0:
            raise UserError(f"the data seed must not be negative, got {seed}.")
        self._size = size
        self._seed = seed
        self._permutations: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
        self._lock = threading.Lock()

    def ids(self, positions: np.ndarray) -> np.ndarray:
        """See `Order`."""
        epoch, index = np.divmod(positions, self._size)
        ids = np.empty_like(index)
        for number in np.unique(epoch):
            here = epoch == number
            ids[here] = self._permutation(int(number))[index[here]]
        return ids

    def _permutation(self, epoch: int) -> np.ndarray:
        with self._lock:
            if epoch not in self._permutations:
                generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, epoch])))
                self._permutations[epoch] = generator.permutation(self._size)
                # Two epochs meet in one batch, and threads read ahead; older ones are not asked for again.
                while len(self._permutations) > 2:
                    self._permutations.popitem(last=False)
            self._permutations.move_to_end(epoch)
            return self._permutations[epoch]


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


def evaluation_batches(source: Source, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Every example once, in order, in batches of `batch_size` rows, which every host reads as a whole.

    Yields:
        The source's batch and `weight`, float32 [rows]: 1 for an example, 0 for rows that fill the last batch.
    """
    rows = _rows(batch_size)
    for start in range(0, len(source), batch_size):
        ids = start + rows
        real = ids < len(source)
        # Padding repeats example 0: a real history keeps every softmax of the model finite.
        yield {**source.gather(np.where(real, ids, 0)), "weight": real.astype(np.float32)}


def _rows(batch_size: int) -> np.ndarray:
    if batch_size < 1:
        raise UserError(f"batch_size must be positive, got {batch_size}.")
    return np.arange(batch_size, dtype=np.int64)
