"""What every vocabulary can do: text to tokens and back, without TensorFlow."""

import abc
import functools
import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np


class Vocabulary(abc.ABC):
    """A loaded tokenizer file.

    It is loaded once and never changes, so any number of threads may use it. Two are equal where their files' content
    and what begins and ends a text are, wherever they lie. To another process it is sent by its file's name.

    Args:
        file: the tokenizer's.
        content: of the file.

    Attributes:
        file: as given.
        files: that and those beside it, of which this vocabulary was made.
        pad_id: 0, with which arrays are filled up whatever the checkpoint padded with; it may be an ordinary token.
        bos_id: -1 without one.
        eos_id: what ends a text.
        unk_id: None without one.
        vocab_size: 1 + the highest id.
        rows: how many rows an embedding table must have: one for every token that a text, BOS and EOS can have.
        adds_bos: whether the checkpoint's texts begin with BOS.
        kept: the ids that these tokens have in the vocabulary of which some are kept, int64 `[rows]`, ascending; None
            where all are.
        whole: that vocabulary, or this one.
    """

    file: Path
    files: list[Path]
    pad_id: int = 0
    bos_id: int
    eos_id: int
    unk_id: int | None
    vocab_size: int
    rows: int
    adds_bos: bool
    kept: np.ndarray | None = None

    def __init__(self, file: str | os.PathLike, content: bytes):
        self.file = Path(file)
        self.files = [self.file]
        self._digest = hashlib.sha256(content).digest()

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of every text, without BOS and EOS."""

    @abc.abstractmethod
    def decode_rows(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The text of every token list, an EOS ending none; no id may be `vocab_size` or more."""

    def copy_to(self, file: Path) -> None:
        """Writes the tokenizer, without what stands beside it, to `file`."""
        shutil.copyfile(self.file, file)

    @abc.abstractmethod
    def save(self, folder: str | os.PathLike) -> None:
        """Writes files into `folder` (made where missing) from which `load_vocabulary` gives this vocabulary again."""

    @property
    def whole(self) -> "Vocabulary":
        return self

    @functools.cached_property
    def space(self) -> str:
        """What parts a text from the one it stands behind: " ", or "" where the vocabulary puts the space itself."""
        letter = self.encode("a")
        return "" if self.decode_rows([letter + letter]) == ["a a"] else " "

    def encode(self, text: str) -> list[int]:
        """Tokens of one text, without BOS and EOS."""
        return self.encode_batch([text])[0]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of one token list, as `decode_batch` says."""
        return self.decode_batch(np.array([[*ids]], int))[0]

    def decode_batch(self, tokens: np.ndarray, lengths: np.ndarray | None = None) -> list[str]:
        """Texts of token rows [B, T]: each up to its length [B] (None: T) or its first EOS, whichever comes first.

        Tokens beyond the vocabulary have no text; a checkpoint's table may be larger than its vocabulary.
        """
        rows = np.asarray(tokens)
        keep = (np.cumsum(rows == self.eos_id, axis=1) == 0) & (rows < self.vocab_size)
        if lengths is not None:
            keep &= np.arange(rows.shape[1]) < np.asarray(lengths)[:, None]
        return self.decode_rows([row[kept].tolist() for row, kept in zip(rows, keep, strict=True)])

    @property
    def digest(self) -> str:
        """Of all that tells it from other vocabularies: they are equal where this is."""
        told = (self._digest.hex(), self.bos_id, self.eos_id, self.adds_bos)
        return hashlib.sha256(repr(told).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.digest == other.digest

    def __reduce__(self):
        return type(self), (self.file,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.file)!r})"
