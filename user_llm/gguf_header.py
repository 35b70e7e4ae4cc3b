"""What a GGUF file says of itself (llama.cpp's format, versions 2 and 3): its metadata, and where its tensors lie.

The walk is our own because the file is a stranger's: each length in it is held against what is left of the file before
anything of that length is made. It stands above `data` and `checkpoints`, which both read it.
"""

import itertools
import math
import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from user_llm.errors import CheckpointError

SUFFIX = ".gguf"
MOST_BYTES = 1 << 26
"""Of metadata and tensor table together; those of the largest vocabularies have a third of it."""
MOST_ENTRIES = 1 << 16
"""Metadata keys, and tensors; no model has a tenth of it."""
_ANEW = "fetch or copy it anew"
_MOST_DIMENSIONS = 4


class Kind(NamedTuple):
    """How numbers are stored: `numbers` of them, all of one row, share a block of `bytes`."""

    name: str
    numbers: int
    bytes: int


KINDS = {
    0: Kind("F32", 1, 4),
    1: Kind("F16", 1, 2),
    2: Kind("Q4_0", 32, 18),
    3: Kind("Q4_1", 32, 20),
    6: Kind("Q5_0", 32, 22),
    7: Kind("Q5_1", 32, 24),
    8: Kind("Q8_0", 32, 34),
    10: Kind("Q2_K", 256, 84),
    11: Kind("Q3_K", 256, 110),
    12: Kind("Q4_K", 256, 144),
    13: Kind("Q5_K", 256, 176),
    14: Kind("Q6_K", 256, 210),
    30: Kind("BF16", 1, 2),
}

_TEXT, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: `shape` as NumPy has it (rows first), and its bytes, `start` to `start + size` of the file."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    start: int
    size: int


@dataclass(frozen=True)
class Header:
    """Attributes: the file, its metadata (numbers, texts, and lists of either), and its tensors by name."""

    file: Path
    values: dict[str, Any]
    tensors: dict[str, TensorInfo]


def is_gguf(path: str | os.PathLike) -> bool:
    """Whether a name says that it is a GGUF file's."""
    return Path(path).suffix == SUFFIX


def read_header(file: str | os.PathLike) -> Header:
    """Reads the metadata and the tensor table, no tensor.

    Raises:
      CheckpointError: no such file, or no GGUF file that is whole; the message names the byte and what is there.
    """
    file = Path(file)
    try:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            if opened.read(4) != b"GGUF":
                raise CheckpointError(f"{file} is no GGUF file, as it does not begin with 'GGUF': {_ANEW}.")
            with mmap.mmap(opened.fileno(), min(size, MOST_BYTES), access=mmap.ACCESS_READ) as data:
                return _header(_Walk(file, data), size)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}): name a GGUF file.") from error


class _Walk:
    """Reads one thing behind the other; `at` is the byte it has come to."""

    def __init__(self, file: Path, data: mmap.mmap):
        self.file, self.data, self.at = file, data, 4

    def error(self, found: str) -> CheckpointError:
        return CheckpointError(f"{self.file}, at byte {self.at:,}: {found}: {_ANEW}.")

    def take(self, length: int, what: str) -> int:
        """Goes `length` bytes on, and returns where they begin."""
        if (left := len(self.data) - self.at) < length:
            end = (
                "the file" if len(self.data) < MOST_BYTES else f"the first {MOST_BYTES:,} bytes, all that is looked at"
            )
            raise self.error(f"{what} needs {length:,} bytes, but {left:,} are left of {end}")
        self.at += length
        return self.at - length

    def number(self, letter: str, what: str) -> Any:
        return self.numbers(letter, 1, what)[0]

    def numbers(self, letter: str, count: int, what: str) -> Sequence[Any]:
        start = self.take(count * struct.calcsize(f"<{letter}"), what)
        return struct.unpack_from(f"<{count}{letter}", self.data, start)

    def texts(self, count: int, what: str) -> list[str]:
        """Written out, as a vocabulary has a million of them to be read."""
        if count * _LENGTH.size > len(self.data) - self.at:
            self.take(count * _LENGTH.size, what)  # raises
        data, end, unpack, found = self.data, len(self.data), _LENGTH.unpack_from, []
        try:
            for _ in range(count):
                start = self.at + _LENGTH.size
                stop = start + (unpack(data, self.at)[0] if start <= end else 0)
                if stop > end:
                    self.take(stop - self.at, f"a text of {what}")  # raises
                found.append(str(data[start:stop], "utf-8"))
                self.at = stop
        except UnicodeDecodeError as error:
            raise self.error(f"a text of {what} is not UTF-8 ({error.reason})") from None
        return found

    def value(self, key: str) -> Any:
        kind = self.number("I", f"the type of {key}")
        if kind == _TEXT:
            return self.texts(1, key)[0]
        if kind != _ARRAY:
            return self.number(self._letter(kind, key), key)
        kind, count = self.number("I", f"the type of {key}"), self.number("Q", f"the length of {key}")
        if kind == _TEXT:
            return self.texts(count, key)
        return list(self.numbers(self._letter(kind, key), count, key))

    def _letter(self, kind: int, key: str) -> str:
        if kind not in _NUMBERS:
            raise self.error(f"{key} has type {kind}; expected a number, a text, or an array of either")
        return _NUMBERS[kind]


