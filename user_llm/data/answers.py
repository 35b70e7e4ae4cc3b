"""What a task answers, in tokens for a batch of windows: a name of a fixed list, or whatever the task makes of it."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

from user_llm.data.vocabularies import NameTokens


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

    def count_cut(self, events: np.ndarray) -> int:
        """How many answers of the events, int [B], are too long for `width` and lose their end; names apart."""
        ...


class NameAnswers:
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

    def count_cut(self, events: np.ndarray) -> int:
        """See `Answers`: `NameTokens` has counted the names that are cut."""
        del events
        return 0


class TellingAnswers:
    """Answers as far as they tell a name from all others: no rival of what is left to say is in the catalogue.

    Args:
        answers: whole.
        tokens: int [n], by the name's number: how many tell it (`CatalogueTrie.telling_tokens`).
    """

    def __init__(self, answers: Answers, tokens: np.ndarray):
        self._answers, self.tokens = answers, tokens
        self.width = int(tokens.max())

    def gather(self, batch: Mapping[str, np.ndarray], events: np.ndarray) -> AnswerTokens:
        """See `Answers`."""
        label, answers, lengths = self._answers.gather(batch, events)
        lengths = np.minimum(lengths, self.tokens[label])
        told = np.arange(self.width) < lengths[:, None]
        return AnswerTokens(label, np.where(told, answers[:, : self.width], 0), lengths)

    def texts(self, batch: Mapping[str, np.ndarray], events: np.ndarray) -> list[str]:
        """See `Answers`."""
        return self._answers.texts(batch, events)

    def count_cut(self, events: np.ndarray) -> int:
        """See `Answers`."""
        return self._answers.count_cut(events)
