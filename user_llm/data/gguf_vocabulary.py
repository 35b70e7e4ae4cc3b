"""The tokenizer in a GGUF file, brought back into the form it had before: a SentencePiece model or a `tokenizer.json`.

Pieces, merges and marks are in the file. How text is split before merges it only names, and of that we know what our
families of language models have.
"""

import os
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from user_llm.data.huggingface_vocabulary import HuggingFaceVocabulary
from user_llm.data.sentencepiece_vocabulary import SentencePieceVocabulary
from user_llm.data.vocabulary import Vocabulary
from user_llm.errors import CheckpointError
from user_llm.gguf_header import Header, read_header

_KEYS = "tokenizer.ggml."
# Marks of tokens; SentencePiece has the same numbers.
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 2, 3, 4, 5, 6
_MARKS = frozenset(range(1, 7))

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA_3 = rf"{_ENDINGS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN_2 = rf"{_ENDINGS}|{_WORDS}|\p{{N}}|{_REST}"


def _byte_level(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_GPT_2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
# `tokenizer.ggml.pre` → (what splits text, what normalises it, whether a whole piece needs no merges and BOS is put in
# front): as their tokenizer.json have it.
_SPLITS: dict[str, tuple[pre_tokenizers.PreTokenizer, normalizers.Normalizer | None, bool]] = {
    "gpt-2": (_GPT_2, None, False),
    "smollm": (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _GPT_2]), None, False),
    "llama-bpe": (_byte_level(_LLAMA_3), None, True),
    "qwen2": (_byte_level(_QWEN_2), normalizers.NFC(), False),
    "deepseek-r1-qwen": (_byte_level(_QWEN_2), normalizers.NFC(), False),
}


def load_gguf_vocabulary(file: str | os.PathLike) -> Vocabulary:
    """The vocabulary in a GGUF file.

    Raises:
      CheckpointError: it has none, or one of a kind that we cannot bring back.
    """
    header = read_header(file)
    kind = header.values.get(f"{_KEYS}model")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise CheckpointError(
            f"{header.file}: {_KEYS}model is {reprlib.repr(kind)}; supported: {', '.join(map(repr, _KINDS))}."
        )
    return _KINDS[kind](header.file)


class GgufSentencePiece(SentencePieceVocabulary):
    """A GGUF file's tokenizer "llama": SentencePiece's BPE, as Llama 2 and Gemma have."""

    def __init__(self, file: str | os.PathLike):
        self._content = _sentencepiece(read_header(file))
        super().__init__(file, self._content)

    def copy_to(self, file: Path) -> None:
        """Writes the SentencePiece model."""
        file.write_bytes(self._content)


class GgufByteLevel(HuggingFaceVocabulary):
    """A GGUF file's tokenizer "gpt2": byte-level BPE, as GPT-2, Qwen and Llama 3 have."""

    def __init__(self, file: str | os.PathLike):
        self._content, config = _tokenizer_json(read_header(file))
        super().__init__(file, self._content, config)

    def copy_to(self, file: Path) -> None:
        """Writes the `tokenizer.json`."""
        file.write_bytes(self._content)


_KINDS = {"llama": GgufSentencePiece, "gpt2": GgufByteLevel}


