"""SeqIO preprocessors: from a window to token features, with the code of the array road, many examples at a time."""

from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from user_llm.data.sources import UserLLMSource
from user_llm.errors import UserError
from user_llm.seqio_road.sources import CHUNK

Example = dict[str, tf.Tensor]

NUMBERS = ("label/item", "label/rating", "label/answer", "user", "dropped_events")
"""Features that are one number. In a task they are int32 [1]: SeqIO cuts every feature to its length, a scalar too."""


class WriteAnsweredPrompts:
    """Adds a task's prompts and answers to windows: the one preprocessor of every task.

    That is `inputs` (the prompt) and `targets` (the answer and EOS), int32, unpadded; `dropped_events` and
    `label/answer`; `references` (the answer in words, whole) and `user_id` (the source's own), strings.

    Args:
        answered: gives a source whose prompts and answers are the task's, on first use.
    """

    def __init__(self, answered: Callable[[], UserLLMSource]):
        self._answered = answered

    def __call__(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """The dataset of windows with the features added, and `NUMBERS` lifted to length 1."""
        answered, windows = self._answered(), list(dataset.element_spec)
        prompts, answers, user_ids = answered.prompts, answered.answers, answered.windows.table.user_ids

        def write(*values: np.ndarray) -> list[np.ndarray]:
            batch = dict(zip(windows, values, strict=True))
            events = batch.pop("label/event")
            inputs, lengths, dropped = prompts.build(batch["history/item"], batch["label/item"], batch["label/rating"])
            answer = answers.gather(batch, events)
            numbers = (inputs, lengths, answer.tokens, answer.lengths, dropped, answer.label)
            texts = (answers.texts(batch, events), [user_ids[user] for user in batch["user"]])
            return [
                *(np.asarray(number, np.int32) for number in numbers),
                *(np.array([text.encode() for text in found], object) for found in texts),
            ]

        def add(batch: Example) -> Example:
            types = [tf.int32] * 6 + [tf.string] * 2
            written = tf.numpy_function(write, [batch[name] for name in windows], types)
            widths = (prompts.length, None, answers.width, *[None] * 5)
            for values, width in zip(written, widths, strict=True):
                values.set_shape([None, width] if width else [None])
            inputs, lengths, targets, target_lengths, dropped, label, references, ids = written
            numbers = {**batch, "dropped_events": dropped, "label/answer": label}
            return {
                **{name: values[:, None] if name in NUMBERS else values for name, values in numbers.items()},
                "inputs": (inputs, lengths),
                "targets": (targets, target_lengths),
                "references": references,
                "user_id": ids,
            }

        def cut(example: dict) -> Example:
            return {name: v[0][: v[1]] if isinstance(v, tuple) else v for name, v in example.items()}

        written = dataset.batch(CHUNK).map(add, num_parallel_calls=tf.data.AUTOTUNE).unbatch()
        return written.map(cut, num_parallel_calls=tf.data.AUTOTUNE)


class RefuseToCut:
    """Passes examples through, unless SeqIO is about to cut their prompts or answers. It stands behind the cache.

    Args:
        answered: gives a source whose prompts and answers are the task's, on first use.
    """

    def __init__(self, answered: Callable[[], UserLLMSource]):
        self._answered = answered

    def __call__(self, dataset: tf.data.Dataset, sequence_length: Mapping[str, int] | None = None) -> tf.data.Dataset:
        """The same dataset.

        Raises:
            UserError: `sequence_length` is below the longest prompt or answer.
        """
        answered = self._answered()
        for name, needed in (("inputs", answered.prompt_length), ("targets", answered.answer_width)):
            length = (sequence_length or {}).get(name)
            if length is not None and length < needed:
                raise UserError(
                    f"sequence_length[{name!r}]={length} would cut {name} of up to {needed} tokens: "
                    "raise it, or register the task with shorter prompts or answers."
                )
        return dataset
