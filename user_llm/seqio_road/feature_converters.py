"""SeqIO feature converters: from a task's features to what a model reads, example by example."""

from collections.abc import Mapping

import seqio
import tensorflow as tf

_HISTORY = {
    "history/item": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
    "history/rating": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
    "label/item": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32, rank=0),
    "label/rating": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32, rank=0),
    "user": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32, rank=0),
}


class EncoderFeatureConverter(seqio.FeatureConverter):
    """Encoder pretraining on the SeqIO road: the features of `Windows.gather`, nothing else."""

    TASK_FEATURES = _HISTORY
    MODEL_FEATURES = _HISTORY
    PACKING_FEATURE_DTYPES = None

    def __init__(self):
        super().__init__(pack=False)

    def _convert_features(self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]) -> tf.data.Dataset:
        return ds.map(lambda example: {name: example[name] for name in _HISTORY})

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
        return dict(task_feature_lengths)


class UserLLMFeatureConverter(seqio.FeatureConverter):
    """The contextualised LLM on the SeqIO road: the features of `UserLLMSource.gather`, example by example."""

    TASK_FEATURES = _HISTORY | {
        "inputs": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
        "targets": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
        "dropped_events": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32, rank=0),
        "label/answer": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32, rank=0),
    }
    MODEL_FEATURES = _HISTORY | {
        "decoder_input_tokens": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
        "decoder_target_tokens": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
        "decoder_loss_weights": seqio.FeatureConverter.FeatureSpec(dtype=tf.float32),
        "decoder_positions": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
        "prompt_tokens": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
        "prompt_lengths": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32, rank=0),
        "dropped_events": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32, rank=0),
        "label/answer": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32, rank=0),
    }
    PACKING_FEATURE_DTYPES = None

    def __init__(self):
        super().__init__(pack=False)

    def _convert_features(self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]) -> tf.data.Dataset:
        lengths = self.get_model_feature_lengths(task_feature_lengths)

        def padded(values, length):
            values = tf.pad(values, [[0, length - tf.size(values)]])
            values.set_shape([length])
            return values

        def convert(example):
            prompt, whole = tf.size(example["inputs"]), tf.concat([example["inputs"], example["targets"]], axis=0)
            place = tf.range(1, lengths["decoder_positions"] + 1)
            tokens = padded(whole, lengths["decoder_positions"] + 1)
            return {
                **{name: example[name] for name in (*_HISTORY, "dropped_events", "label/answer")},
                "decoder_input_tokens": tokens[:-1],
                "decoder_target_tokens": tokens[1:],
                "decoder_loss_weights": tf.cast((place >= prompt) & (place < tf.size(whole)), tf.float32),
                "decoder_positions": place - 1,
                "prompt_tokens": padded(example["inputs"], lengths["prompt_tokens"]),
                "prompt_lengths": prompt,
            }

        return ds.map(convert, num_parallel_calls=tf.data.AUTOTUNE)

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
        sequence = task_feature_lengths["inputs"] + task_feature_lengths["targets"] - 1
        lengths = {name: task_feature_lengths[name] for name in (*_HISTORY, "dropped_events", "label/answer")}
        decoder = [name for name in self.MODEL_FEATURES if name.startswith("decoder_")]
        return (
            lengths
            | dict.fromkeys(decoder, sequence)
            | {
                "prompt_tokens": task_feature_lengths["inputs"],
                "prompt_lengths": 1,
            }
        )
