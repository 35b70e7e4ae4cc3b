"""A `tokenizer.json` (the `tokenizers` library) as a vocabulary.

The file says how text becomes tokens; which of them begin and end a text, the files beside it say.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from user_llm.data.vocabulary import Vocabulary
from user_llm.errors import UserError
from user_llm.files import read_json

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
_ID_FILES = ("generation_config.json", "config.json")  # which name BOS and EOS by id, in this order


class HuggingFaceVocabulary(Vocabulary):
    """The vocabulary in a `tokenizer.json`: byte-level BPE (GPT-2, Qwen, Llama 3), Metaspace (Gemma, Llama 2), others.

    Text is only text: "<|endoftext|>" in a title is spelt out, it does not end it. A text comes back as it was,
    as far as the file's own normaliser (NFC, say) lets it; the space that some files put in front is taken off.

    BOS and EOS are what `tokenizer_config.json` beside the file names (a `bos_token` of null means that there is
    none, as for Qwen), else `generation_config.json`, else `config.json`; of several EOS the first.

    Args:
        file: the `tokenizer.json`.
        content, config: that, and a `tokenizer_config.json` that names both tokens, where `file` holds them in another
            form; nothing beside it is read then.

    Attributes:
        tokenizer: the `tokenizers.Tokenizer`.
        adds_bos: the checkpoint's `add_bos_token`, else whether the file itself puts BOS in front of a text.
        rows: less than `vocab_size` where special tokens stand behind a text's (Gemma 3's `<image_soft_token>`).

    Raises:
        UserError: the file is no tokenizer, a file beside it is no JSON or names a token it does not have, or
            nothing says what ends a text.
    """

    def __init__(self, file: str | os.PathLike, content: bytes | None = None, config: Mapping[str, Any] | None = None):
        content = Path(file).read_bytes() if content is None else content
        super().__init__(file, content)
        try:
            self.tokenizer = Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises nothing more special
            raise UserError(f"{self.file} is not a tokenizer of the `tokenizers` library: {error}") from error
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True  # as text
        self._config = self._beside(TOKENIZER_CONFIG) if config is None else dict(config)
        self.bos_id, self.eos_id = self._id_of("bos"), self._id_of("eos")
        if self.eos_id < 0:
            raise UserError(
                f"nothing beside {self.file} says what ends a text: add eos_token to {TOKENIZER_CONFIG}, "
                f"or eos_token_id to {' or '.join(_ID_FILES)}."
            )
        unknown = getattr(self.tokenizer.model, "unk_token", None)
        self.unk_id = None if unknown is None else self.tokenizer.token_to_id(unknown)
        ids = self.tokenizer.get_vocab().values()
        special = {token for token, added in self.tokenizer.get_added_tokens_decoder().items() if added.special}
        self.vocab_size = 1 + max(ids)
        self.rows = 1 + max({*ids} - special | {self.bos_id, self.eos_id})
        adds_bos = self._config.get("add_bos_token")
        if adds_bos not in (None, True, False):
            beside = self.file.with_name(TOKENIZER_CONFIG)
            raise UserError(f"{beside}: add_bos_token is {adds_bos!r}; expected true or false.")
        starts_with_bos = self.tokenizer.encode("a").ids[:1] == [self.bos_id]
        self.adds_bos = self.bos_id >= 0 and (starts_with_bos if adds_bos is None else adds_bos)
        self._puts_space = False
        self._puts_space = self.decode_rows(self.encode_batch(["a"])) == [" a"]

    def _beside(self, name: str) -> dict[str, Any]:
        """The object in the file `name` beside the tokenizer's; empty where there is no such file."""
        file = self.file.with_name(name)
        try:
            values = read_json(file, "fetch or copy it anew")
        except FileNotFoundError:
            return {}
        if file not in self.files:
            self.files.append(file)
        return values

    def _unknown(self, file: str, found: str) -> UserError:
        return UserError(
            f"{self.file.with_name(file)}: {found}, which {self.file.name} does not have: name one of its tokens."
        )

    def _id_of(self, name: str) -> int:
        """The id of `bos` or `eos`, -1 for none."""
        if f"{name}_token" in self._config:
            token = self._config[f"{name}_token"]
            token = token.get("content", token) if isinstance(token, dict) else token
            if token is None:
                return -1
            # Half a character, with which the library cannot be asked, is no token either.
            written = token.encode(errors="backslashreplace").decode() if isinstance(token, str) else ""
            found = self.tokenizer.token_to_id(written)
            if found is None or written != token:
                raise self._unknown(TOKENIZER_CONFIG, f"{name}_token is {token!r}")
            return found
        for file in _ID_FILES:
            ids = self._beside(file).get(f"{name}_token_id")
            first = (ids or [None])[0] if isinstance(ids, list) else ids
            if first is not None:
                known = type(first) is int and 0 <= first < 2**32 and self.tokenizer.id_to_token(first) is not None
                if not known:
                    raise self._unknown(file, f"{name}_token_id is {ids!r}")
                return first
        return -1

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of every text, without BOS and EOS."""
        encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def decode_rows(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The text of every token list; special tokens and ids beyond the vocabulary have none."""
        texts = self.tokenizer.decode_batch(rows, skip_special_tokens=True)
        return [text.removeprefix(" ") for text in texts] if self._puts_space else texts

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `tokenizer.json` into `folder`, and a `tokenizer_config.json` that names BOS and EOS.

        It names them even where other files did so before.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.copy_to(folder / TOKENIZER_JSON)
        tokens = {"bos_token": self.bos_id, "eos_token": self.eos_id}
        named = {name: self.tokenizer.id_to_token(token) if token >= 0 else None for name, token in tokens.items()}
        text = json.dumps(self._config | named, indent=2, ensure_ascii=False) + "\n"
        (folder / TOKENIZER_CONFIG).write_text(text, encoding="utf-8")
