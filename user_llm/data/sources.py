"""From windows to what a model reads, in whole batches.

The decoder's features are SeqIO's standard ones for a full sequence `[BOS] prompt title EOS`, right-padded with
0: inputs are all but its last token, targets all but its first, and loss weights choose what is learnt.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from user_llm.data.answers import Answers
from user_llm.data.prompts import Prompts, pack_left
from user_llm.data.vocabularies import Vocabulary, pad_rows, text_start
from user_llm.data.windows import Windows
from user_llm.errors import UserError


def decoder_features(
    tokens: np.ndarray, lengths: np.ndarray, learnt_from: np.ndarray | int = 1
) -> dict[str, np.ndarray]:
    """SeqIO's decoder features of full sequences.

    Args:
        tokens: int32 [B, T+1], right-padded with 0.
        lengths: int [B], tokens of each sequence.
        learnt_from: int [B] or one for all; the first token that is a target with weight 1.

    Returns:
        decoder_input_tokens, decoder_target_tokens, decoder_positions: int32 [B, T]; decoder_loss_weights:
        float32 [B, T].
    """
    place = np.arange(1, tokens.shape[1])
    learnt = (place >= np.reshape(learnt_from, (-1, 1))) & (place < lengths[:, None])
    positions = np.arange(tokens.shape[1] - 1, dtype=np.int32)
    return {
        "decoder_input_tokens": np.ascontiguousarray(tokens[:, :-1]),
        "decoder_target_tokens": np.ascontiguousarray(tokens[:, 1:]),
        "decoder_loss_weights": learnt.astype(np.float32),
        "decoder_positions": np.tile(positions, (len(tokens), 1)),
    }


class AnsweredPrompts(NamedTuple):
    """Full sequences int32 [B, T+1] and their lengths [B]; their prompts [B, P], those lengths, dropped events; labels.

    A window without an answer has the length of its prompt, so that nothing of it is learnt.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    prompt_tokens: np.ndarray
    prompt_lengths: np.ndarray
    dropped_events: np.ndarray
    label: np.ndarray


def answered_batch(sequences: AnsweredPrompts) -> dict[str, np.ndarray]:
    """What a model reads of answered prompts: all of `UserLLMSource.gather` that is not the window's own."""
    return {
        **decoder_features(sequences.tokens, sequences.lengths, sequences.prompt_lengths),
        "prompt_tokens": sequences.prompt_tokens,
        "prompt_lengths": sequences.prompt_lengths,
        "dropped_events": sequences.dropped_events,
        "label/answer": sequences.label,
    }