class _Said:
    """The keys `tokenizer.ggml.*` of a file, checked."""

    def __init__(self, header: Header):
        self.file, self._values = header.file, header.values
        self.tokens: list[str] = self.many("tokens", str)
        if len({*self.tokens}) < len(self.tokens):
            raise self.error("tokens", "each once")
        self.marks: list[int] = self.many("token_type", int, len(self.tokens))
        if not {*self.marks} <= _MARKS:
            raise self.error("token_type", f"each one of {sorted(_MARKS)}")

    def error(self, key: str, expected: str) -> CheckpointError:
        found = reprlib.repr(self._values.get(_KEYS + key))
        return CheckpointError(f"{self.file}: {_KEYS}{key} is {found}; expected {expected}.")

    def many(self, key: str, kind: type, length: int | None = None) -> list[Any]:
        found = self._values.get(_KEYS + key)
        if not isinstance(found, list) or not found or type(found[0]) is not kind:
            raise self.error(key, f"an array of {kind.__name__}")
        if length not in (None, len(found)):
            raise self.error(key, f"one for each of the {length:,} tokens, not {len(found):,}")
        return found

    def token(self, name: str) -> int | None:
        """The id of a token of that name, as "bos"; None where nothing is said."""
        found = self._values.get(f"{_KEYS}{name}_token_id")
        if found is not None and (type(found) is not int or not 0 <= found < len(self.tokens)):
            raise self.error(f"{name}_token_id", f"the number of one of the {len(self.tokens):,} tokens")
        return found

    def eos(self) -> int:
        if (found := self.token("eos")) is None:
            raise self.error("eos_token_id", "the token that ends a text")
        return found

    def flag(self, key: str, default: bool) -> bool:
        found = self._values.get(_KEYS + key, default)
        if type(found) is not bool:
            raise self.error(key, "true or false")
        return found

    def text(self, key: str, among: Sequence[str]) -> str:
        found = self._values.get(_KEYS + key)
        if found not in among:
            raise self.error(key, f"one of {', '.join(among)}")
        return str(found)


def _sentencepiece(header: Header) -> bytes:
    """The SentencePiece model whose pieces the file has."""
    said = _Said(header)
    bos, eos, unknown, pad = said.token("bos"), said.eos(), said.token("unknown"), said.token("padding")
    if unknown is None and _UNKNOWN in said.marks:
        unknown = said.marks.index(_UNKNOWN)
    if unknown is None:
        raise said.error("unknown_token_id", "the token of what has no other")
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made as it is imported
    scores = said.many("scores", float, len(said.tokens))
    for piece, score, mark in zip(said.tokens, scores, said.marks, strict=True):
        # The converter has written out the spaces of what it calls user-defined.
        model.pieces.add(piece=piece.replace(" ", "▁") if mark == _USER_DEFINED else piece, score=score, type=mark)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type = trainer.BPE
    trainer.byte_fallback = _BYTE in said.marks
    trainer.vocab_size = len(said.tokens)
    if not said.flag("add_bos_token", True):
        bos = unknown  # and so none, which is how such a model says that no text begins with BOS
    for name, token in (("bos", bos), ("eos", eos), ("pad", pad), ("unk", unknown)):
        if token is not None:
            setattr(trainer, f"{name}_id", token)
            setattr(trainer, f"{name}_piece", model.pieces[token].piece)
            if name != "pad":  # some converters mark all of them as control
                model.pieces[token].type = _UNKNOWN if name == "unk" else _CONTROL
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = said.flag("add_space_prefix", True)
    normalizer.remove_extra_whitespaces = said.flag("remove_extra_whitespaces", False)
    return model.SerializeToString(deterministic=True)


def _tokenizer_json(header: Header) -> tuple[bytes, dict[str, Any]]:
    """The `tokenizer.json` whose pieces and merges the file has, and its `tokenizer_config.json`."""
    said = _Said(header)
    splits, normalizer, whole = _SPLITS[said.text("pre", tuple(_SPLITS))]
    # Unused ones at the end only fill up the model's table.
    count = max((place + 1 for place, mark in enumerate(said.marks) if mark != _UNUSED), default=0)
    tokens, marks = said.tokens[:count], said.marks[:count]
    ids = {token: place for place, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in said.many("merges", str)]
    try:
        tokenizer = Tokenizer(models.BPE(ids, merges, ignore_merges=whole))
    except Exception as error:  # the library raises nothing more special
        raise said.error("merges", f"pairs of tokens ({error})") from error
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splits
    tokenizer.decoder = decoders.ByteLevel()
    for special in (True, False):
        mark = _CONTROL if special else _USER_DEFINED
        tokenizer.add_tokens(
            [
                AddedToken(token, special=special, normalized=False)
                for token, its in zip(tokens, marks, strict=True)
                if its == mark
            ]
        )
    bos, eos = said.token("bos"), said.eos()
    config = {
        "bos_token": None if bos is None else said.tokens[bos],
        "eos_token": said.tokens[eos],
        "add_bos_token": said.flag("add_bos_token", whole),
    }
    return tokenizer.to_str().encode(), config
