"""Which positions of a timeline are labels, and in which split: arithmetic on timeline lengths alone.

A user with n events gives labels at positions m ... n-1, where m is `min_history` (the history length, unless
shorter histories are admitted). The last label is `test`. The last but one is `validation`, and leaves
`train` only when validation is asked for. Everything before is `train`.
"""

import numpy as np

from user_llm.arguments import whole
from user_llm.errors import UserError

SPLITS = ("train", "validation", "test")


def resolve_min_history(history_length: int, min_history: int | None) -> int:
    """The fewest events a label may have behind it; `history_length` unless said otherwise.

    Raises:
        UserError: no whole numbers, a length below 1, or a minimum above the history length.
    """
    history_length = whole("history_length", history_length, 1)
    if min_history is None:
        return history_length
    if not 1 <= whole("min_history", min_history, 0) <= history_length:
        raise UserError(
            f"min_history must lie between 1 and history_length={history_length}, got {min_history}; "
            "leave it out to admit full histories only."
        )
    return min_history


def label_ranges(
    lengths: np.ndarray, split: str, min_history: int, validation: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The labels of one split as a half-open range of positions for every user.

    Args:
        lengths: int [users], events of each user.
        split: `train`, `validation` or `test`.
        min_history: events a label must have behind it.
        validation: whether position n-2 is held out for validation.

    Returns:
        (first, end), int64 [users]; first == end for a user without a label in this split.

    Raises:
        ValueError: an unknown split, or `validation` when it was not asked for.
    """
    lengths = np.asarray(lengths, np.int64)
    if split == "train":
        end = np.maximum(lengths - (2 if validation else 1), min_history)
        return np.full_like(lengths, min_history), end
    if split == "validation":
        if not validation:
            raise ValueError("split 'validation' is empty unless validation=True holds it out of train.")
        position = lengths - 2
    elif split == "test":
        position = lengths - 1
    else:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}.")
    return position, np.where(position >= min_history, position + 1, position)


def count_windows(
    lengths: np.ndarray, history_length: int, min_history: int | None = None, validation: bool = False
) -> dict[str, int]:
    """Windows by split, and the users that have any, from timeline lengths [users] alone."""
    minimum = resolve_min_history(history_length, min_history)
    counts = {"users": int(np.sum(np.asarray(lengths) > minimum))}
    for split in SPLITS:
        if split != "validation" or validation:
            first, end = label_ranges(lengths, split, minimum, validation)
            counts[split] = int(np.sum(end - first))
    return counts
