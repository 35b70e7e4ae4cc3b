"""SeqIO preprocessors: from a window to token features, one example at a time, in TensorFlow.

Written apart from the array code of `prompts.py` and `answers.py` on purpose, so that a test can hold the two equal.
"""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from user_llm.data.answers import Answers
from user_llm.data.prompts import Prompts
from user_llm.data.timelines import TimelineTable
from user_llm.errors import UserError
from user_llm.tasks.favorite_category import FavoriteCategoryAnswers
from user_llm.tasks.next_item import TitleAnswers
from user_llm.tasks.review_generation import ReviewAnswers

Example = dict[str, tf.Tensor]


def _refuse_to_cut(name: str, needed: int, sequence_length: Mapping[str, int] | None) -> None:
    length = (sequence_length or {}).get(name)
    if length is not None and length < needed:
        raise UserError(
            f"sequence_length[{name!r}]={length} would cut {name} of up to {needed} tokens: "
            "raise it, or register the task with shorter prompts or answers."
        )


class WritePrompts:
    """Adds `inputs` and `dropped_events`: what `Prompts.build` says.

    Args:
        prompts: of the task.
    """

    def __init__(self, prompts: Prompts):
        self._prompts = prompts

    def __call__(self, dataset: tf.data.Dataset, sequence_length: dict[str, int] | None) -> tf.data.Dataset:
        """The dataset with the features added.

        Raises:
            UserError: SeqIO would cut prompts to `sequence_length`.
        """
        _refuse_to_cut("inputs", self._prompts.length, sequence_length)
        return dataset.map(self._write, num_parallel_calls=tf.data.AUTOTUNE)

    def _write(self, example: Example) -> Example:
        prompts = self._prompts
        after = tf.concat([self._piece(*piece, example) for piece in prompts.pieces], axis=0)
        if not prompts.text_history:
            inputs = tf.concat([prompts.before, after], axis=0)
            return {**example, "inputs": inputs, "dropped_events": tf.constant(0)}
        latest = example["history/item"][-prompts.text_history :]
        latest = tf.boolean_mask(latest, latest > 0)
        room = prompts.max_inputs - len(prompts.before) - tf.size(after)
        lengths = tf.gather(tf.constant(prompts.event_lengths), latest)
        fits = tf.cumsum(lengths, reverse=True) <= room
        rows = tf.RaggedTensor.from_tensor(
            tf.gather(tf.constant(prompts.events), tf.boolean_mask(latest, fits)),
            lengths=tf.boolean_mask(lengths, fits),
        )
        inputs = tf.concat([prompts.before, rows.flat_values, after], axis=0)
        return {
            **example,
            "inputs": inputs,
            "dropped_events": tf.size(latest) - tf.size(tf.boolean_mask(latest, fits)),
        }

    def _piece(self, tokens: np.ndarray, lengths: np.ndarray, value: str, example: Example) -> tf.Tensor:
        index = tf.constant(0)
        if value == "title":
            index = example["label/item"]
        elif value == "category":
            index = tf.gather(tf.constant(self._prompts.names.item_categories[:, 0]), example["label/item"])
        elif value == "rating":
            index = example["label/rating"]
        return tf.gather(tf.constant(tokens), index)[: tf.gather(tf.constant(lengths), index)]


class WriteTitles:
    """Adds `targets` (the label's title and EOS), `label/answer` and `references`: what `TitleAnswers` says."""

    def __init__(self, answers: TitleAnswers, table: TimelineTable):
        self._names = answers.names
        self._titles = np.array(table.catalogue.titles)
        self._width = answers.width

    def __call__(self, dataset: tf.data.Dataset, sequence_length: dict[str, int] | None) -> tf.data.Dataset:
        """The dataset with the features added; UserError where SeqIO would cut a title."""
        _refuse_to_cut("targets", self._width, sequence_length)
        return dataset.map(self._write, num_parallel_calls=tf.data.AUTOTUNE)

    def _write(self, example: Example) -> Example:
        label = example["label/item"]
        length = tf.gather(tf.constant(self._names.lengths), label) + 1
        return {
            **example,
            "targets": tf.gather(tf.constant(self._names.targets), label)[:length],
            "label/answer": label,
            "references": tf.gather(tf.constant(self._titles), label),
        }


