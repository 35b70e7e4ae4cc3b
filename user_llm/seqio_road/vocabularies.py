"""Our vocabularies as SeqIO's."""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import seqio
import tensorflow as tf

from user_llm.data.vocabulary import Vocabulary


class SeqIOVocabulary(seqio.Vocabulary):
    """A vocabulary of ours behind SeqIO's interface: the same ids and texts, in Python and in TensorFlow graphs.

    SeqIO reads an id beyond the vocabulary as its unknown token, where there is one. Two are equal where ours are.

    Args:
        vocabulary: ours, or what gives it on first use: a task is registered before its vocabulary is there.
    """

    def __init__(self, vocabulary: Vocabulary | Callable[[], Vocabulary]):
        super().__init__()
        self._given = vocabulary

    @functools.cached_property
    def _vocabulary(self) -> Vocabulary:
        return self._given if isinstance(self._given, Vocabulary) else self._given()

    @property
    def bos_id(self) -> int:
        return self._vocabulary.bos_id

    @property
    def eos_id(self) -> int:
        return self._vocabulary.eos_id

    @property
    def unk_id(self) -> int | None:
        return self._vocabulary.unk_id

    @property
    def _base_vocab_size(self) -> int:
        return self._vocabulary.vocab_size

    def _encode(self, s: str) -> list[int]:
        return self._vocabulary.encode(s)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._vocabulary.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor | tf.RaggedTensor:
        """int32 `[T]` of a string, ragged `[B, T]` of `[B]` strings."""

        def encode(texts):
            rows = self._vocabulary.encode_batch([text.decode() for text in texts.tolist()])
            return np.array([token for row in rows for token in row], np.int32), np.array([len(row) for row in rows])

        flat, lengths = tf.numpy_function(encode, [tf.reshape(s, [-1])], (tf.int32, tf.int64))
        flat.set_shape([None])
        return flat if s.shape.rank == 0 else tf.RaggedTensor.from_row_lengths(flat, lengths)

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        """A string of ids `[T]`, `[B]` strings of `[B, T]`, each up to its first EOS."""

        def decode(rows):
            texts = self._vocabulary.decode_batch(rows.reshape(math.prod(rows.shape[:-1]), rows.shape[-1]))
            return np.array([text.encode() for text in texts], object).reshape(rows.shape[:-1])

        texts = tf.numpy_function(decode, [ids], tf.string)
        texts.set_shape(ids.shape[:-1])
        return texts

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SeqIOVocabulary) and self._vocabulary == other._vocabulary

    def __reduce__(self):
        return type(self), (self._vocabulary,)

    def __repr__(self) -> str:
        known = isinstance(self._given, Vocabulary) or "_vocabulary" in vars(self)
        return f"SeqIOVocabulary({self._vocabulary if known else 'not loaded yet'!r})"
