"""Windows from Hugging Face `datasets` over a memory-mapped Arrow file, on one core. Rounds: open, index, then batches.

Runs in the environment of `requirements-peers.txt`.
"""

import functools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

from benchmarks.arrow_timelines import first_windows, read_windows
from benchmarks.protocol import serve


def open_dataset(file: str) -> Dataset:
    """The file, mapped."""
    return Dataset.from_file(file).with_format("numpy")


def index(dataset: Dataset, history_length: int) -> np.ndarray:
    """See `first_windows`."""
    return first_windows(pc.list_value_length(dataset.data.column("item")).to_numpy(), history_length)


def rounds(options: dict[str, Any]) -> Iterator[float]:
    """`options`: file, history_length, batch_size and batches a round."""
    history_length, size = options["history_length"], options["batch_size"]
    dataset = open_dataset(options["file"])
    yield float(len(dataset))
    first = index(dataset, history_length)
    yield float(first[-1])
    rng = np.random.default_rng(0)
    while True:
        for _ in range(options["batches"]):
            batch = read_windows(dataset, first, rng.integers(first[-1], size=size), history_length)
        yield float(options["batches"] * len(batch["label/item"]))


def setup(options: dict[str, Any]):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    return functools.partial(next, rounds(options))


if __name__ == "__main__":
    serve(setup, ("datasets", "pyarrow", "numpy"), warm=False)
