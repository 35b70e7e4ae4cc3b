"""A text file's lines with their numbers, in blocks, so that nothing is ever held whole."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from user_llm.builders.text_file import DAMAGE, WHOLE, Piece, damaged, open_text

LINES = pa.schema({"line": pa.int64(), "text": pa.string(), "utf8": pa.bool_()})

_BLOCK_BYTES = 1 << 24


def read_lines(path: Path, name: str | None = None, piece: Piece = WHOLE) -> Iterator[pa.RecordBatch]:
    """Yields batches of `LINES`: lines with their ends and their numbers from 1, of a piece of a file as `open_text`
    opens it.

    A byte that is no UTF-8 must not stop the reading of the other lines: such a line has "?" for its bytes that are
    no ASCII, and `utf8` is false.

    Raises:
      MalformedSourceError: see `open_text`, or a gzip file is truncated or damaged.
    """
    line = piece.line
    try:
        with open_text(path, name, piece) as file:
            while block := file.read(_BLOCK_BYTES) + file.readline():
                batch = _batch(block, line)
                yield batch
                line += len(batch)
    except DAMAGE as error:
        raise damaged(name or path.name, line - 1, error) from error


def _batch(block: bytes, first: int) -> pa.RecordBatch:
    characters = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(characters == ord("\n")) + 1
    if not block.endswith(b"\n"):
        ends = np.append(ends, len(block))
    starts = np.concatenate([[0], ends[:-1]])
    utf8 = np.ones(len(ends), bool)
    try:
        block.decode()
    except UnicodeDecodeError:
        other = np.flatnonzero(np.add.reduceat((characters > 127).astype(np.int64), starts))
        utf8[[index for index in other if not _is_utf8(block[starts[index] : ends[index]])]] = False
        broken = np.repeat(~utf8, ends - starts)
        characters = np.where(broken & (characters > 127), np.uint8(ord("?")), characters)
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    text = pa.StringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(characters))
    return pa.record_batch([np.arange(first, first + len(ends)), text, utf8], schema=LINES)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