def _header(walk: _Walk, size: int) -> Header:
    version = walk.number("I", "the version")
    if version not in (2, 3):
        kind = "big-endian" if version and version % (1 << 24) == 0 else f"of version {version}"
        raise CheckpointError(f"{walk.file} is {kind}; only little-endian GGUF of version 2 or 3 is supported.")
    counts = walk.numbers("Q", 2, "the number of tensors and keys")
    if max(counts) > MOST_ENTRIES:
        raise walk.error(f"{counts[0]:,} tensors and {counts[1]:,} keys are told of; expected {MOST_ENTRIES:,} at most")
    values: dict[str, Any] = {}
    for _ in range(counts[1]):
        (key,) = walk.texts(1, "a key's name")
        if key in values:
            raise walk.error(f"the key {key} stands twice")
        values[key] = walk.value(key)
    if (parts := values.get("split.count", 1)) not in (0, 1):
        raise CheckpointError(
            f"{walk.file} is one of {parts} parts: join them with `llama-gguf-split --merge`, and name the whole."
        )
    table = [_entry(walk) for _ in range(counts[0])]
    return Header(walk.file, values, _tensors(walk, size, values.get("general.alignment", 32), table))


class _Entry(NamedTuple):
    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def _entry(walk: _Walk) -> _Entry:
    (name,) = walk.texts(1, "a tensor's name")
    dimensions = walk.number("I", f"the number of dimensions of {name}")
    if not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise walk.error(f"{name} has {dimensions:,} dimensions; expected 1 to {_MOST_DIMENSIONS}")
    shape = walk.numbers("Q", dimensions, f"the shape of {name}")
    if min(shape) < 1:
        raise walk.error(f"{name} has a dimension of 0")
    return _Entry(name, tuple(reversed(shape)), walk.number("I", f"the type of {name}"), walk.number("Q", name))


def _tensors(walk: _Walk, size: int, alignment: Any, table: Sequence[_Entry]) -> dict[str, TensorInfo]:
    """The tensors of a file of `size` bytes, whose data begin behind the walk at the next multiple of `alignment`."""
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise walk.error(f"general.alignment is {alignment!r}; expected a power of 2")
    begin = -(-walk.at // alignment) * alignment
    found: dict[str, TensorInfo] = {}
    for name, shape, number, offset in table:
        if name in found:
            raise walk.error(f"the tensor {name} stands twice")
        if number not in KINDS:
            supported = ", ".join(kind.name for kind in KINDS.values())
            raise CheckpointError(f"{walk.file}: {name} is of GGML's type {number}; supported: {supported}.")
        kind = KINDS[number]
        if shape[-1] % kind.numbers:
            raise walk.error(f"{name} has rows of {shape[-1]:,}, which blocks of {kind.numbers} do not fill")
        if offset % alignment:
            raise walk.error(f"{name} begins at {offset:,}, which is no multiple of {alignment}")
        length = math.prod(shape) // kind.numbers * kind.bytes
        if begin + offset + length > size:
            raise walk.error(
                f"{name} needs bytes {begin + offset:,} to {begin + offset + length:,} of a file of {size:,}"
            )
        found[name] = TensorInfo(name, shape, kind, begin + offset, length)
    by_place = sorted(found.values(), key=lambda tensor: tensor.start)
    for before, after in itertools.pairwise(by_place):
        if before.start + before.size > after.start:
            raise walk.error(f"the tensors {before.name} and {after.name} overlap")
    return found
