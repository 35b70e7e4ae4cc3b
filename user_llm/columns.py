"""Columns in files: numbers as plain `.npy`, texts as one run of UTF-8 with offsets, memory-mapped when opened.

An open column takes no memory of its own: the system reads what is asked for, and may forget it again.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

_BLOCK = 1 << 16  # texts decoded at once, when all are asked for


def open_column(folder: Path, name: str) -> np.ndarray:
    """The column `name` in a folder; read-only."""
    # As a plain array: each index of numpy's memmap costs a microsecond of Python.
    return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))


def write_column(folder: Path, name: str, values: np.ndarray) -> None:
    """Writes a column as a whole."""
    np.save(folder / f"{name}.npy", values, allow_pickle=False)


class ColumnWriter:
    """Writes a column piece by piece, so that it is never held whole.

    Args:
      folder: of the column, which must be there.
      name: of the column.
      dtype: of its values.
    """

    def __init__(self, folder: Path, name: str, dtype: np.typing.DTypeLike):
        self._dtype = np.dtype(dtype)
        self._length = 0
        self._file = (folder / f"{name}.npy").open("wb")
        self._write_header()

    def append(self, values: np.ndarray) -> None:
        """Adds values [n] behind those that are there."""
        self._file.write(np.ascontiguousarray(values, self._dtype).data.cast("B"))
        self._length += len(values)

    def close(self) -> None:
        """Finishes the file; without, it reads as an empty column."""
        with self._file:
            self._file.seek(0)
            self._write_header()

    def __enter__(self) -> "ColumnWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _write_header(self) -> None:
        # NumPy leaves room in a header for any length, so that the last one has the size of the first.
        described = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._length,)}
        np.lib.format.write_array_header_1_0(self._file, described)


class Texts(Sequence[str]):
    """Texts by number, decoded when they are asked for.

    Args:
      characters: uint8 [bytes], all texts in UTF-8, one behind the other.
      offsets: int64 [n + 1], where each begins.
    """

    def __init__(self, characters: np.ndarray, offsets: np.ndarray):
        self._characters = characters
        self._offsets = offsets

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """Those of a list, in memory."""
        encoded = [text.encode() for text in texts]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return cls(np.frombuffer(b"".join(encoded), np.uint8), np.concatenate([[0], np.cumsum(lengths)]))

    @classmethod
    def open(cls, folder: Path, name: str) -> "Texts":
        """The texts `name` in a folder."""
        return cls(open_column(folder, f"{name}_bytes"), open_column(folder, f"{name}_offsets"))

    def save(self, folder: Path, name: str) -> None:
        """Writes them as the texts `name` of a folder."""
        write_column(folder, f"{name}_bytes", self._characters)
        write_column(folder, f"{name}_offsets", self._offsets)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        places = range(len(self))[index]  # refuses what is out of range
        if isinstance(places, range):
            return self.take(np.arange(places.start, places.stop, places.step))
        return self.take(np.array([places]))[0]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _BLOCK):
            yield from self.take(np.arange(start, min(start + _BLOCK, len(self))))

    def take(self, places: np.ndarray) -> list[str]:
        """The texts at these places, int [B] from 0."""
        places, characters = np.asarray(places, np.int64), self._characters.data
        ends = zip(self._offsets[places].tolist(), self._offsets[places + 1].tolist(), strict=True)
        return [str(characters[start:end], "utf-8") for start, end in ends]


class TextsWriter:
    """Writes texts piece by piece.

    Args:
      folder: of the texts, which must be there.
      name: of the texts.
    """

    def __init__(self, folder: Path, name: str):
        self._characters = ColumnWriter(folder, f"{name}_bytes", np.uint8)
        self._offsets = ColumnWriter(folder, f"{name}_offsets", np.int64)
        self._end = 0
        self._offsets.append(np.zeros(1, np.int64))

    def append(self, characters: np.ndarray, lengths: np.ndarray) -> None:
        """Adds texts: their bytes uint8 [bytes] in UTF-8 one behind the other, and how many each has, int [n]."""
        ends = self._end + np.cumsum(lengths, dtype=np.int64)
        self._characters.append(characters)
        self._offsets.append(ends)
        self._end = int(ends[-1]) if len(ends) else self._end

    def close(self) -> None:
        """Finishes the files."""
        self._characters.close()
        self._offsets.close()

    def __enter__(self) -> "TextsWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()
