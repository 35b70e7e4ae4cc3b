"""A raw file in pieces: each is read alone, as a worker does, and its rows keep their numbers in the file."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from user_llm.builders.text_file import DAMAGE, WHOLE, Piece, damaged, open_text

LINES, CSV, PARQUET = "lines", "csv", "parquet"
"""How a file is cut: where lines end; where lines end, unless a quoted field may span them; between row groups."""


class Source(NamedTuple):
    """A raw file of a dataset.

    Attributes:
      name: in messages and counts.
      path: of the file.
      cut: `LINES`, `CSV` or `PARQUET`.
      of_items: whether its rows describe items; else they are events.
    """

    name: str
    path: Path
    cut: str = LINES
    of_items: bool = False


class Cut(NamedTuple):
    """What `cut_source` has found out.

    Attributes:
      path: the file that the pieces are of, which a gzip file was unpacked to.
      pieces: in the order of the file; at least one.
      lines: of the file, or rows of Parquet.
    """

    path: Path
    pieces: list[Piece]
    lines: int


def cut_source(source: Source, folder: Path, piece_bytes: int) -> Cut:
    """Cuts a raw file into pieces of about `piece_bytes` of text, and unpacks it into `folder` where it is packed.

    A CSV file that holds a quote is one piece: whether a line begins a record is only known from all lines before it.

    Raises:
      MalformedSourceError: see `open_text`, or a gzip file is truncated or damaged.
    """
    if source.cut == PARQUET:
        return _cut_parquet(source.path, piece_bytes)
    packed = source.path.suffix == ".gz"
    path = folder / source.path.stem if packed else source.path
    pieces, begin, line, quoted = [], 0, 1, False
    try:
        with open_text(source.path, source.name) as file, path.open("wb" if packed else "rb") as copy:
            for block in _blocks(file, piece_bytes):
                end = begin + len(block) if packed else file.tell()
                pieces.append(Piece(begin, end, line))
                begin, line = end, line + _count_lines(block, source.cut)
                quoted = quoted or b'"' in block
                if packed:
                    copy.write(block)
    except DAMAGE as error:
        raise damaged(source.name, line - 1, error) from error
    one = not pieces or (quoted and source.cut == CSV)
    return Cut(path, [WHOLE] if one else pieces, line - 1)


def _blocks(file, piece_bytes: int) -> Iterator[bytes]:
    while block := file.read(piece_bytes):
        yield block if block.endswith(b"\n") else block + file.readline()


def _count_lines(block: bytes, cut: str) -> int:
    """How many lines of text a reader of such files counts: only Python's csv module takes a lone \\r for an end."""
    count = block.count(b"\n")
    if cut == CSV and b"\r" in block:
        count += block.count(b"\r") - block.count(b"\r\n")
    return count


def _cut_parquet(path: Path, piece_bytes: int) -> Cut:
    try:
        metadata = pq.ParquetFile(path).metadata
    except (OSError, pa.ArrowException):
        return Cut(path, [WHOLE], 0)  # whoever reads it says what is wrong
    pieces, begin, size, rows, before = [], 0, 0, 0, 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        rows += metadata.row_group(group).num_rows
        if size >= piece_bytes or group + 1 == metadata.num_row_groups:
            pieces.append(Piece(begin, group + 1, before + 1))
            begin, size, before = group + 1, 0, rows
    return Cut(path, pieces or [WHOLE], rows)
