"""Texts spelt in some pieces of a vocabulary alone: others are taken apart as they were merged, down to bytes.

A speller gives each text whose pieces are not all kept other pieces, of which all are, and which decode to the same.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import models, pre_tokenizers

from user_llm.data.huggingface_vocabulary import HuggingFaceVocabulary
from user_llm.data.sentencepiece_vocabulary import SentencePieceVocabulary
from user_llm.data.vocabulary import Vocabulary
from user_llm.errors import UserError

Speller = Callable[[Sequence[str], Sequence[Sequence[int]]], list[list[int]]]
"""Texts and their pieces → their pieces among those kept."""

_SPACE = "▁"
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def essential_pieces(vocabulary: Vocabulary) -> set[int]:
    """The ids without which some text could not be written: padding, BOS, EOS, unknown; bytes, or else characters.

    Other special tokens stand in no text, and what is written like one is spelt out.

    Raises:
        UserError: we cannot take apart the pieces of such a vocabulary.
    """
    ends = {vocabulary.pad_id, vocabulary.bos_id, vocabulary.eos_id}
    if vocabulary.unk_id is not None:
        ends.add(vocabulary.unk_id)
    if isinstance(vocabulary, SentencePieceVocabulary):
        atoms = _sentencepiece_atoms(vocabulary)
    else:
        atoms = _bpe_atoms(_bpe(vocabulary))
    return {one for one in ends if one >= 0} | atoms


def speller(vocabulary: Vocabulary, kept: np.ndarray) -> Speller:
    """What spells texts in the pieces of `vocabulary` for which `kept`, bool `[vocab_size]`, is true."""
    if isinstance(vocabulary, SentencePieceVocabulary):
        return _SentencePieceSpeller(vocabulary, kept)
    return _BpeSpeller(_bpe(vocabulary), kept)


def _refused(vocabulary: Vocabulary, kind: str) -> UserError:
    return UserError(
        f"{vocabulary.file} is of the kind {kind}, whose pieces cannot be spelt in others: llm.trim_vocabulary is for "
        "SentencePiece's BPE and unigram models, and for BPE of the `tokenizers` library."
    )


def _proto(vocabulary: SentencePieceVocabulary) -> Any:
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made as it is imported
    model.ParseFromString(vocabulary.tokenizer.serialized_model_proto())
    return model


def _sentencepiece_atoms(vocabulary: SentencePieceVocabulary) -> set[int]:
    spec = _proto(vocabulary).trainer_spec
    if spec.model_type not in (spec.BPE, spec.UNIGRAM):
        raise _refused(vocabulary, spec.ModelType.Name(spec.model_type).lower())
    tokenizer = vocabulary.tokenizer
    in_bytes = tokenizer.piece_to_id(_BYTES)
    if not all(tokenizer.is_byte(in_bytes)):
        pieces = tokenizer.id_to_piece(list(range(vocabulary.vocab_size)))
        return {number for number, piece in enumerate(pieces) if len(piece) == 1}
    return {*in_bytes, tokenizer.piece_to_id(_SPACE)}  # in bytes, what stands for a space would be itself


class _SentencePieceSpeller:
    """SentencePiece's own: what is marked as unused is taken apart along its merges, or left out by a unigram model."""

    def __init__(self, vocabulary: SentencePieceVocabulary, kept: np.ndarray):
        model = _proto(vocabulary)
        for piece, keep in zip(model.pieces, kept.tolist(), strict=True):
            if not keep and piece.type in (piece.NORMAL, piece.USER_DEFINED):
                piece.type = piece.UNUSED
        self._tokenizer = SentencePieceProcessor(model_proto=model.SerializeToString())
        self._kept = kept.tolist()
        self._byte_ids = self._tokenizer.piece_to_id(_BYTES)

    def __call__(self, texts: Sequence[str], rows: Sequence[Sequence[int]]) -> list[list[int]]:
        del rows
        kept, found = self._kept, self._tokenizer.encode(list(texts), out_type=int)
        # A single character comes out whether it is used or not.
        return [[part for one in row for part in ((one,) if kept[one] else self._in_bytes(one))] for row in found]

    def _in_bytes(self, character: int) -> list[int]:
        return [self._byte_ids[byte] for byte in self._tokenizer.id_to_piece(character).encode()]


def _bpe(vocabulary: Vocabulary) -> HuggingFaceVocabulary:
    """The vocabulary itself, which is of a kind that can be taken apart."""
    if not isinstance(vocabulary, HuggingFaceVocabulary):
        raise _refused(vocabulary, type(vocabulary).__name__)
    model = vocabulary.tokenizer.model
    if not isinstance(model, models.BPE) or model.continuing_subword_prefix or model.end_of_word_suffix:
        kind = type(model).__name__
        raise _refused(vocabulary, f"{kind} with prefixes or suffixes" if isinstance(model, models.BPE) else kind)
    return vocabulary


def _bpe_atoms(vocabulary: HuggingFaceVocabulary) -> set[int]:
    model = json.loads(vocabulary.tokenizer.to_str())["model"]
    ids: dict[str, int] = model["vocab"]
    if model["byte_fallback"]:
        return {ids[piece] for piece in (*_BYTES, _SPACE) if piece in ids}
    return {number for piece, number in ids.items() if len(piece) == 1}


class _BpeSpeller:
    """Takes pieces of a `tokenizers` BPE apart as they were merged; added tokens, which were not, by their text."""

    def __init__(self, vocabulary: HuggingFaceVocabulary, kept: np.ndarray):
        file = json.loads(vocabulary.tokenizer.to_str())
        self._ids: dict[str, int] = file["model"]["vocab"]
        self._kept, self._unknown = kept.tolist(), vocabulary.unk_id
        falls_back = file["model"]["byte_fallback"]
        self._bytes = [self._ids.get(piece, -1) if falls_back else -1 for piece in _BYTES]
        self._texts = {number: text for text, number in self._ids.items()}
        added = {number: token.content for number, token in vocabulary.tokenizer.get_added_tokens_decoder().items()}
        if "ByteLevel" in json.dumps(file["decoder"]):
            letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            added = {
                one: "".join(text for text, _ in letters.pre_tokenize_str(content)) for one, content in added.items()
            }
        self._texts |= added
        self._parts: dict[int, tuple[int, int]] = {}
        for left, right in file["model"]["merges"]:  # the first of them is what is merged first
            if left and right:
                self._parts.setdefault(self._ids[left + right], (self._ids[left], self._ids[right]))

    def __call__(self, texts: Sequence[str], rows: Sequence[Sequence[int]]) -> list[list[int]]:
        del texts
        spelt = {one: self._spelt(one) for one in set().union(*rows)}
        return [[part for one in row for part in spelt[one]] for row in rows]

    def _spelt(self, piece: int) -> list[int]:
        waiting, found = [piece], []
        while waiting:
            one = waiting.pop()
            if self._kept[one]:
                found.append(one)
            elif one in self._parts:
                waiting += self._parts[one][::-1]
            else:
                found += [part for character in self._texts[one] for part in self._character(character)]
        return found

    def _character(self, character: str) -> list[int]:
        whole = self._ids.get(character, -1)
        if whole >= 0 and self._kept[whole]:
            return [whole]
        in_bytes = [self._bytes[byte] for byte in character.encode()]
        if min(in_bytes) >= 0:
            return in_bytes
        return [] if self._unknown is None else [self._unknown]
