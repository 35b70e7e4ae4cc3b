"""What a task is: its words, its right answers, its evaluation, and how a finished model is asked (paper 4.1)."""

import abc
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from user_llm.data.answers import Answers
from user_llm.data.prompts import Names, Prompts, Wording
from user_llm.data.sources import UserLLMSource
from user_llm.data.timelines import Catalogue, TimelineTable
from user_llm.data.vocabularies import NameTokens, Vocabulary
from user_llm.data.windows import Windows
from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.decoding.text_states import TextStates
from user_llm.errors import UserError
from user_llm.evaluation.fusion import Fusion
from user_llm.evaluation.ranks import best
from user_llm.evaluation.text_metrics import recall_of_names
from user_llm.models.model import Model

Batch = Mapping[str, np.ndarray]


class Study(Protocol):
    """What a task reads of an experiment (`experiment.Experiment`). What belongs to one task is asked for by its name.

    Attributes:
      config: the whole config.
      table, catalogue, rating_names: the data; a finished run has no table at hand unless it is asked for.
      vocabulary, names: the LLM's vocabulary, and the catalogue's names in it.
      item_counts: int64 `[I+1]`, how often each item occurs among the events a model may learn from.
      mesh: the devices of all processes of the run, each of which evaluates a share; None: of this one alone.
    """

    config: ConfigDict

    @property
    def table(self) -> TimelineTable: ...

    @property
    def catalogue(self) -> Catalogue: ...

    @property
    def rating_names(self) -> list[str]: ...

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def names(self) -> Names: ...

    @property
    def item_counts(self) -> np.ndarray: ...

    @property
    def mesh(self) -> Mesh | None: ...

    @property
    def cold_items(self) -> np.ndarray | None:
        """bool `[I+1]`: items that no model has learnt of, to be asked about; None where all are learnt."""
        ...

    def cold_source(self, task: str, most: int) -> UserLLMSource:
        """The task's questions before events of cold items, at most so many, evenly spread over them."""
        ...

    def windows(self, split: str) -> Windows:
        """The windows of `train`, `validation` or `test`."""
        ...

    def prompts(self, task: str) -> Prompts:
        """The task's prompts in tokens."""
        ...

    def answer_trie(self, task: str) -> CatalogueTrie:
        """The names an answer of the task may be."""
        ...

    def source(self, task: str, split: str) -> UserLLMSource:
        """The windows of a split with the task's prompts and answers."""
        ...

    def text_states(self, task: str, model: Model) -> TextStates | None:
        """What layers of `model` that know no user have made of the task's prompt and names, where that is kept."""
        ...

    def fusion(self, task: str, fit: Callable[[], Fusion]) -> Fusion:
        """How the answers of the task's LLM and of the encoder are mixed: as kept, or as `fit` finds."""
        ...


class Evaluation(NamedTuple):
    """What a task's evaluation found.

    Attributes:
      protocols: which test users → `users`, `rows` and `comparisons` (`report.write_results`).
      predictions: one JSON-able mapping a test user.
      facts: more for `results.json`.
    """

    protocols: dict[str, Any]
    predictions: Iterable[Mapping[str, Any]]
    facts: dict[str, Any]


class Answer(NamedTuple):
    """What a model answers, and its log-probability; None where the task has none."""

    text: str
    score: float | None


Asker = Callable[[Batch], list[list[Answer]]]


def best_answers(names: Sequence[str], scores: np.ndarray, k: int) -> list[list[Answer]]:
    """The `k` names of the highest `scores` float `[B, names]` in each row, or as many as are above -inf."""
    return [
        [Answer(names[name], float(row[name])) for name in order if name]
        for row, order in zip(scores, best(scores, k).tolist(), strict=True)
    ]


MetricFn = Callable[[Sequence[str], Sequence[Any]], dict[str, float]]


class Task(abc.ABC):
    """A question about a user. A task of your own: `TASKS.register(MyTask())`, in the file of your config, say.

    Attributes:
      name: what `config.task` calls it.
      headline: the metric that its comparisons are told in.
      needs: of "category" and "review", what a dataset must have.
      asks_about_label: whether its prompts write the label event, of which then something else is asked.
      answers_reviews: whether a vocabulary of our own should read the reviews of training events.
      metric_fns: `(targets, predictions) → {name: value}` over answers in words, as SeqIO's tasks have them; the
        default is for names. A prediction is a text, or a list of texts, best first.
    """

    name: str
    headline: str
    needs: tuple[str, ...] = ()
    asks_about_label = False
    answers_reviews = False
    metric_fns: tuple[MetricFn, ...] = (recall_of_names,)

    @abc.abstractmethod
    def wording(self, noun: str, category_noun: str) -> Wording:
        """The words of its prompts, for items and categories that are called so."""

    @abc.abstractmethod
    def answers(self, study: Study) -> Answers:
        """Its right answers in tokens."""

    def answer_names(self, names: Names) -> NameTokens | None:
        """The names an answer may be; None where it is free text."""
        del names
        return None

    def problems(self, config: ConfigDict) -> Iterator[str]:
        """A line for each value of the config that does not go with this task."""
        del config
        yield from ()

    @abc.abstractmethod
    def evaluate(self, study: Study, trained: Mapping[str, Model]) -> Evaluation:
        """Answers for every test user under every row, and how good they are.

        Args:
          trained: finished stages by name; a row whose stage is missing is left out.
        """

    @abc.abstractmethod
    def asker(self, study: Study, model: Model, k: int) -> Asker:
        """Compiles `batch → the k best answers of each user`, best first, for users who have no label.

        A batch has `prompt_tokens`, `prompt_lengths`, `history/item` int `[B, S]`, and of each user what
        `evaluation/users.py` reads; `seen/item`, where more than the history is no answer.
        """

    def asker_by(self, answers: str, study: Study, trained: Mapping[str, Model], k: int) -> Asker:
        """As `asker`, in another way than the task's own.

        Raises:
          UserError: there is no such way, or the run has not trained what it needs.
        """
        del study, trained, k
        raise UserError(f"task {self.name!r} answers in one way only: leave answers={reprlib.repr(answers)} out.")
