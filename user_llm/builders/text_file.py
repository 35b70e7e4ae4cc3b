"""Opens a raw file of text; what is none is named for what it is."""

import gzip
import io
import zlib
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from user_llm.builders.malformed import MalformedSourceError

DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error)
"""What reading raises where a packed file is cut or has changed."""

_GZIP = b"\x1f\x8b"
_UTF8_MARK = b"\xef\xbb\xbf"
# First bytes of a file → what it is, and what to do.
_NO_TEXT = {
    _GZIP: ("a gzip file", "unpack it once more, or let its name end in .gz where it does not"),
    b"PK\x03\x04": ("a zip", "unpack it"),
    b"BZh": ("packed by bzip2", "unpack it, or pack it with gzip"),
    b"\xfd7zXZ\0": ("packed by xz", "unpack it, or pack it with gzip"),
    b"\x28\xb5\x2f\xfd": ("packed by zstd", "unpack it, or pack it with gzip"),
    b"PAR1": ("Parquet", "let its name end in .parquet"),
    b"\xff\xfe": ("UTF-16", "save it as UTF-8"),
    b"\xfe\xff": ("UTF-16", "save it as UTF-8"),
}


class Piece(NamedTuple):
    """Lines of a text file that stand together, or row groups of a Parquet file.

    Attributes:
      begin: where it begins, in bytes, or the first row group.
      end: where it ends, exclusive; None for the end of the file.
      line: the number of its first line or row, from 1.
      before: lines of the files that are read before this one.
    """

    begin: int = 0
    end: int | None = None
    line: int = 1
    before: int = 0


WHOLE = Piece()


def open_text(path: Path, name: str | None = None, piece: Piece = WHOLE) -> gzip.GzipFile | BufferedReader | io.BytesIO:
    """The bytes of a file behind UTF-8's byte order mark; those of a file whose name ends in `.gz`, unpacked.

    Args:
      path: the file.
      name: of the file in messages; the last part of its path by default.
      piece: what to read of it; only of files that are not packed.

    Raises:
      MalformedSourceError: it is missing, no file (a folder, a pipe, a device), or of a kind that is no text.
    """
    name = name or path.name
    if not path.is_file():
        raise MalformedSourceError(f"{path} does not exist or is no file.")
    packed = path.suffix == ".gz"
    if packed:
        with path.open("rb") as raw:
            if (head := raw.read(len(_GZIP))) and head != _GZIP:
                raise MalformedSourceError(f"{name} is no gzip file: pack it, or take .gz off its name.")
    file: gzip.GzipFile | BufferedReader
    file = gzip.open(path) if packed else path.open("rb")  # noqa: SIM115 - the caller closes it
    try:
        head = file.peek(len(_UTF8_MARK))
        for start, (kind, advice) in _NO_TEXT.items():
            if head.startswith(start):
                raise MalformedSourceError(f"{name} is {kind}: {advice}.")
        if head.startswith(_UTF8_MARK):
            file.read(len(_UTF8_MARK))
    except BaseException as error:
        file.close()
        if isinstance(error, DAMAGE):
            raise damaged(name, 0, error) from error
        raise
    if not piece.begin and piece.end is None:
        return file
    with file:
        if piece.begin:
            file.seek(piece.begin)
        return io.BytesIO(file.read(-1 if piece.end is None else piece.end - file.tell()))


def damaged(name: str, lines: int, error: Exception) -> MalformedSourceError:
    """What to say of a packed file that can be read up to a line only."""
    return MalformedSourceError(
        f"{name} is truncated or damaged after line {lines:,} ({error}): fetch or write it again."
    )
