"""A custom dataset's arguments on the command line of `user-llm build`."""

import argparse

from user_llm.builders.custom.config import OF_ITEMS, OPTIONAL, REQUIRED, TIMESTAMP_UNITS, CustomConfig
from user_llm.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that only custom/<name> has."""
    group = parser.add_argument_group("custom/<name>, a dataset of your own files")
    group.add_argument("--files", nargs="+", default=[], help="CSV, JSON lines or Parquet; one row an event")
    group.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="role=column",
        help=f"which column is which: {', '.join(REQUIRED)}; optional are {', '.join(OPTIONAL)}",
    )
    group.add_argument("--items", nargs="+", default=[], help="optional files of the items; one row an item")
    group.add_argument(
        "--item_columns",
        nargs="+",
        default=[],
        metavar="role=column",
        help=f"the same for --items: item; optional are {', '.join(OF_ITEMS)}",
    )
    group.add_argument("--category_separator", default="|", help="between the categories of an item (|)")
    group.add_argument(
        "--timestamp_unit",
        choices=TIMESTAMP_UNITS,
        default="s",
        help="of whole-number timestamps (s); ISO 8601 is read under either",
    )


def given(options: argparse.Namespace) -> bool:
    """Whether any of the arguments that only custom/<name> has was given files or columns."""
    return bool(options.files or options.columns or options.items or options.item_columns)


def config_from_arguments(name: str, options: argparse.Namespace) -> CustomConfig:
    """The config of custom/`name` from parsed arguments.

    Raises:
      UserError: a word is not `role=column`, or see `CustomConfig`.
    """
    return CustomConfig(
        name=name,
        files=tuple(options.files),
        columns=pairs("--columns", options.columns),
        items=tuple(options.items),
        item_columns=pairs("--item_columns", options.item_columns),
        category_separator=options.category_separator,
        timestamp_unit=options.timestamp_unit,
    )


def pairs(argument: str, words: list[str]) -> dict[str, str]:
    """The pairs of words "role=column".

    Raises:
      UserError: a word is no such pair, or a role is given twice.
    """
    pairs: dict[str, str] = {}
    for word in words:
        role, _, column = word.partition("=")
        if not column:
            raise UserError(f"{argument} {word}: expected role=column, as in user=userId.")
        if role in pairs:
            raise UserError(f"{argument} {word}: {role} is given twice.")
        pairs[role] = column
    return pairs
