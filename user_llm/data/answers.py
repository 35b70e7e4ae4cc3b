"""What a task answers: a title, the name of the favourite category, or a review, in tokens for a batch of windows."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
import seqio

from user_llm.data.favorites import favorite_categories
from user_llm.data.timelines import TimelineTable
from user_llm.data.vocabularies import NameTokens, cut_tokens, encode_continuations, pad_rows


class AnswerTokens(NamedTuple):
    """Right answers of a batch.

    `label` int32 [B]: the number of the name answered (item or category id), 0 for free text. `tokens` int32 [B, W]:
    the answer and its EOS, right-padded with 0. `lengths` int32 [B]: tokens with EOS; 0 where there is no answer.
    """

    label: np.ndarray
    tokens: np.ndarray
    lengths: np.ndarray


class Answers(Protocol):
    """Right answers of a task.

    Attributes:
        width: W, tokens of the longest answer, EOS included.
    """

    width: int

    def gather(self, batch: Mapping[str, np.ndarray], events: np.ndarray) -> AnswerTokens:
        """The answers for a batch of `Windows.gather`, whose labels lie at `events`, int [B], of the flat columns."""
        ...

    def texts(self, batch: Mapping[str, np.ndarray], events: np.ndarray) -> list[str]:
        """The same in words, whole."""
        ...


class _NameAnswers:
    """Answers that are names of a fixed list."""

    def __init__(self, words: list[str], names: NameTokens):
        self._words = words
        self.names = names
        self.width = names.targets.shape[1]

    def labels(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """The number of the right name, int32 [B]; 0 where there is none."""
        raise NotImplementedError

    def gather(self, batch: Mapping[str, np.ndarray], events: np.ndarray) -> AnswerTokens:
        """See `Answers`."""
        del events
        label = self.labels(batch)
        lengths = np.where(label > 0, self.names.lengths[label] + 1, 0).astype(np.int32)
        return AnswerTokens(label, self.names.targets[label], lengths)

    def texts(self, batch: Mapping[str, np.ndarray], events: np.ndarray) -> list[str]:
        """See `Answers`."""
        del events
        return [self._words[label] for label in self.labels(batch)]


class TitleAnswers(_NameAnswers):
    """Task `next_item`: the label's title.

    Args:
        words: titles by item id.
        names: the same in tokens.
    """

    def labels(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """The label's item id."""
        return batch["label/item"]


class FavoriteCategoryAnswers(_NameAnswers):
    """Task `favorite_category`: the category most frequent in the history that the model sees, never the label event.

    Args:
        words: category names by id.
        names: the same in tokens.
        item_categories: int [I+1, C], category ids of each item, 0-padded.
    """

    def __init__(self, words: list[str], names: NameTokens, item_categories: np.ndarray):
        super().__init__(words, names)
        self._item_categories = item_categories

    def labels(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """The favourite category's id (`favorite_categories`)."""
        return favorite_categories(batch["history/item"], self._item_categories)


class ReviewAnswers:
    """Task `review_generation`: the review of the label event.

    Tokenised a batch at a time, in one call: reviews may be more than fit into memory as tokens. A review longer than
    `max_targets`, EOS included, is cut at a whole character; an event without review has no answer.

    Args:
        table: the timelines.
        vocabulary: the LLM's.
        max_targets: longest answer in tokens, EOS included.
    """

    def __init__(self, table: TimelineTable, vocabulary: seqio.Vocabulary, max_targets: int):
        self._table = table
        self._vocabulary = vocabulary
        self.width = max_targets

    def gather(self, batch: Mapping[str, np.ndarray], events: np.ndarray) -> AnswerTokens:
        """See `Answers`."""
        rows = self.encode(self.texts(batch, events))
        tokens, lengths = pad_rows(rows)
        tokens = np.pad(tokens, ((0, 0), (0, self.width - tokens.shape[1])))
        return AnswerTokens(np.zeros(len(rows), np.int32), tokens, lengths)

    def texts(self, batch: Mapping[str, np.ndarray], events: np.ndarray) -> list[str]:
        """See `Answers`."""
        del batch
        return self._table.reviews(events)

    def count_cut(self, events: np.ndarray) -> int:
        """How many reviews of the events, int [B], are too long for `width` and lose their end."""
        rows = encode_continuations(self._vocabulary, self._table.reviews(events))
        return sum(len(row) >= self.width for row in rows)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Tokens of reviews with EOS, cut to `width`; none for an empty one."""
        rows = encode_continuations(self._vocabulary, texts)
        return [[*self._cut(row), self._vocabulary.eos_id] if row else [] for row in rows]

    def _cut(self, row: list[int]) -> list[int]:
        return row if len(row) < self.width else cut_tokens(self._vocabulary, row, self.width - 1)
