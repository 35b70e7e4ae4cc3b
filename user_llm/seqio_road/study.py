"""A dataset for SeqIO's tasks where no experiment says how to read it: options, and what they make on first use."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from user_llm.builders.families import builder_of
from user_llm.builders.simulated import SimulatedConfig
from user_llm.data.prompts import category_noun_of, noun_of
from user_llm.data.timelines import Catalogue, TimelineTable, load_timelines
from user_llm.data.vocabularies import Vocabulary, load_vocabulary, train_sentencepiece
from user_llm.tasks import TASKS
from user_llm.tasks.task_data import TaskData

_DATA = ("dataset", "history_length", "min_history", "text_history", "validation")  # keys of `config.data` for tasks
# A vocabulary of our own reads the words of these tasks, so that all tasks of a dataset can share it.
_WORDS_OF = ("next_item", "favorite_category", "review_generation")


@dataclasses.dataclass(frozen=True)
class TaskOptions:
    """How a dataset is read for a task; the defaults are those of `user_llm/schema.py`, which says more on each.

    Attributes:
      dataset: "family/config".
      raw_path: zip or folder with the official files; "" downloads them.
      data_dir: where built datasets live; "" is TFDS's default.
      max_malformed: share of malformed rows above which the build stops.
      simulated: what a "<family>/simulated" is.
      category_level: which of an Amazon product's category path.
      history_length, min_history, text_history, validation: of the windows; a `min_history` of 0 admits full
        histories only.
      max_inputs, max_targets: tokens of the longest prompt and answer.
      vocabulary: tokenizer file or its folder; "" trains a SentencePiece model on the catalogue, on first use, and
        keeps it beside the built dataset.
      vocabulary_size: pieces, when one is trained.
    """

    dataset: str
    raw_path: str = ""
    data_dir: str = ""
    max_malformed: float = 0.0
    simulated: SimulatedConfig = dataclasses.field(default_factory=SimulatedConfig)
    category_level: int = 1
    history_length: int = 50
    min_history: int = 0
    text_history: int = 0
    validation: bool = True
    max_inputs: int = 32
    max_targets: int = 24
    vocabulary: str = ""
    vocabulary_size: int = 2048


REVIEW_ROOM = {"max_inputs": 128, "max_targets": 64}
"""Of tasks that answer with reviews: their prompts have title, category and rating (`user_llm/paper.py`)."""


class DatasetStudy(TaskData):
    """What tasks read of a dataset. Making it builds, reads and downloads nothing.

    Args:
      options: how to read it.
    """

    def __init__(self, options: TaskOptions):
        super().__init__()
        self._options = options
        data = {name: getattr(options, name) for name in _DATA}
        prompt = {name: getattr(options, name) for name in ("max_inputs", "max_targets")}
        self.config = ConfigDict({"data": data, "prompt": prompt})

    def _build(self) -> dict[str, Any]:
        options, family = self._options, self._options.dataset.partition("/")[0]
        return {
            "name": options.dataset,
            "raw_path": options.raw_path or None,
            "data_dir": options.data_dir or None,
            "max_malformed": options.max_malformed,
            "simulated": options.simulated if options.dataset.endswith("/simulated") else None,
            "options": {"category_level": options.category_level} if family == "amazon_reviews" else None,
        }

    @functools.cached_property
    def table(self) -> TimelineTable:
        """The timelines; built from the raw files where they are not built yet."""
        return load_timelines(**self._build(), wait=True)  # all hosts of a trainer read their tasks at once

    @property
    def catalogue(self) -> Catalogue:
        """The items."""
        return self.table.catalogue

    @property
    def rating_names(self) -> list[str]:
        """By rating class; "" for 0, the padding."""
        return self.table.rating_names

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """The one that is named, or one of our own, trained where it is not there yet."""
        if self._options.vocabulary:
            return load_vocabulary(self._options.vocabulary)
        table, size = self.table, self._options.vocabulary_size
        file = Path(builder_of(**self._build()).data_dir) / f"vocabulary-{size}-{table.fingerprint[:16]}.model"
        if not file.is_file():
            train_sentencepiece(self._texts(), size, file)
        return load_vocabulary(file)

    def _texts(self) -> list[str]:
        nouns = noun_of(self._options.dataset), category_noun_of(self._options.dataset)
        words = [text for name in _WORDS_OF for text in TASKS[name].wording(*nouns).texts()]
        return [*self.documents, *self.rating_names, *words]
