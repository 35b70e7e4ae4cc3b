"""SeqIO feature converters: from a task's features to what a model reads, example by example."""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import seqio
import tensorflow as tf

_Spec: TypeAlias = seqio.FeatureConverter.FeatureSpec
# SeqIO's checks of lengths, example by example, cost more than all else; `ensure_shape` and `pad` refuse the same.
_OPTIONS = dict(pack=False, apply_length_check=False)
_HISTORY = {
    "history/item": _Spec(dtype=tf.int32),
    "history/rating": _Spec(dtype=tf.int32),
    "label/item": _Spec(dtype=tf.int32, rank=0),
    "label/rating": _Spec(dtype=tf.int32, rank=0),
    "user": _Spec(dtype=tf.int32, rank=0),
}
_DECODER = {
    "decoder_input_tokens": _Spec(dtype=tf.int32),
    "decoder_target_tokens": _Spec(dtype=tf.int32),
    "decoder_loss_weights": _Spec(dtype=tf.float32),
    "decoder_positions": _Spec(dtype=tf.int32),
}
_ANSWERED = _HISTORY | {
    "dropped_events": _Spec(dtype=tf.int32, rank=0),
    "label/answer": _Spec(dtype=tf.int32, rank=0),
}
_TEXT = {"inputs": _Spec(dtype=tf.int32), "targets": _Spec(dtype=tf.int32)}


def _lifted(specs: Mapping[str, _Spec]) -> dict[str, _Spec]:
    """The same as a task has them: a number is a feature of length 1 there (`preprocessors.NUMBERS`)."""
    return {name: _Spec(dtype=spec.dtype, rank=max(spec.rank, 1)) for name, spec in specs.items()}


def _lowered(example: Mapping[str, tf.Tensor], specs: Mapping[str, _Spec], lengths: Mapping[str, int]) -> dict:
    """The features `specs` of a task's example as a model reads them; what comes from a cache has lost its length."""
    return {
        name: tf.ensure_shape(example[name], [lengths[name], *example[name].shape[1:]])
        if spec.rank
        else example[name][0]
        for name, spec in specs.items()
    }


class EncoderFeatureConverter(seqio.FeatureConverter):
    """Encoder pretraining on the SeqIO road: the features of the source that the encoder learns from, nothing else.

    Args:
        batch: one of that source, whose names, types and shapes these are; None: those of `Windows.gather`.
    """

    TASK_FEATURES = _lifted(_HISTORY)
    MODEL_FEATURES = _HISTORY
    PACKING_FEATURE_DTYPES = None

    def __init__(self, batch: Mapping[str, np.ndarray] | None = None):
        if batch is not None:
            self.MODEL_FEATURES = {
                name: _Spec(dtype=tf.as_dtype(values.dtype), rank=values.ndim - 1) for name, values in batch.items()
            }
            self.TASK_FEATURES = _lifted(self.MODEL_FEATURES)
        super().__init__(**_OPTIONS)

    def _convert_features(self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]) -> tf.data.Dataset:
        features = self.MODEL_FEATURES
        return ds.map(
            lambda example: _lowered(example, features, task_feature_lengths), num_parallel_calls=tf.data.AUTOTUNE
        )

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
        return dict(task_feature_lengths)


def _decoder_features(whole: tf.Tensor, learnt_from: tf.Tensor | int, length: int) -> dict[str, tf.Tensor]:
    """`data.sources.decoder_features` of one sequence `whole` [t], padded to `length` = T+1."""
    place, tokens = tf.range(1, length), _padded(whole, length)
    return {
        "decoder_input_tokens": tokens[:-1],
        "decoder_target_tokens": tokens[1:],
        "decoder_loss_weights": tf.cast((place >= learnt_from) & (place < tf.size(whole)), tf.float32),
        "decoder_positions": place - 1,
    }


def _padded(values: tf.Tensor, length: int) -> tf.Tensor:
    return tf.ensure_shape(tf.pad(values, [[0, length - tf.size(values)]]), [length])


class UserLLMFeatureConverter(seqio.FeatureConverter):
    """The contextualised LLM on the SeqIO road: the features of `UserLLMSource.gather`, example by example.

    The lengths of `inputs` and `targets` are the widths P and W of prompts and answers, of a mixture those of the
    widest task; the full sequences then have T+1 = P + W tokens.
    """

    TASK_FEATURES = _lifted(_ANSWERED) | _TEXT
    MODEL_FEATURES = _ANSWERED | _DECODER | {"prompt_tokens": _TEXT["inputs"], "prompt_lengths": _ANSWERED["user"]}
    PACKING_FEATURE_DTYPES = None

    def __init__(self):
        super().__init__(**_OPTIONS)

    def _convert_features(self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]) -> tf.data.Dataset:
        lengths = task_feature_lengths

        def convert(example):
            prompt, whole = tf.size(example["inputs"]), tf.concat([example["inputs"], example["targets"]], axis=0)
            return {
                **_lowered(example, _ANSWERED, lengths),
                **_decoder_features(whole, prompt, lengths["inputs"] + lengths["targets"]),
                "prompt_tokens": _padded(example["inputs"], lengths["inputs"]),
                "prompt_lengths": prompt,
            }

        return ds.map(convert, num_parallel_calls=tf.data.AUTOTUNE)

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
        lengths = {name: task_feature_lengths[name] for name in _ANSWERED}
        sequence = task_feature_lengths["inputs"] + task_feature_lengths["targets"] - 1
        prompts = {"prompt_tokens": task_feature_lengths["inputs"], "prompt_lengths": 1}
        return lengths | dict.fromkeys(_DECODER, sequence) | prompts


class TextFeatureConverter(seqio.FeatureConverter):
    """A language model trained from scratch on the SeqIO road: `inputs` and `targets` as one text, all of it learnt.

    Args:
        length: T+1, tokens of the longest text.
    """

    TASK_FEATURES = _TEXT
    MODEL_FEATURES = _DECODER
    PACKING_FEATURE_DTYPES = None

    def __init__(self, length: int):
        self._length = length
        super().__init__(**_OPTIONS)

    def _convert_features(self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]) -> tf.data.Dataset:
        def convert(example):
            return _decoder_features(tf.concat([example["inputs"], example["targets"]], axis=0), 1, self._length)

        return ds.map(convert, num_parallel_calls=tf.data.AUTOTUNE)

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
        del task_feature_lengths
        return dict.fromkeys(_DECODER, self._length - 1)
