"""Pieces of SQL from names and text of a user's."""

CONTROL_CHARACTERS = r"[\x00-\x08\x0B\x0C\x0E-\x1F\x7F]"
"""Those that no text of a person holds; a tab and the ends of lines are none of them."""


def literal(text: str) -> str:
    """SQL for a piece of text."""
    return "'" + text.replace("'", "''") + "'"


def identifier(column: str) -> str:
    """SQL for the name of a column."""
    return '"' + column.replace('"', '""') + '"'


def has_control(column: str) -> str:
    """SQL for whether a column of text holds a control character; null where the text is."""
    return f"regexp_matches({column}, '{CONTROL_CHARACTERS}')"
