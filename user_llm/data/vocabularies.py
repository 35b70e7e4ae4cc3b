"""SentencePiece vocabularies behind `seqio.Vocabulary`, and the catalogue's titles tokenised once.

Token 0 fills up every array. Lengths, not token values, say where a text ends, because in some checkpoints
(Llama's) token 0 is the unknown piece and not a padding piece.
"""

import io
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
import seqio
from seqio.vocabularies import sentencepiece_model_pb2

from user_llm.data.timelines import Catalogue
from user_llm.files import replacing

TOKENIZER_FILE = "tokenizer.model"
MAX_SENTENCE_BYTES = 1 << 20


def train_sentencepiece(texts: Iterable[str], size: int, path: str | os.PathLike) -> None:
    """Trains a unigram SentencePiece model (Kudo 2018) and writes it to `path`, atomically.

    Text is taken as it is (no normalisation, bytes for rare characters), so decoding gives the text back and
    different texts have different tokens (one exception is SentencePiece's own: it cannot tell U+2581 from a
    space). One thread: the same texts give the same file. Ids: 0 padding, 1 BOS, 2 EOS, 3 unknown.

    Args:
        texts: the corpus.
        size: pieces wanted, at least 260 (256 bytes and 4 controls) plus the corpus' frequent characters. A
            corpus too small for that many gives fewer.
        path: the file to write.

    Raises:
        ValueError: no text, a text above 1 MiB, or a size too small for the corpus.
    """
    texts = [text for text in texts if text]
    if not texts:
        raise ValueError("cannot train a vocabulary: the corpus has no text.")
    longest = max(len(text.encode()) for text in texts)
    if longest > MAX_SENTENCE_BYTES:  # SentencePiece would leave it out without a word
        raise ValueError(f"cannot train a vocabulary on a text of {longest} bytes: split texts above 1 MiB.")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="unigram",
            vocab_size=size,
            hard_vocab_limit=False,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            max_sentence_length=MAX_SENTENCE_BYTES,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"SentencePiece could not train a vocabulary of {size} pieces: {error}") from error
    with replacing(path) as partial:
        partial.write_bytes(model.getvalue())


def load_vocabulary(path: str | os.PathLike) -> seqio.SentencePieceVocabulary:
    """Loads a SentencePiece model file, or the `tokenizer.model` of a Hugging Face folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no SentencePiece model, has no end-of-sentence piece, or was replaced by
            another one since this process first loaded it.
    """
    file = Path(path)
    if file.is_dir():
        file = file / TOKENIZER_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"no SentencePiece model at {file}: name a model file, or a Hugging Face folder with "
            f"{TOKENIZER_FILE} (tokenizer.json alone is not read)."
        )
    vocabulary = seqio.SentencePieceVocabulary(str(file))
    try:
        stored = sentencepiece_model_pb2.ModelProto.FromString(file.read_bytes())
        loaded = sentencepiece_model_pb2.ModelProto.FromString(vocabulary.sp_model)
    except Exception as error:  # protobuf's and SentencePiece's errors have no common class
        raise ValueError(f"{file} is not a SentencePiece model: {error}") from error
    if stored != loaded:  # SeqIO keeps loaded models by file name
        raise ValueError(f"{file} changed since this process loaded it: give the new model another name.")
    if vocabulary.eos_id < 0:
        raise ValueError(f"{file} has no end-of-sentence piece, so no title could end: use another model.")
    return vocabulary


def encode_batch(vocabulary: seqio.SentencePieceVocabulary, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of every text, without BOS and EOS, in one call."""
    return vocabulary.tokenizer.encode(list(texts), out_type=int)


def decode_batch(vocabulary: seqio.SentencePieceVocabulary, tokens: np.ndarray) -> list[str]:
    """Texts of token rows [B, T]: each up to its first EOS, without padding."""
    rows = np.asarray(tokens)
    keep = (np.cumsum(rows == vocabulary.eos_id, axis=1) == 0) & (rows != vocabulary.pad_id)
    return vocabulary.tokenizer.decode([row[kept].tolist() for row, kept in zip(rows, keep, strict=True)])


def pad_rows(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Token lists as one array, right-padded with 0: (int32 [B, longest], lengths int32 [B])."""
    lengths = np.fromiter((len(row) for row in rows), np.int32, len(rows))
    tokens = np.zeros((len(rows), max(lengths, default=0)), np.int32)
    flat = np.fromiter(itertools.chain.from_iterable(rows), np.int32, lengths.sum())
    tokens[np.arange(tokens.shape[1]) < lengths[:, None]] = flat
    return tokens, lengths


class TitleTokens:
    """The tokens of every title, looked up by item id.

    Args:
        catalogue: items and their titles.
        vocabulary: the LLM's.
        max_targets: longest answer in tokens, EOS included. A longer title is cut, at a whole character.

    Attributes:
        tokens: int32 [I+1, Tt], without BOS and EOS, right-padded with 0; row 0 is empty.
        lengths: int32 [I+1].
        targets: int32 [I+1, Tt+1], the same with EOS behind each title.
        cut: how many titles were cut.
        vocabulary: the vocabulary used.

    Raises:
        ValueError: `max_targets` leaves no room for a title, or a title has no tokens.
    """

    def __init__(self, catalogue: Catalogue, vocabulary: seqio.SentencePieceVocabulary, max_targets: int):
        if max_targets < 2:
            raise ValueError(f"max_targets={max_targets} leaves no room for a title and its EOS: raise it.")
        rows = encode_batch(vocabulary, catalogue.titles)
        empty = next((item for item, row in enumerate(rows) if item and not row), None)
        if empty:
            raw_id = catalogue.raw_ids[empty]
            raise ValueError(f"item {empty} (raw id {raw_id!r}) has an empty title: give it one.")
        too_long = [item for item, row in enumerate(rows) if len(row) >= max_targets]
        for item in too_long:
            rows[item] = _cut(vocabulary, rows[item], max_targets - 1)
        self.vocabulary = vocabulary
        self.cut = len(too_long)
        self.tokens, self.lengths = pad_rows(rows)
        self.targets = np.pad(self.tokens, ((0, 0), (0, 1)))
        self.targets[np.arange(1, len(rows)), self.lengths[1:]] = vocabulary.eos_id


def _cut(vocabulary: seqio.SentencePieceVocabulary, tokens: list[int], length: int) -> list[int]:
    """The first `length` tokens, fewer where a character's bytes would be torn apart, but at least one."""
    kept = tokens[:length]
    while len(kept) > 1 and vocabulary.tokenizer.decode(kept).endswith("\N{REPLACEMENT CHARACTER}"):
        kept.pop()
    return kept
