"""Short histories side by side in the rows of a batch: less padding is computed, and the gradient is the same.

A timeline of Amazon Beauty has six events where a history has room for 50. A history gets as many slots as the next
power of two, and the largest lie first: none then crosses the end of a row, whose width is a power of two as well. All
batches have the same number of rows, so that there is one program for them; the rare batch that does not fit is left
as it is, and has a program of its own.
"""

from collections.abc import Iterator

import numpy as np

from user_llm.data.by_length import Batch, Batches

_SAMPLE = 1024  # histories whose lengths are looked at
_SURE = 5.0  # standard deviations: less than one batch in a million does not fit
_WORTH = 0.8  # share of the slots that must be left at most


class Packed:
    """The same histories in rows that several share, with what is learnt at each event.

    A batch has `history/<feature>` and `target/<feature>` int32 [R, W], the event and the one after it;
    `history/user` int32 [R, W], whose event it is (1, 2, … in the batch; 0 where there is none); and `history/age`
    int32 [R, W], how many events of the history are newer.

    Args:
        batches: of windows whose histories are padded on the left.
        rows: R.
    """

    def __init__(self, batches: Batches, rows: int):
        self._batches = batches
        self.rows = rows

    def iterator(self, start_step: int = 0, *, threads: int, prefetch: int) -> Iterator[Batch]:
        """The batches from `start_step` on, which depend on the step alone."""
        return map(self.pack, self._batches.iterator(start_step, threads=threads, prefetch=prefetch))

    def whole_batch(self, step: int) -> Batch:
        """The batch at a step as it is."""
        return self._batches.whole_batch(step)

    def pack(self, batch: Batch) -> Batch:
        """A batch with its histories side by side, or as it is where they do not fit."""
        history = batch["history/item"]
        width = _power_of_two(np.array(history.shape[1]))
        lengths = np.count_nonzero(history, axis=1)
        order = np.argsort(-lengths, kind="stable")
        rooms = _power_of_two(lengths[order])
        starts = np.cumsum(rooms) - rooms
        if starts[-1] + rooms[-1] > self.rows * width:
            return batch
        users, slots = np.nonzero(history)
        age = history.shape[1] - 1 - slots
        place_of = np.empty(len(history), np.int64)
        place_of[order] = starts
        places = place_of[users] + lengths[users] - 1 - age
        columns = {"history/user": users + 1, "history/age": age}
        for name in [name for name in batch if name.startswith("history/")]:
            feature = name.removeprefix("history/")
            following = np.concatenate([batch[name][:, 1:], batch[f"label/{feature}"][:, None]], axis=1)
            columns[name], columns[f"target/{feature}"] = batch[name][users, slots], following[users, slots]
        packed = {name: np.zeros(self.rows * width, np.int32) for name in columns}
        for name, values in columns.items():
            packed[name][places] = values
        return {name: values.reshape(self.rows, width) for name, values in packed.items()}


def packed(batches: Batches, multiple: int) -> Batches:
    """`batches` of windows with their histories side by side, where that spares a fifth of the slots; else as they are.

    Args:
        multiple: what the number of rows must be divisible by: devices that cut a batch, times its microbatches.
    """
    first = batches.whole_batch(0)["history/item"]
    size, length = first.shape
    histories = [first, *(batches.whole_batch(step)["history/item"] for step in range(1, -(-_SAMPLE // size)))]
    rooms = _power_of_two(np.count_nonzero(np.concatenate(histories), axis=1))
    most = size * rooms.mean() + _SURE * np.sqrt(size) * rooms.std()
    width = int(_power_of_two(np.array(length)))
    rows = -(-int(np.ceil(most / width)) // multiple) * multiple
    return Packed(batches, rows) if rows * width <= _WORTH * size * length else batches


def _power_of_two(lengths: np.ndarray) -> np.ndarray:
    """The least power of two that is not below: int64 [...]."""
    return 1 << np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64)
