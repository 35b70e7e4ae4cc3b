"""Vocabularies behind `seqio.Vocabulary` (SentencePiece, `tokenizer.json`), and names tokenised once.

Token 0 fills up every array. Lengths, not token values, say where a text ends, because in some checkpoints
token 0 is no padding piece: it is Llama's unknown piece, and "!" in GPT-2.
"""

import io
import itertools
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
import seqio
from seqio.vocabularies import sentencepiece_model_pb2

from user_llm.data.huggingface_vocabulary import TOKENIZER_CONFIG, TOKENIZER_JSON, HuggingFaceVocabulary
from user_llm.files import replacing

TOKENIZER_FILE = "tokenizer.model"
Vocabulary = seqio.Vocabulary
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


def load_vocabulary(path: str | os.PathLike) -> seqio.Vocabulary:
    """Loads a SentencePiece model file or a `tokenizer.json`, or what of them a Hugging Face folder has.

    A folder with both gives its SentencePiece model. A file that ends in `.json` is a `tokenizer.json`
    (`HuggingFaceVocabulary` says which files beside it are read too).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is neither of them, nothing says what ends a text, or it was replaced by another
            one since this process first loaded it.
    """
    file = _tokenizer_file(Path(path))
    return HuggingFaceVocabulary(file) if file.suffix == ".json" else _load_sentencepiece(file)


def _tokenizer_file(path: Path) -> Path:
    if path.is_file():
        return path
    for name in (TOKENIZER_FILE, TOKENIZER_JSON):
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(
        f"no tokenizer at {path}: name a SentencePiece model, a {TOKENIZER_JSON}, or a Hugging Face folder with "
        f"{TOKENIZER_FILE} or {TOKENIZER_JSON} (where it has only other files, `save_pretrained` of its transformers "
        f"tokenizer writes {TOKENIZER_JSON})."
    )


def _load_sentencepiece(file: Path) -> seqio.SentencePieceVocabulary:
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


def copy_vocabulary(vocabulary: seqio.Vocabulary, folder: str | os.PathLike) -> None:
    """Writes a loaded vocabulary's files into `folder`, from which `load_vocabulary` then gives the same one.

    It is a Hugging Face folder's tokenizer: a `tokenizer.model` with the files that `transformers` has beside it, or
    a `tokenizer.json` with a `tokenizer_config.json` that names BOS and EOS even where other files did so before.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(vocabulary, HuggingFaceVocabulary):
        shutil.copyfile(vocabulary.file, folder / TOKENIZER_JSON)
        vocabulary.save_config(folder)
        return
    file = Path(vocabulary.sentencepiece_model_file)
    shutil.copyfile(file, folder / TOKENIZER_FILE)
    for beside in map(file.with_name, (TOKENIZER_JSON, TOKENIZER_CONFIG)):
        if file.name == TOKENIZER_FILE and beside.is_file():
            shutil.copyfile(beside, folder / beside.name)


def rows_needed(vocabulary: seqio.Vocabulary) -> int:
    """Rows of the smallest embedding table that has one for every token of a text, BOS and EOS."""
    return vocabulary.rows if isinstance(vocabulary, HuggingFaceVocabulary) else vocabulary.vocab_size


def text_start(vocabulary: seqio.Vocabulary) -> list[int]:
    """The tokens in front of a text: BOS, or none where there is no BOS or the checkpoint did without."""
    starts = vocabulary.adds_bos if isinstance(vocabulary, HuggingFaceVocabulary) else vocabulary.bos_id >= 0
    return [vocabulary.bos_id] if starts else []


def encode_batch(vocabulary: seqio.Vocabulary, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of every text, without BOS and EOS, in one call."""
    if isinstance(vocabulary, HuggingFaceVocabulary):
        return vocabulary.encode_batch(texts)
    return vocabulary.tokenizer.encode(list(texts), out_type=int)


def encode_continuations(vocabulary: seqio.Vocabulary, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of texts that stand behind another text, from which a space parts them; "" has none.

    SentencePiece usually puts that space itself. Where a vocabulary does not (Gemma, byte-level BPE) it is written
    in front, as those models expect words to begin with it; decoding such a text alone then gives the space back.
    """
    letter = encode_batch(vocabulary, ["a"])[0]
    space = "" if _decode_rows(vocabulary, [letter + letter]) == ["a a"] else " "
    return encode_batch(vocabulary, [space + text if text else "" for text in texts])


def decode_batch(vocabulary: seqio.Vocabulary, tokens: np.ndarray, lengths: np.ndarray | None = None) -> list[str]:
    """Texts of token rows [B, T]: each up to its length [B] (None: T) or its first EOS, whichever comes first.

    Tokens beyond the vocabulary have no text; a checkpoint's table may be larger than its vocabulary.
    """
    rows = np.asarray(tokens)
    keep = (np.cumsum(rows == vocabulary.eos_id, axis=1) == 0) & (rows < vocabulary.vocab_size)
    if lengths is not None:
        keep &= np.arange(rows.shape[1]) < np.asarray(lengths)[:, None]
    return _decode_rows(vocabulary, [row[kept].tolist() for row, kept in zip(rows, keep, strict=True)])


def _decode_rows(vocabulary: seqio.Vocabulary, rows: list[list[int]]) -> list[str]:
    if isinstance(vocabulary, HuggingFaceVocabulary):
        return vocabulary.decode_batch(rows)
    return vocabulary.tokenizer.decode(rows)


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
        ValueError: `max_targets` leaves no room for a name, or a name has no tokens.
    """

    def __init__(self, names: Sequence[str], vocabulary: seqio.Vocabulary, max_targets: int):
        if max_targets < 2:
            raise ValueError(f"max_targets={max_targets} leaves no room for a name and its EOS: raise it.")
        rows = encode_continuations(vocabulary, names)
        empty = next((index for index, row in enumerate(rows) if index and not row), None)
        if empty:
            raise ValueError(f"the name {names[empty]!r} of number {empty} has no text to answer with: give it one.")
        too_long = [index for index, row in enumerate(rows) if len(row) >= max_targets]
        for index in too_long:
            rows[index] = cut_tokens(vocabulary, rows[index], max_targets - 1)
        self.vocabulary = vocabulary
        self.cut = len(too_long)
        self.tokens, self.lengths = pad_rows(rows)
        self.targets = np.pad(self.tokens, ((0, 0), (0, 1)))
        self.targets[np.arange(1, len(rows)), self.lengths[1:]] = vocabulary.eos_id


def cut_tokens(vocabulary: seqio.Vocabulary, tokens: list[int], length: int) -> list[int]:
    """The first `length` tokens, fewer where a character's bytes would be torn apart, but at least one."""
    kept = tokens[:length]
    while len(kept) > 1 and _decode_rows(vocabulary, [kept])[0].endswith("\N{REPLACEMENT CHARACTER}"):
        kept.pop()
    return kept
