"""What the array road reads by number, as a SeqIO source: one example after the other."""

import copy
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import seqio
import tensorflow as tf

from user_llm.data.pipeline import Shuffled, Source
from user_llm.data.windows import Windows
from user_llm.errors import UserError

CHUNK = 1024  # examples gathered at once


class WindowEvents:
    """`Windows.gather` with `label/event` int64 [B], the label's place in the flat columns: its review is found by it.

    Args:
        windows: which windows.
    """

    def __init__(self, windows: Windows):
        self._windows = windows

    def __len__(self) -> int:
        return len(self._windows)

    def gather(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The windows `ids` [B]."""
        return {**self._windows.gather(ids), "label/event": self._windows.label_positions(ids)}


class Lifted:
    """A source whose numbers [B] are features of length 1, [B, 1], as SeqIO's tasks have them.

    Args:
        source: of the numbers.
    """

    def __init__(self, source: Source):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def gather(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The examples `ids` [B]."""
        batch = self._source.gather(ids)
        return {name: values[:, None] if values.ndim == 1 else values for name, values in batch.items()}


class ArraySource(seqio.DataSource):
    """A SeqIO source of whatever `Source.gather` gives, whose rows are the examples.

    A shuffled dataset is a permutation of all examples, in the order of `data.pipeline.Shuffled`; every further pass
    over it is a permutation of its own, which the seed gives too. There is no buffer, and any number of shards will do.

    Args:
        read: split → its source, called on first use.
        splits: their names.
    """

    def __init__(self, read: Callable[[str], Source], splits: Sequence[str]):
        super().__init__(splits=splits, performs_internal_shuffling=True)
        self._read = read
        self._start = 0
        self._seed_of = lambda seed: seed

    def starting_at(self, number: int) -> "ArraySource":
        """The same, but a dataset begins `number` examples later, as if those had been skipped: epochs and all."""
        return self._with(_start=number)

    def seeded(self, seed_of: Callable[[int], int]) -> "ArraySource":
        """The same with the order of `seed_of(seed)`."""
        return self._with(_seed_of=seed_of)

    def _with(self, **attributes) -> "ArraySource":
        other = copy.copy(self)
        other.__dict__.update(attributes)
        return other

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return True

    def list_shards(self, split: str) -> Sequence[str]:
        return [split]

    def num_input_examples(self, split: str) -> int:
        return len(self._read(split))

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
    ) -> tf.data.Dataset:
        """The examples of a split, or of every k-th from the i-th on in the same order for shard i of k.

        Raises:
            UserError: shuffled shards without a seed, which would not be parts of one permutation.
        """
        source, shard = self._read(split), shard_info or seqio.ShardInfo(0, 1)
        if shuffle and seed is None:
            if shard.num_shards > 1:
                raise UserError("shuffled shards without a seed would each draw an order of their own: give a seed.")
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        places = range(shard.index, len(source), shard.num_shards)
        order = Shuffled(len(source), self._seed_of(int(seed))) if shuffle and places and seed is not None else None
        epoch, first = divmod(self._start, max(len(places), 1))
        passes = itertools.chain([(epoch, first)], zip(itertools.count(epoch + 1), itertools.repeat(0)))

        def next_pass() -> tuple[np.int64, np.int64]:
            number, begin = next(passes)
            return np.int64(number), np.int64(begin)

        def gather(number: np.int64, begin: np.int64) -> list[np.ndarray]:
            ids = np.array(places[begin : begin + CHUNK], np.int64)
            batch = source.gather(ids if order is None else order.ids(number * len(source) + ids))
            return [batch[name] for name in sample]

        sample = source.gather(np.arange(min(len(source), 1)))
        types = [tf.as_dtype(values.dtype) for values in sample.values()]

        def read(number: tf.Tensor, begin: tf.Tensor) -> dict[str, tf.Tensor]:
            batch = dict(zip(sample, tf.numpy_function(gather, [number, begin], types), strict=True))
            return {name: tf.ensure_shape(values, (None, *sample[name].shape[1:])) for name, values in batch.items()}

        def one_pass(number: tf.Tensor, begin: tf.Tensor) -> tf.data.Dataset:
            chunks = tf.data.Dataset.range(begin, len(places), CHUNK)
            return chunks.map(lambda at: read(number, at), num_parallel_calls=tf.data.AUTOTUNE).unbatch()

        # Python numbers the passes: `repeat` begins one after the other, and each asks for its number.
        begun = tf.data.Dataset.range(1).map(lambda _: tf.numpy_function(next_pass, [], (tf.int64, tf.int64)))
        return begun.flat_map(one_pass)
