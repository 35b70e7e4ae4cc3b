"""Training batches from an in-memory table of MovieLens-20M's shape, on one core: windows alone, or answered prompts.

Of the array road, or of SeqIO's tasks over the same code.
"""

import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks.protocol import serve
from user_llm.data.pipeline import TrainBatches
from user_llm.data.timelines import Catalogue, TimelineTable
from user_llm.data.vocabularies import load_vocabulary, train_sentencepiece
from user_llm.seqio_road import reader
from user_llm.tasks.task_data import TaskData

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


class SimulatedStudy(TaskData):
    """The next item of random timelines, asked in a sentence."""

    table = catalogue = rating_names = vocabulary = None  # plain attributes: nothing is made on first use

    def __init__(self, folder: Path):
        super().__init__()
        data = dict(dataset="simulated", history_length=50, min_history=0, text_history=0, validation=False)
        prompt = dict(max_inputs=32, max_targets=24)
        self.config = ConfigDict(dict(task="next_item", data=data, prompt=prompt))
        self.table = simulated_table()
        self.catalogue, self.rating_names = self.table.catalogue, self.table.rating_names
        train_sentencepiece(self.catalogue.titles[:2000], 300, folder / "tokenizer.model")
        self.vocabulary = load_vocabulary(folder / "tokenizer.model")


def setup(options: dict[str, Any]):
    """`options`: road (windows | seqio), reads (windows | prompts), batch_size and batches a round."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        study = SimulatedStudy(Path(folder))
        size, prompts = options["batch_size"], options["reads"] == "prompts"
        source = study.source("next_item", "train") if prompts else study.windows("train")
        if options["road"] == "windows":
            batches = map(TrainBatches(source, size, seed=0).batch, itertools.count())
        elif prompts:
            batches = reader.user_llm_batches(study, source, size, seed=0).iterator(threads=1)
        else:
            batches = reader.encoder_batches(source, size, seed=0).iterator(threads=1)

    def read() -> float:
        """Reads the next batches; their number of examples."""
        return float(sum(len(batch["label/item"]) for batch in itertools.islice(batches, options["batches"])))

    return read


if __name__ == "__main__":
    serve(setup, ("numpy", "seqio", "tensorflow"))