class UserLLMSource:
    """Windows with their prompts and answers in tokens, for the contextualised LLM.

    Args:
        windows: which windows.
        prompts: of the task.
        answers: of the task.

    Attributes:
        windows, prompts, answers: as given.
        split: of the windows.
        vocabulary: of the tokens.
        prompt_length: P, the width of the prompts.
        answer_width: W, that of the answers with their EOS.
        length: T+1 = P + W, the width of the full sequences.

    Raises:
        UserError: the prompts write out more events than a history holds.
    """

    def __init__(self, windows: Windows, prompts: Prompts, answers: Answers):
        if prompts.text_history > windows.history_length:
            raise UserError(
                f"text_history={prompts.text_history} writes out more events than history_length="
                f"{windows.history_length} holds: raise history_length, or lower text_history."
            )
        self.windows = windows
        self.prompts = prompts
        self.answers = answers
        self.split = windows.split
        self.vocabulary = prompts.names.titles.vocabulary
        self.prompt_length = prompts.length
        self.answer_width = answers.width
        self.length = prompts.length + answers.width

    def __len__(self) -> int:
        return len(self.windows)

    def bounds(self, shards: int) -> np.ndarray:
        """See `Windows.bounds`."""
        return self.windows.bounds(shards)

    def gather(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """A batch.

        Args:
            ids: int [B], window numbers.

        Returns:
            What `Windows.gather` gives; `decoder_features` [B, T] with weight 1 on the answer and its EOS;
            prompt_tokens int32 [B, P], the prompt alone; prompt_lengths and dropped_events, int32 [B] (see
            `Prompts.build`); label/answer int32 [B], the right name's number (see `AnswerTokens`).
        """
        batch = self.windows.gather(ids)
        return {**batch, **answered_batch(self.sequences(batch, self.windows.label_positions(ids)))}

    def read(self, ids: np.ndarray) -> AnsweredPrompts:
        """Prompts and answers of the windows `ids` [B]."""
        return self.sequences(self.windows.gather(ids), self.windows.label_positions(ids))

    def references(self, ids: np.ndarray) -> list[str]:
        """The right answers of the windows `ids` [B] in words, whole however long; "" where there is none."""
        return self.answers.texts(self.windows.gather(ids), self.windows.label_positions(ids))

    def sequences(self, batch: Mapping[str, np.ndarray], events: np.ndarray) -> AnsweredPrompts:
        """Prompts for a batch of windows whose labels lie at `events` [B], each with its answer directly behind it."""
        prompts, prompt_lengths, dropped = self.prompts.build(
            batch["history/item"], batch["label/item"], batch["label/rating"]
        )
        label, answers, answer_lengths = self.answers.gather(batch, events)
        tokens = np.concatenate([prompts, answers], axis=1)
        lengths = prompt_lengths + answer_lengths
        if (prompt_lengths < self.prompts.length).any():  # prompts differ in length: close the gap before the answer
            place = np.arange(self.length)
            in_answer = place - self.prompts.length
            of_answer = (in_answer >= 0) & (in_answer < answer_lengths[:, None])
            tokens, lengths = pack_left(tokens, (place < prompt_lengths[:, None]) | of_answer, self.length)
        return AnsweredPrompts(tokens, lengths, prompts, prompt_lengths, dropped, label)


class AnsweredSource(Protocol):
    """Windows with prompts and answers: a `UserLLMSource`, or a `Mixture` of several."""

    split: str
    vocabulary: Vocabulary
    length: int

    def __len__(self) -> int: ...

    def gather(self, ids: np.ndarray) -> dict[str, np.ndarray]: ...

    def read(self, ids: np.ndarray) -> AnsweredPrompts: ...


class Documents:
    """Documents in tokens.

    Args:
        texts: of the documents.
        vocabulary: whose BOS, if texts have one, and EOS stand around each.
        max_length: longest document in tokens; a longer one is cut.

    Attributes:
        length: tokens of the longest one.
        cut: how many were cut.
    """

    def __init__(self, texts: Sequence[str], vocabulary: Vocabulary, max_length: int):
        rows = [[*text_start(vocabulary), *row, vocabulary.eos_id] for row in vocabulary.encode_batch(texts)]
        self.cut = sum(len(row) > max_length for row in rows)
        self._tokens, self._lengths = pad_rows([row[:max_length] for row in rows])
        self.length = self._tokens.shape[1]

    def __len__(self) -> int:
        return len(self._tokens)

    def gather(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """tokens int32 [B, length], right-padded with 0, and lengths int32 [B], of the documents `ids` [B]."""
        return {"tokens": self._tokens[ids], "lengths": self._lengths[ids]}


class TextSource:
    """Text alone, for a language model trained from scratch: documents and answered prompts, half and half.

    Even numbers are documents, odd ones are training windows' full sequences; the shorter of the two lists starts
    over until the longer one is through. Everything but the first token is learnt.

    Args:
        documents: texts, as `prompts.catalogue_documents` gives them.
        answers: training windows with prompts and answers, of one task or a mixture.
        max_length: longest sequence in tokens, BOS and EOS included.

    Attributes:
        length: T+1, tokens of the longest sequence.
        documents: in tokens.

    Raises:
        ValueError: windows of another split than train.
        UserError: no document or no window, or a prompt with an answer that does not fit.
    """

    def __init__(self, documents: Sequence[str], answers: AnsweredSource, *, max_length: int):
        if answers.split != "train":
            raise ValueError(f"a language model learns from split 'train', got {answers.split!r}.")
        if not documents or not len(answers):
            raise UserError(f"{len(documents)} documents and {len(answers)} training windows: both are needed.")
        if answers.length > max_length:
            raise UserError(
                f"a prompt and the longest answer take {answers.length} tokens, more than max_length={max_length}: "
                "raise it, or lower max_inputs or max_targets."
            )
        self.documents = Documents(documents, answers.vocabulary, max_length)
        self.length = max(answers.length, self.documents.length)
        self._answers = answers

    def __len__(self) -> int:
        return 2 * max(len(self.documents), len(self._answers))

    def bounds(self, shards: int) -> np.ndarray:
        """Equal shards int64 [shards + 1]: of examples, not of users, as every document belongs to all."""
        return np.arange(shards + 1) * len(self) // shards

    def gather(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """A batch: `decoder_features` [B, T] of the examples `ids` [B]."""
        number, kind = np.divmod(np.asarray(ids), 2)
        documents = self.documents.gather(number % len(self.documents))
        lengths = documents["lengths"]
        tokens = np.pad(documents["tokens"], ((0, 0), (0, self.length - self.documents.length)))
        answered = np.flatnonzero(kind)
        sequences = self._answers.read(number[answered] % len(self._answers))
        tokens[answered] = 0
        tokens[answered, : self._answers.length] = sequences.tokens
        lengths[answered] = sequences.lengths
        return decoder_features(tokens, lengths)
