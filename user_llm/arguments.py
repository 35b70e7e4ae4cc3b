"""What a caller from Python may give: a wrong value is answered with the argument's name and what it can be."""

import math
import operator
import os
import reprlib
from numbers import Real
from pathlib import Path
from typing import Any, TypeGuard

from user_llm.errors import UserError


def whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    """A whole number from `low` to `high`; NumPy's are such, True is not.

    Raises:
      UserError: it is none.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < low or (high is not None and number > high):
        bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise UserError(f"{name} must be a whole number {bounds}, got {reprlib.repr(value)}.")
    return number


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a number at all: finite, and neither True nor a text."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


def folder_path(name: str, value: Any) -> Path:
    """A folder's path, whether it exists or not.

    Raises:
      UserError: it is no path, or a file is there.
    """
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise UserError(f"{name} must be the path of a folder, got {reprlib.repr(value)}.")
    if (path := Path(value)).is_file():
        raise UserError(f"{name} must be a folder: {path} is a file.")
    return path
