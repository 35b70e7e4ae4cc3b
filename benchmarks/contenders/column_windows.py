"""Our windows of a built dataset, in shuffled order, on one core. Rounds: open, index, and then batches."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.event_columns import NAME
from benchmarks.protocol import serve
from user_llm.data.pipeline import TrainBatches
from user_llm.data.timelines import open_timelines
from user_llm.data.windows import Windows


def rounds(options: dict[str, Any]) -> Iterator[float]:
    """`options`: folder of the dataset, history_length, batch_size and batches a round."""
    table = open_timelines(Path(options["folder"]), NAME)
    yield float(len(table.item))
    windows = Windows(table, history_length=options["history_length"], split="train")
    windows.users(np.zeros(1, np.int64))  # the guide is made for the first window that is asked for
    train = TrainBatches(windows, options["batch_size"], seed=0)
    yield float(len(windows))
    step = 0
    while True:
        for _ in range(options["batches"]):
            batch = train.batch(step)
            step += 1
        yield float(options["batches"] * len(batch["label/item"]))


def setup(options: dict[str, Any]):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    return functools.partial(next, rounds(options))


if __name__ == "__main__":
    serve(setup, ("numpy",), warm=False)
