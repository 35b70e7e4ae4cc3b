"""A built dataset on disk: finished or not, and still as it was built."""

from pathlib import Path

from user_llm import checksums
from user_llm.errors import UserError

CHECKSUMS = "checksums.json"
"""Of all other files of the dataset; the last that a build writes, so a dataset that has it is finished."""
METADATA = "metadata.json"
"""The catalogue and what the build counted (`TimelineBuilder`), as TFDS writes it."""
COLUMNS = "columns"
"""Of the dataset's folder: one `.npy` a column."""
NUMBERS = ("item", "rating", "timestamp")
"""The columns [E] of all events, user after user."""
USERS = ("offsets", "user_ids")
"""int64 [users + 1], where each user's events begin; and the users' ids, text [users]."""
REVIEWS = ("review_bytes", "review_offsets")
"""uint8, all reviews in UTF-8 one behind the other; and int64 [E + 1], where each begins. Not without reviews."""


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
