"""Vocabularies (SentencePiece, `tokenizer.json`, GGUF) by file or folder, and what is done with any of them.

Token 0 fills up every array. Lengths, not token values, say where a text ends, because in some checkpoints
token 0 is no padding piece: it is Llama's unknown piece, and "!" in GPT-2.
"""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from user_llm.checksums import checksums
from user_llm.data.gguf_vocabulary import load_gguf_vocabulary
from user_llm.data.huggingface_vocabulary import TOKENIZER_JSON, HuggingFaceVocabulary
from user_llm.data.sentencepiece_vocabulary import TOKENIZER_FILE, SentencePieceVocabulary, train_sentencepiece
from user_llm.data.trimmed_vocabulary import KEPT_FILE, TrimmedVocabulary
from user_llm.data.vocabulary import Vocabulary
from user_llm.errors import MissingFile, UserError
from user_llm.gguf_header import is_gguf

__all__ = [
    "TOKENIZER_FILE",
    "NameTokens",
    "Vocabulary",
    "content",
    "cut_tokens",
    "encode_continuations",
    "load_vocabulary",
    "pad_rows",
    "text_start",
    "train_sentencepiece",
]


def load_vocabulary(path: str | os.PathLike) -> Vocabulary:
    """Loads a SentencePiece model file, a `tokenizer.json`, a GGUF file's, or what of them a Hugging Face folder has.

    A folder with both gives its SentencePiece model. A file that ends in `.json` is a `tokenizer.json`
    (`HuggingFaceVocabulary` says which files beside it are read too). A folder in which a `TrimmedVocabulary` has been
    saved gives that.

    Raises:
        MissingFile: there is no such file.
        UserError: the file is none of them, or nothing says what ends a text.
    """
    kept, vocabulary = Path(path) / KEPT_FILE, _whole_vocabulary(_tokenizer_file(Path(path)))
    return TrimmedVocabulary.load(vocabulary, kept) if kept.is_file() else vocabulary


def _whole_vocabulary(file: Path) -> Vocabulary:
    if is_gguf(file):
        return load_gguf_vocabulary(file)
    return HuggingFaceVocabulary(file) if file.suffix == ".json" else SentencePieceVocabulary(file)


def content(path: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """The checksums, by name, of the files that `load_vocabulary(path)` reads; raises what that raises."""
    vocabulary = load_vocabulary(path)
    return checksums(vocabulary.file.parent, [file.name for file in vocabulary.files])


def _tokenizer_file(path: Path) -> Path:
    if path.is_file():
        return path
    for name in (TOKENIZER_FILE, TOKENIZER_JSON):
        if (path / name).is_file():
            return path / name
    raise MissingFile(
        f"no tokenizer at {path}: name a SentencePiece model, a {TOKENIZER_JSON}, a GGUF file, or a Hugging Face "
        f"folder with {TOKENIZER_FILE} or {TOKENIZER_JSON} (where it has only other files, `save_pretrained` of its "
        f"transformers tokenizer writes {TOKENIZER_JSON})."
    )


def text_start(vocabulary: Vocabulary) -> list[int]:
    """The tokens in front of a text: BOS, or none where there is no BOS or the checkpoint did without."""
    return [vocabulary.bos_id] if vocabulary.adds_bos else []


def encode_continuations(vocabulary: Vocabulary, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of texts that stand behind another text, from which a space parts them; "" has none.

    SentencePiece usually puts that space itself. Where a vocabulary does not (Gemma, byte-level BPE) it is written
    in front, as those models expect words to begin with it; decoding such a text alone then gives the space back.
    """
    return vocabulary.encode_batch([vocabulary.space + text if text else "" for text in texts])


def pad_rows(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Token lists as one array, right-padded with 0: (int32 [B, longest], lengths int32 [B])."""
    lengths = np.fromiter((len(row) for row in rows), np.int32, len(rows))
    tokens = np.zeros((len(rows), max(lengths, default=0)), np.int32)
    flat = np.fromiter(itertools.chain.from_iterable(rows), np.int32, lengths.sum())
    tokens[np.arange(tokens.shape[1]) < lengths[:, None]] = flat
    return tokens, lengths


class NameTokens:
    """The tokens of names (titles, categories, ratings), looked up by id.

    Args:
        names: by id; entry 0 is the padding's, which has none.
        vocabulary: the LLM's.
        max_targets: longest answer in tokens, EOS included. A longer name is cut, at a whole character.

    Attributes:
        tokens: int32 [n, W], as `encode_continuations` gives them, right-padded with 0; row 0 is empty.
        lengths: int32 [n].
        targets: int32 [n, W+1], the same with EOS behind each name.
        cut: how many names were cut.
        vocabulary: the vocabulary used.

    Raises:
        UserError: `max_targets` leaves no room for a name, or a name has no tokens.
    """

    def __init__(self, names: Sequence[str], vocabulary: Vocabulary, max_targets: int):
        if max_targets < 2:
            raise UserError(f"max_targets={max_targets} leaves no room for a name and its EOS: raise it.")
        rows = encode_continuations(vocabulary, names)
        empty = next((index for index, row in enumerate(rows) if index and not row), None)
        if empty:
            raise UserError(f"the name {names[empty]!r} of number {empty} has no text to answer with: give it one.")
        too_long = [index for index, row in enumerate(rows) if len(row) >= max_targets]
        for index in too_long:
            rows[index] = cut_tokens(vocabulary, rows[index], max_targets - 1)
        self.vocabulary = vocabulary
        self.cut = len(too_long)
        self.tokens, self.lengths = pad_rows(rows)
        self.targets = np.pad(self.tokens, ((0, 0), (0, 1)))
        self.targets[np.arange(1, len(rows)), self.lengths[1:]] = vocabulary.eos_id


def cut_tokens(vocabulary: Vocabulary, tokens: list[int], length: int) -> list[int]:
    """The first `length` tokens, fewer where a character's bytes would be torn apart, but at least one."""
    kept = tokens[:length]
    while len(kept) > 1 and vocabulary.decode_rows([kept])[0].endswith("\N{REPLACEMENT CHARACTER}"):
        kept.pop()
    return kept
