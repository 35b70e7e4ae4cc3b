"""A `tokenizer.json` (the `tokenizers` library) as a `seqio.Vocabulary`.

The file says how text becomes tokens; which of them begin and end a text, the files beside it say.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
from tokenizers import Tokenizer

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
_ID_FILES = ("generation_config.json", "config.json")  # which name BOS and EOS by id, in this order


class HuggingFaceVocabulary(seqio.Vocabulary):
    """The vocabulary in a `tokenizer.json`: byte-level BPE (GPT-2, Qwen, Llama 3), Metaspace (Gemma, Llama 2), others.

    Text is only text: "<|endoftext|>" in a title is spelt out, it does not end it. A text comes back as it was,
    as far as the file's own normaliser (NFC, say) lets it; the space that some files put in front is taken off.
    Arrays are filled up with 0 whatever the checkpoint padded with, so `pad_id` is 0 and may be an ordinary token.

    BOS and EOS are what `tokenizer_config.json` beside the file names (a `bos_token` of null means that there is
    none, as for Qwen), else `generation_config.json`, else `config.json`; of several EOS the first.

    Args:
        file: the `tokenizer.json`.

    Attributes:
        file: as given.
        tokenizer: the `tokenizers.Tokenizer`.
        bos_id: -1 without one.
        eos_id: what ends a text.
        unk_id: None without one.
        adds_bos: whether the checkpoint's texts begin with BOS: its `add_bos_token`, else what the file itself does.
        rows: how many rows an embedding table must have: one for every token that a text, BOS and EOS can have.
            `vocab_size` may be more, where special tokens stand behind those (Gemma 3's `<image_soft_token>`).

    Raises:
        ValueError: the file is no tokenizer, a file beside it is no JSON or names a token it does not have, or
            nothing says what ends a text.
    """

    def __init__(self, file: str | os.PathLike):
        super().__init__()
        self.file = Path(file)
        try:
            self.tokenizer = Tokenizer.from_str(self.file.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises nothing more special
            raise ValueError(f"{self.file} is not a tokenizer of the `tokenizers` library: {error}") from error
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True  # as text
        self._config = _read_json(self.file.with_name(TOKENIZER_CONFIG))
        self._bos_id, self._eos_id = self._id_of("bos"), self._id_of("eos")
        if self._eos_id < 0:
            raise ValueError(
                f"nothing beside {self.file} says what ends a text: add eos_token to {TOKENIZER_CONFIG}, "
                f"or eos_token_id to {' or '.join(_ID_FILES)}."
            )
        ids = self.tokenizer.get_vocab().values()
        special = {token for token, added in self.tokenizer.get_added_tokens_decoder().items() if added.special}
        self._size = 1 + max(ids)
        self.rows = 1 + max({*ids} - special | {self._bos_id, self._eos_id})
        adds_bos = self._config.get("add_bos_token")
        starts_with_bos = self.tokenizer.encode("a").ids[:1] == [self._bos_id]
        self.adds_bos = self._bos_id >= 0 and (starts_with_bos if adds_bos is None else adds_bos)
        self._puts_space = False
        self._puts_space = self.decode_batch(self.encode_batch(["a"])) == [" a"]

    def _id_of(self, name: str) -> int:
        """The id of `bos` or `eos`, -1 for none."""
        if f"{name}_token" in self._config:
            token = self._config[f"{name}_token"]
            token = token["content"] if isinstance(token, dict) else token
            found = None if token is None else self.tokenizer.token_to_id(token)
            if found is None and token is not None:
                raise ValueError(
                    f"{self.file.with_name(TOKENIZER_CONFIG)}: {name}_token is {token!r}, which {self.file.name} "
                    "does not have: name one of its tokens."
                )
            return -1 if found is None else found
        for file in map(self.file.with_name, _ID_FILES):
            ids = _read_json(file).get(f"{name}_token_id")
            ids = ids if isinstance(ids, list) else [ids]
            if ids and ids[0] is not None:
                if self.tokenizer.id_to_token(ids[0]) is None:
                    raise ValueError(f"{file}: {name}_token_id is {ids[0]}, which {self.file.name} does not have.")
                return ids[0]
        return -1

    @property
    def bos_id(self) -> int:
        return self._bos_id

    @property
    def eos_id(self) -> int:
        return self._eos_id

    @property
    def unk_id(self) -> int | None:
        token = getattr(self.tokenizer.model, "unk_token", None)
        return None if token is None else self.tokenizer.token_to_id(token)

    @property
    def _base_vocab_size(self) -> int:
        return self._size

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of every text, without BOS and EOS."""
        encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The text of every token list; special tokens and ids beyond the vocabulary have none."""
        texts = self.tokenizer.decode_batch(rows, skip_special_tokens=True)
        return [text.removeprefix(" ") for text in texts] if self._puts_space else texts

    def save_config(self, folder: Path) -> None:
        """Writes the `tokenizer_config.json` with which a copy of the file alone is this vocabulary."""
        tokens = {"bos_token": self._bos_id, "eos_token": self._eos_id}
        named = {name: self.tokenizer.id_to_token(token) if token >= 0 else None for name, token in tokens.items()}
        text = json.dumps(self._config | named, indent=2, ensure_ascii=False) + "\n"
        (folder / TOKENIZER_CONFIG).write_text(text, encoding="utf-8")

    def _encode(self, s: str) -> list[int]:
        return self.encode_batch([s])[0]

    def _decode(self, ids: Sequence[int]) -> str:
        return self.decode_batch([[int(token) for token in ids]])[0]

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor | tf.RaggedTensor:
        """int32 `[T]` of a string, ragged `[B, T]` of `[B]` strings."""

        def encode(texts):
            rows = self.encode_batch([text.decode() for text in texts.tolist()])
            return np.array([token for row in rows for token in row], np.int32), np.array([len(row) for row in rows])

        flat, lengths = tf.numpy_function(encode, [tf.reshape(s, [-1])], (tf.int32, tf.int64))
        flat.set_shape([None])
        return flat if s.shape.rank == 0 else tf.RaggedTensor.from_row_lengths(flat, lengths)

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        """A string of ids `[T]`, `[B]` strings of `[B, T]`, each up to its first EOS."""

        def decode(rows):
            texts = [self.decode(row) for row in rows.reshape(-1, rows.shape[-1]).tolist()]
            return np.array([text.encode() for text in texts], object).reshape(rows.shape[:-1])

        texts = tf.numpy_function(decode, [ids], tf.string)
        texts.set_shape(ids.shape[:-1])
        return texts

    def __reduce__(self):
        return HuggingFaceVocabulary, (self.file,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HuggingFaceVocabulary) and self.file == other.file

    def __repr__(self) -> str:
        return f"HuggingFaceVocabulary({str(self.file)!r})"


def _read_json(file: Path) -> dict[str, Any]:
    """The object in `file`; empty where there is no such file."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(values).__name__}.")
    return values
