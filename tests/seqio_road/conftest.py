"""A study of hand-made timelines, and what is read of a SeqIO dataset."""

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from ml_collections import ConfigDict

from tests.timelines import make_names, make_table, table, vocabulary
from user_llm.data.timelines import TimelineTable
from user_llm.data.vocabularies import Vocabulary
from user_llm.tasks.task_data import TaskData

__all__ = ["make_names", "make_table", "table", "vocabulary"]


class TableStudy(TaskData):
    """A `Study` of given timelines and vocabulary."""

    table = catalogue = rating_names = vocabulary = None  # plain attributes: nothing is made on first use

    def __init__(self, table: TimelineTable, vocabulary: Vocabulary, task: str, **options):
        super().__init__()
        defaults = dict(history_length=5, min_history=2, text_history=0, validation=True)
        data = {name: options.pop(name, value) for name, value in defaults.items()}
        prompt = {"max_inputs": 120, "max_targets": 12, **options}
        self.config = ConfigDict({"task": task, "data": {"dataset": table.name, **data}, "prompt": prompt})
        self.table, self.catalogue, self.rating_names = table, table.catalogue, table.rating_names
        self.vocabulary = vocabulary


@pytest.fixture(scope="session")
def make_study(table, vocabulary) -> Callable[..., TableStudy]:
    """Builds a study of tasks ("next_item,review_generation") with options of `config.data` and `config.prompt`."""

    def make(task: str = "next_item", *, table=table, vocabulary=vocabulary, **options) -> TableStudy:
        return TableStudy(table, vocabulary, task, **options)

    return make


@pytest.fixture(scope="session")
def read() -> Callable[..., dict[str, np.ndarray]]:
    """The first `count` examples of a dataset, or all, as one batch of all features or of those named."""

    def read(dataset: tf.data.Dataset, names=None, count: int = -1) -> dict[str, np.ndarray]:
        examples = list(dataset.take(count).as_numpy_iterator())
        return {name: np.stack([example[name] for example in examples]) for name in names or examples[0]}

    return read
