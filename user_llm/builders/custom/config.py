"""What a custom dataset is made of: files, and which of their columns mean what."""

import dataclasses
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from user_llm.builders.builder import SIMULATED
from user_llm.errors import UserError

REQUIRED = ("user", "item", "timestamp")
OPTIONAL = ("title", "category", "rating", "review")
OF_ITEMS = ("title", "category")
"""What a file of items may say about them."""

TIMESTAMP_UNITS = {"s": 1, "ms": 1_000}
"""Unit of whole-number timestamps → how many of them are a second."""


@dataclasses.dataclass(eq=False)
class CustomConfig(tfds.core.BuilderConfig):
    """One custom dataset. Without `files` it names a dataset that has been built before.

    Attributes:
      files: CSV, JSON lines (either may be gzipped) or Parquet, told apart by their names' ends; one row an event.
      columns: what a column means → its name. `user`, `item` and `timestamp` are required; `title`, `category`,
        `rating` and `review` are optional.
      items: files of the items, one row an item; may be left out.
      item_columns: the same for `items`: `item` is required, `title` and `category` are optional.
      category_separator: between the categories of an item; lists in JSON and Parquet need none.
      timestamp_unit: what a whole-number timestamp counts, "s" or "ms". ISO 8601 is read under either.

    Raises:
      UserError: a value is not one of these, or two do not go together.
    """

    files: Sequence[str | os.PathLike] = ()
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    items: Sequence[str | os.PathLike] = ()
    item_columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    category_separator: str = "|"
    timestamp_unit: str = "s"

    def __post_init__(self):
        if not re.fullmatch("[a-z0-9_]+", self.name) or self.name == SIMULATED:
            raise UserError(
                f"custom/{self.name}: a name is of a-z, 0-9 and _, and not {SIMULATED!r}; for example custom/my_shop."
            )
        if self.timestamp_unit not in TIMESTAMP_UNITS:
            raise UserError(f"timestamp_unit must be one of {', '.join(TIMESTAMP_UNITS)}, got {self.timestamp_unit!r}.")
        if not self.category_separator:
            raise UserError("category_separator must not be empty.")
        if bool(self.items) != bool(self.item_columns):
            raise UserError("items and item_columns go together: give both, or neither.")
        if bool(self.files) != bool(self.columns):
            raise UserError("files and columns go together: give both, or neither to read what has been built.")
        if self.items and not self.files:
            raise UserError("items describes the items of files: give files and columns too.")
        if self.files:
            _check_roles("columns", self.columns, REQUIRED, OPTIONAL)
        if self.items:
            _check_roles("item_columns", self.item_columns, ("item",), OF_ITEMS)
        if twice := sorted({*self.columns} & {*self.item_columns} & {*OF_ITEMS}):
            raise UserError(f"{' and '.join(twice)}: in columns and in item_columns; give each once.")
        self.named_files()

    def named_files(self) -> dict[str, Path]:
        """All files, of events and then of items, by a name that tells them apart: the path below their common folder.

        Raises:
          UserError: a file is given twice.
        """
        paths = [Path(os.path.abspath(Path(file).expanduser())) for file in (*self.files, *self.items)]
        if not paths:
            return {}
        folder = os.path.commonpath([path.parent for path in paths])
        named = {path.relative_to(folder).as_posix(): path for path in paths}
        if len(named) < len(paths):
            raise UserError("a file is given twice among files and items; give each once.")
        return named

    def meaning(self) -> dict[str, Any]:
        """How the files are read, as JSON."""
        return {
            "columns": dict(self.columns),
            "item_columns": dict(self.item_columns),
            "category_separator": self.category_separator,
            "timestamp_unit": self.timestamp_unit,
        }


def _check_roles(key: str, columns: Mapping[str, str], required: Collection[str], optional: Collection[str]) -> None:
    missing = [role for role in required if role not in columns]
    unknown = [role for role in columns if role not in (*required, *optional)]
    if missing or unknown:
        problem = f"lacks {', '.join(missing)}" if missing else f"does not know {', '.join(unknown)}"
        raise UserError(
            f"{key} {problem}: expected {', '.join(f'{role}=<name of a column>' for role in required)} "
            f"and, where there is such a column, {', '.join(optional)}."
        )
    for role, column in columns.items():
        others = [other for other in columns if columns[other] == column and other != role]
        if others:
            raise UserError(f"{key}: {role} and {others[0]} are both column {column!r}; a column has one role.")
