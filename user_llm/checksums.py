"""What files held when they were written: checksums of their blocks, so that a part can be checked without the rest."""

import hashlib
import json
import logging
import os
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from user_llm.errors import UserError
from user_llm.files import read_json, write_json

BLOCK_BYTES = 1 << 20
SAMPLED_BLOCKS = 8
"""Of each file, where it is not checked in full: its first, its last, and others by chance."""

Checksum = Mapping[str, Any]
"""`{"bytes": size, "blocks": [hex digest of each block]}`: what JSON can hold."""


_logger = logging.getLogger(__name__)


def checksum(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Of a file's present content."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        return {"bytes": size, "blocks": [_digest(file, block) for block in range(_num_blocks(size))]}


def checksums(folder: str | os.PathLike[str], names: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
    """Of files in a folder, by name; of all files below it, by their relative path, where no names are given."""
    folder = Path(folder)
    if names is None:
        names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: checksum(folder / name) for name in sorted(names)}


def write_signed(path: str | os.PathLike[str], value: Mapping[str, Any]) -> None:
    """Writes `value`, which JSON can hold, with a digest of itself: a file of checksums may be damaged as well."""
    write_json(path, {**value, "digest": _digest_of(value)})


def read_signed(path: str | os.PathLike[str], advice: str) -> dict[str, Any]:
    """What `write_signed` has written.

    Raises:
      UserError: the file has changed since; `advice` says what helps.
      OSError: it cannot be read.
    """
    value = read_json(path, advice)
    if value.pop("digest", None) != _digest_of(value):
        raise UserError(f"{path} is damaged: {advice}")
    return value


def read_intact(path: str | os.PathLike[str], advice: str) -> dict[str, Any] | None:
    """What `write_signed` has written of files that can be made anew; None: not there, or damaged, which is said."""
    if not Path(path).is_file():
        return None
    try:
        return read_signed(path, advice)
    except UserError as error:
        _logger.warning("%s", error)
        return None


def are_intact(folder: str | os.PathLike[str], sums: Mapping[str, Checksum], advice: str) -> bool:
    """Whether files that can be made anew are as they were; the first that is not is said. Some blocks are read."""
    for line in changed(folder, sums, sampled=True):
        _logger.warning("%s: %s", line, advice)
        return False
    return True


def changed(folder: str | os.PathLike[str], sums: Mapping[str, Checksum], *, sampled: bool = False) -> Iterator[str]:
    """A line for each file that is not as it was: "FOLDER/NAME is missing", "… holds 12 bytes, held 345".

    Args:
      folder: where the files lie now.
      sums: what `checksums` said of them.
      sampled: whether of large files only some blocks are read, other ones each time.
    """
    for name, one in sums.items():
        path = Path(folder) / name
        if not path.is_file():
            yield f"{path} is missing"
        elif (size := path.stat().st_size) != one["bytes"]:
            yield f"{path} holds {size:,} bytes, held {one['bytes']:,}"
        elif (block := _first_changed_block(path, one, sampled)) is not None:
            yield f"{path} has changed at bytes {block * BLOCK_BYTES:,} to {min((block + 1) * BLOCK_BYTES, size):,}"


def _first_changed_block(path: Path, one: Checksum, sampled: bool) -> int | None:
    blocks = list(range(len(one["blocks"])))
    if sampled and len(blocks) > SAMPLED_BLOCKS:
        blocks = sorted({0, blocks[-1], *random.sample(blocks, SAMPLED_BLOCKS - 2)})
    with path.open("rb") as file:
        return next((block for block in blocks if _digest(file, block) != one["blocks"][block]), None)


def _num_blocks(size: int) -> int:
    return -(-size // BLOCK_BYTES)


def _digest(file: BinaryIO, block: int) -> str:
    file.seek(block * BLOCK_BYTES)
    return hashlib.blake2b(file.read(BLOCK_BYTES), digest_size=16).hexdigest()


def _digest_of(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
