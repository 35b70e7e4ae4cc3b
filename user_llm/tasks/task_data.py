"""What tasks read of a dataset: windows, names, prompts and answers, each made once, on first use."""

import abc
import functools
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from user_llm.data.answers import Answers, TellingAnswers
from user_llm.data.prompts import Names, Prompts, catalogue_documents, category_noun_of, noun_of
from user_llm.data.sources import UserLLMSource
from user_llm.data.timelines import Catalogue, TimelineTable
from user_llm.data.vocabularies import NameTokens, Vocabulary
from user_llm.data.windows import Windows
from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.decoding.text_states import TextStates
from user_llm.errors import UserError
from user_llm.evaluation.baselines import item_counts
from user_llm.evaluation.fusion import Fusion
from user_llm.models.model import Model
from user_llm.tasks import TASKS

_logger = logging.getLogger(__name__)


class TaskData(abc.ABC):
    """A `Study` of a config, timelines and a vocabulary, which a subclass brings.

    Attributes:
      config: its sections `data` and `prompt` are read.
      table, catalogue, rating_names, vocabulary, mesh: see `Study`.
    """

    config: ConfigDict
    mesh: Mesh | None = None

    @property
    @abc.abstractmethod
    def table(self) -> TimelineTable: ...

    @property
    @abc.abstractmethod
    def catalogue(self) -> Catalogue: ...

    @property
    @abc.abstractmethod
    def rating_names(self) -> list[str]: ...

    @property
    @abc.abstractmethod
    def vocabulary(self) -> Vocabulary: ...

    def __init__(self):
        self._prompts: dict[str, Prompts] = {}
        self._answers: dict[str, Answers] = {}
        self._telling: dict[str, TellingAnswers] = {}
        self._tries: dict[str, CatalogueTrie] = {}

    def windows(self, split: str, **options: Any) -> Windows:
        """The windows of `train`, `validation` or `test`; with further options of `Windows`."""
        data = self.config.data
        return Windows(
            self.table,
            history_length=data.history_length,
            split=split,
            min_history=data.min_history or None,
            validation=data.validation,
            **options,
        )

    @functools.cached_property
    def item_counts(self) -> np.ndarray:
        """int64 `[I+1]`: how often each item occurs among the events a model may learn from."""
        splits = ("test", "validation") if self.config.data.validation else ("test",)
        held_out = [self.windows(split) for split in splits]
        return item_counts(self.table.item, self.table.catalogue.num_items, held_out)

    @functools.cached_property
    def names(self) -> Names:
        """Titles, categories and ratings in tokens."""
        catalogue, most = self.catalogue, self.config.prompt.max_targets
        titles, categories, ratings = (
            NameTokens(names, self.vocabulary, most)
            for names in (catalogue.titles, catalogue.category_names, self.rating_names)
        )
        _logger.info(
            "%d titles in %d pieces at most; %d of them cut at prompt.max_targets=%d; %d duplicates numbered",
            *(catalogue.num_items, titles.lengths.max(), titles.cut, most, catalogue.duplicates),
        )
        return Names(titles, categories, ratings, catalogue.item_categories)

    @property
    def cold_items(self) -> np.ndarray | None:
        """See `Study`: none."""
        return None

    def cold_source(self, task: str, most: int) -> UserLLMSource:
        """See `Study`."""
        raise NotImplementedError

    @functools.cached_property
    def documents(self) -> list[str]:
        """A sentence on each item that a model may learn of."""
        documents = catalogue_documents(self.catalogue, noun_of(self.config.data.dataset))
        if self.cold_items is None:
            return documents
        return [text for text, cold in zip(documents, self.cold_items[1:], strict=True) if not cold]

    def prompts(self, task: str) -> Prompts:
        """A task's prompts in tokens."""
        if task not in self._prompts:
            config, dataset = self.config, self.config.data.dataset
            self._prompts[task] = Prompts(
                self.names,
                TASKS[task].wording(noun_of(dataset), category_noun_of(dataset)),
                max_inputs=config.prompt.max_inputs,
                text_history=config.data.text_history,
            )
        return self._prompts[task]

    def answers(self, task: str) -> Answers:
        """A task's right answers in tokens."""
        if task not in self._answers:
            self._answers[task] = TASKS[task].answers(self)
        return self._answers[task]

    def telling_answers(self, task: str) -> TellingAnswers:
        """The same as far as each tells its name from all others."""
        if task not in self._telling:
            self._telling[task] = TellingAnswers(self.answers(task), self.answer_trie(task).telling_tokens())
        return self._telling[task]

    def answer_trie(self, task: str) -> CatalogueTrie:
        """The names an answer of a task may be."""
        if task not in self._tries:
            names = TASKS[task].answer_names(self.names)
            if names is None:
                raise UserError(f"task {task!r} answers in free text: only the names of `answer_names` make a trie.")
            self._tries[task] = CatalogueTrie.build(names.tokens, names.lengths, self.vocabulary.eos_id)
        return self._tries[task]

    def text_states(self, task: str, model: Model) -> TextStates | None:
        """None: data alone keep no states of a model."""
        del task, model
        return None

    def fusion(self, task: str, fit: Callable[[], Fusion]) -> Fusion:
        """See `Study`: data alone keep none."""
        del task
        return fit()

    def source(self, task: str, split: str) -> UserLLMSource:
        """The windows of a split with a task's prompts and answers."""
        return UserLLMSource(self.windows(split), self.prompts(task), self.answers(task))
