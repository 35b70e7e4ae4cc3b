"""A vocabulary of which only some pieces are kept: the model needs no rows, and its softmax no classes, for others."""

import itertools
import logging
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from user_llm.data.respelling import essential_pieces, speller
from user_llm.data.vocabulary import Vocabulary
from user_llm.errors import UserError
from user_llm.files import read_json, write_json

KEPT_FILE = "kept_pieces.json"

_logger = logging.getLogger(__name__)


class TrimmedVocabulary(Vocabulary):
    """The `kept` pieces of another vocabulary, numbered anew from 0, in the same order.

    A text has the pieces that the whole vocabulary gives it, where all of them are kept. Any other is spelt in
    smaller pieces that are, down to bytes or characters (`respelling.py`), and decodes to the same text. Such texts are
    counted, and warned of: the model reads them as it seldom did when it was trained.

    Args:
        whole: the vocabulary.
        kept: ids of its pieces, with all of `essential_pieces`; `trimmed` adds those.
        file: where `kept` was read.

    Attributes:
        whole, kept: as given, `kept` int64 `[K]`, ascending.
        respelt: how many texts have been spelt otherwise.

    Raises:
        UserError: `kept` has an id that `whole` does not have, or lacks the padding's or EOS.
    """

    def __init__(self, whole: Vocabulary, kept: Iterable[int], file: str | os.PathLike | None = None):
        old = sorted({*kept})
        if not {whole.pad_id, whole.eos_id} <= {*old} or old[0] < 0 or old[-1] >= whole.vocab_size:
            where = f"{file}: the" if file else "the"
            raise UserError(
                f"{where} ids of the kept pieces must be from 0 to {whole.vocab_size - 1}, those of {whole.file}, with "
                f"{whole.pad_id} and {whole.eos_id} among them."
            )
        ids = np.array(old, np.int64)
        super().__init__(whole.file, bytes.fromhex(whole.digest) + ids.tobytes())
        self._whole, self.kept, self.respelt = whole, ids, 0
        self._kept_file = file
        self.files = [*whole.files, *([Path(file)] if file else [])]
        self._new = np.full(whole.vocab_size, -1)
        self._new[ids] = np.arange(len(ids))
        self._old = old
        self.bos_id = int(self._new[whole.bos_id]) if whole.bos_id >= 0 else -1
        self.eos_id = int(self._new[whole.eos_id])
        unknown = -1 if whole.unk_id is None else int(self._new[whole.unk_id])
        self.unk_id = unknown if unknown >= 0 else None
        self.vocab_size = self.rows = len(ids)
        self.adds_bos = whole.adds_bos
        self.space = whole.space
        self._lock = threading.Lock()

    @property
    def whole(self) -> Vocabulary:
        return self._whole

    @classmethod
    def load(cls, whole: Vocabulary, file: Path) -> "TrimmedVocabulary":
        """The one whose `kept` is in `file`.

        Raises:
            UserError: it holds no ids, or others than `whole` has.
        """
        advice = f"put it back from a copy, or delete it to have all pieces of {whole.file}"
        kept = read_json(file, advice).get("kept")
        if not isinstance(kept, list) or not all(type(one) is int for one in kept):
            raise UserError(f"{file} is damaged (no list of ids under 'kept'): {advice}")
        return cls(whole, kept, file)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of every text, without BOS and EOS."""
        rows = self.whole.encode_batch(texts)
        ids, lengths = self._renumbered(rows)
        if len(lacking := np.flatnonzero(ids < 0)):
            others = np.unique(np.searchsorted(np.cumsum(lengths), lacking, side="right")).tolist()
            self._tell(len(others), texts[others[0]])
            respelt = self._spell([texts[text] for text in others], [rows[text] for text in others])
            for text, row in zip(others, respelt, strict=True):
                rows[text] = row
            ids, lengths = self._renumbered(rows)
        flat, ends = ids.tolist(), np.cumsum(lengths).tolist()
        return [flat[start:end] for start, end in itertools.pairwise([0, *ends])]

    def _renumbered(self, rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Our ids of all rows in one, -1 for a piece that is not kept, and how long each row is."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return self._new[np.fromiter(itertools.chain.from_iterable(rows), np.int64, lengths.sum())], lengths

    def _spell(self, texts: Sequence[str], rows: Sequence[Sequence[int]]) -> list[list[int]]:
        with self._lock:  # made by the first who needs it: it takes as long as to load the vocabulary
            if not hasattr(self, "_speller"):
                self._speller = speller(self.whole, self._new >= 0)
        return self._speller(texts, rows)

    def _tell(self, count: int, example: str) -> None:
        """Counts texts, and warns at the first, the tenth, the hundredth of them, and so on."""
        with self._lock:
            before, self.respelt = self.respelt, self.respelt + count
            after = self.respelt
        if not before or len(str(before)) < len(str(after)):
            _logger.warning(
                "%d texts so far, as %.60r, have pieces that the trimmed vocabulary left out, and are spelt in "
                "smaller ones",
                *(after, example),
            )

    def decode_rows(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The text of every token list; special tokens have none."""
        old = self._old
        return self.whole.decode_rows([[old[token] for token in row] for row in rows])

    def copy_to(self, file: Path) -> None:
        """Writes the whole tokenizer to `file`."""
        self.whole.copy_to(file)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the whole vocabulary into `folder`, and which of its pieces are kept."""
        self.whole.save(folder)
        write_json(Path(folder) / KEPT_FILE, {"kept": self._old})

    def __reduce__(self):
        return type(self), (self.whole, self._old, self._kept_file)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.whole!r}, {len(self._old)} pieces)"


def trimmed(whole: Vocabulary, rows: Iterable[Sequence[int]]) -> TrimmedVocabulary:
    """`whole` with the pieces in `rows` alone, and what every vocabulary needs.

    Raises:
        UserError: it is of a kind whose pieces cannot be spelt in others.
    """
    return TrimmedVocabulary(whole, essential_pieces(whole).union(*rows))