class WriteFavorites:
    """The same features of the favourite category: what `FavoriteCategoryAnswers` says."""

    def __init__(self, answers: FavoriteCategoryAnswers, table: TimelineTable):
        self._names = answers.names
        self._words = np.array(table.catalogue.category_names)
        self._item_categories = table.catalogue.item_categories
        self._width = answers.width

    def __call__(self, dataset: tf.data.Dataset, sequence_length: dict[str, int] | None) -> tf.data.Dataset:
        """The dataset with the features added; UserError where SeqIO would cut a name."""
        _refuse_to_cut("targets", self._width, sequence_length)
        return dataset.map(self._write, num_parallel_calls=tf.data.AUTOTUNE)

    def _write(self, example: Example) -> Example:
        sets = tf.gather(tf.constant(self._item_categories), example["history/item"])
        seen = tf.reshape(tf.reverse(sets, [1]), [-1])  # oldest first; of an event, what is listed first comes last
        seen = tf.boolean_mask(seen, seen > 0)
        counts = tf.math.bincount(seen, minlength=len(self._words), maxlength=len(self._words))
        frequent = (counts == tf.reduce_max(counts)) & (counts > 0)
        # The last of the most frequent ones to be seen; a 0 in front stands for a history without any.
        label = tf.concat([[0], tf.boolean_mask(seen, tf.gather(frequent, seen))], axis=0)[-1]
        length = tf.where(label > 0, tf.gather(tf.constant(self._names.lengths), label) + 1, 0)
        return {
            **example,
            "targets": tf.gather(tf.constant(self._names.targets), label)[:length],
            "label/answer": label,
            "references": tf.gather(tf.constant(self._words), label),
        }


class WriteReviews:
    """The same features of the label event's review, from its `label/event`: what `ReviewAnswers` says."""

    def __init__(self, answers: ReviewAnswers, table: TimelineTable):
        self._answers = answers
        self._table = table

    def __call__(self, dataset: tf.data.Dataset, sequence_length: dict[str, int] | None) -> tf.data.Dataset:
        """The dataset with the features added; UserError where SeqIO would cut a review."""
        _refuse_to_cut("targets", self._answers.width, sequence_length)
        return dataset.map(self._write, num_parallel_calls=tf.data.AUTOTUNE)

    def _write(self, example: Example) -> Example:
        def read(event):
            (text,) = self._table.reviews(event[None])
            (tokens,) = self._answers.encode([text])
            return np.array(tokens, np.int32), np.array(text, object)

        tokens, text = tf.numpy_function(read, [example["label/event"]], [tf.int32, tf.string])
        tokens.set_shape([None])
        text.set_shape([])
        return {**example, "targets": tokens, "label/answer": tf.constant(0), "references": text}


_WRITERS = {TitleAnswers: WriteTitles, FavoriteCategoryAnswers: WriteFavorites, ReviewAnswers: WriteReviews}


def write_answers(answers: Answers, table: TimelineTable) -> WriteTitles | WriteFavorites | WriteReviews:
    """The preprocessor that writes a task's answers."""
    return _WRITERS[type(answers)](answers, table)


class AddUserIds:
    """Adds the source's own `user_id`, for people to read.

    Args:
        table: the timelines.
    """

    def __init__(self, table: TimelineTable):
        self._user_ids = np.array(table.user_ids)

    def __call__(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """The dataset with the feature added."""
        user_ids = tf.constant(self._user_ids)
        return dataset.map(
            lambda example: {**example, "user_id": tf.gather(user_ids, example["user"])},
            num_parallel_calls=tf.data.AUTOTUNE,
        )
