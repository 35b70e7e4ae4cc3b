"""SeqIO preprocessors: from a window to token features, one example at a time, in TensorFlow."""

import numpy as np
import tensorflow as tf

from user_llm.data.prompts import NextItemPrompts
from user_llm.data.timelines import TimelineTable


class WritePrompts:
    """Adds `inputs`, `targets` and `dropped_events`: what `NextItemPrompts.build` and `TitleTokens` say.

    Written apart from their array code on purpose, so that a test can hold the two equal.

    Args:
        prompts: prompts and titles in tokens.
    """

    def __init__(self, prompts: NextItemPrompts):
        self._prompts = prompts

    def __call__(self, dataset: tf.data.Dataset, sequence_length: dict[str, int] | None) -> tf.data.Dataset:
        """The dataset with the features added.

        Raises:
            ValueError: SeqIO would cut prompts or titles to `sequence_length`.
        """
        needed = {"inputs": self._prompts.length, "targets": self._prompts.titles.targets.shape[1]}
        for name, length in needed.items():
            if sequence_length and sequence_length[name] is not None and sequence_length[name] < length:
                raise ValueError(
                    f"sequence_length[{name!r}]={sequence_length[name]} would cut {name} of up to {length} tokens: "
                    "raise it, or register the task with shorter prompts or titles."
                )
        return dataset.map(self._write, num_parallel_calls=tf.data.AUTOTUNE)

    def _write(self, example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        inputs, dropped = self._inputs(example["history/item"])
        titles, label = self._prompts.titles, example["label/item"]
        length = tf.gather(tf.constant(titles.lengths), label) + 1
        targets = tf.gather(tf.constant(titles.targets), label)[:length]
        return {**example, "inputs": inputs, "targets": targets, "dropped_events": dropped}

    def _inputs(self, history: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        prompts = self._prompts
        if not prompts.text_history:
            return tf.constant(prompts.plain), tf.constant(0)
        latest = history[-prompts.text_history :]
        latest = tf.boolean_mask(latest, latest > 0)
        room = prompts.max_inputs - len(prompts.before) - len(prompts.after)
        lengths = tf.gather(tf.constant(prompts.event_lengths), latest)
        fits = tf.cumsum(lengths, reverse=True) <= room
        rows = tf.RaggedTensor.from_tensor(
            tf.gather(tf.constant(prompts.events), tf.boolean_mask(latest, fits)),
            lengths=tf.boolean_mask(lengths, fits),
        )
        inputs = tf.concat([prompts.before, rows.flat_values, prompts.after], axis=0)
        return inputs, tf.size(latest) - tf.size(tf.boolean_mask(latest, fits))


class AddReferences:
    """Adds what SeqIO's metrics and people read: `references` (the label's title) and `user_id`.

    Args:
        table: the timelines.
    """

    def __init__(self, table: TimelineTable):
        self._titles = np.array(table.catalogue.titles)
        self._user_ids = np.array(table.user_ids)

    def __call__(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        titles, user_ids = tf.constant(self._titles), tf.constant(self._user_ids)
        return dataset.map(
            lambda example: {
                **example,
                "references": tf.gather(titles, example["label/item"]),
                "user_id": tf.gather(user_ids, example["user"]),
            },
            num_parallel_calls=tf.data.AUTOTUNE,
        )
