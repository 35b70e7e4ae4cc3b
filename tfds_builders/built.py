"""A built dataset on disk: finished or not, and still as it was built."""

import json
from pathlib import Path

from tfds_builders import checksums
from tfds_builders.errors import UserError
from tfds_builders.files import replacing

CHECKSUMS = "checksums.json"
"""Of all other files of the dataset; the last that a build writes, so a dataset that has it is finished."""


def is_finished(folder: Path) -> bool:
    """Whether the dataset's build came to its end."""
    return (folder / CHECKSUMS).is_file()


def finish(folder: Path) -> None:
    """Writes down what the files of the dataset hold."""
    with replacing(folder / CHECKSUMS) as partial:
        partial.write_text(json.dumps(checksums.checksums(folder)) + "\n")


def check(folder: Path, *, sampled: bool = True) -> str:
    """Compares a finished dataset with what its build wrote; returns what was compared, in words.

    Args:
      folder: of the dataset.
      sampled: whether of large files only some blocks are read: quick, but no proof.

    Raises:
      UserError: a file is missing or has changed.
    """
    advice = f"delete {folder} and build anew with python -m tfds_builders.build"
    try:
        sums = json.loads((folder / CHECKSUMS).read_text())
        changed = list(checksums.changed(folder, sums, sampled=sampled))
        size = sum(one["bytes"] for one in sums.values())
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{folder / CHECKSUMS} is damaged: {advice}") from None
    if changed:
        others = f", and {len(changed) - 1} more files" if changed[1:] else ""
        raise UserError(f"{changed[0]}{others}: {advice}")
    return f"{folder}: {len(sums)} files, {size:,} bytes, as they were built"
