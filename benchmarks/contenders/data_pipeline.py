"""Batches of windows from an in-memory table of MovieLens-20M's shape, on one core."""

import itertools
import os
from typing import Any

import numpy as np

from benchmarks.protocol import serve
from user_llm.data.pipeline import TrainBatches
from user_llm.data.timelines import Catalogue, TimelineTable
from user_llm.data.windows import Windows

NUM_USERS, NUM_ITEMS, NUM_EVENTS = 138_493, 26_744, 20_000_263


def simulated_table() -> TimelineTable:
    """Random events; timeline lengths are at least 20 and have a long tail, as MovieLens'."""
    rng = np.random.default_rng(0)
    tail = rng.pareto(1.5, NUM_USERS)
    lengths = 20 + np.floor(tail / tail.sum() * (NUM_EVENTS - 20 * NUM_USERS)).astype(np.int64)
    events = int(lengths.sum())
    return TimelineTable(
        name="simulated",
        item=rng.integers(1, NUM_ITEMS + 1, events, dtype=np.int32),
        rating=rng.integers(1, 11, events, dtype=np.int32),
        timestamp=np.arange(events, dtype=np.int64),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        user_ids=[str(user) for user in range(NUM_USERS)],
        catalogue=Catalogue(
            titles=[""] + [f"item {item}" for item in range(1, NUM_ITEMS + 1)],
            raw_ids=[""] + [str(item) for item in range(1, NUM_ITEMS + 1)],
            category_names=[""],
            item_categories=np.zeros((NUM_ITEMS + 1, 1), np.int32),
        ),
        rating_names=["", *(str(half / 2) for half in range(1, 11))],
        fingerprint="",
        summary={},
    )


def setup(options: dict[str, Any]):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    windows = Windows(simulated_table(), history_length=50, split="train")
    batches = TrainBatches(windows, options["batch_size"], seed=0)
    steps = itertools.count()

    def read() -> float:
        """Reads the next batches; their number of windows."""
        taken = itertools.islice(steps, options["batches"])
        return float(sum(len(batches.batch(step)["label/item"]) for step in taken))

    return read


if __name__ == "__main__":
    serve(setup, ("numpy",))
