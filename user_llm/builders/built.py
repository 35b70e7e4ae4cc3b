"""A built dataset on disk: finished or not, and still as it was built."""

from pathlib import Path

from user_llm import checksums
from user_llm.errors import UserError

CHECKSUMS = "checksums.json"
"""Of all other files of the dataset; the last that a build writes, so a dataset that has it is finished."""
METADATA = "metadata.json"
"""What the build counted (`TimelineBuilder`), as TFDS writes it."""
COLUMNS = "columns"
"""Folder of the events' columns: `item`, `rating`, `timestamp`, each [E], user after user; int64 `offsets` [users + 1],
where each user's begin; the texts `user_id` [users]; and `review` [E], where the dataset has reviews."""
CATALOGUE = "catalogue"
"""Folder of the items' columns: the texts `title` and `raw_id` [I + 1] and `category_name`; int32 `category_ids`, an
item's behind those of the one before; int64 `category_offsets` [I + 2]. Item 0 is padding."""


def is_finished(folder: Path) -> bool:
    """Whether the dataset's build came to its end."""
    return (folder / CHECKSUMS).is_file()


def finish(folder: Path) -> None:
    """Writes down what the files of the dataset hold."""
    checksums.write_signed(folder / CHECKSUMS, {"files": checksums.checksums(folder)})


def check(folder: Path, *, sampled: bool = True) -> str:
    """Compares a finished dataset with what its build wrote; returns what was compared, in words.

    Args:
      folder: of the dataset.
      sampled: whether of large files only some blocks are read: quick, but no proof.

    Raises:
      UserError: a file is missing or has changed.
    """
    advice = f"delete {folder} and build anew with user-llm build"
    sums = checksums.read_signed(folder / CHECKSUMS, advice)["files"]
    if changed := list(checksums.changed(folder, sums, sampled=sampled)):
        others = f", and {len(changed) - 1} more files" if changed[1:] else ""
        raise UserError(f"{changed[0]}{others}: {advice}")
    size = sum(one["bytes"] for one in sums.values())
    return f"{folder}: {len(sums)} files, {size:,} bytes, as they were built"
