"""What people write beside a sweep: `notes.md`, a heading a table, as `## Table 5`, and why it came out so."""

import re
from collections.abc import Collection
from pathlib import Path

from user_llm.config import ConfigError
from user_llm.launch.report.names import table_name

NOTES = "notes.md"


def read_notes(out: Path, tables: Collection[str]) -> dict[str, str]:
    """Table → what is written of it, Markdown; nothing where the folder `out` has no such file.

    Raises:
      ConfigError: a heading names none of `tables`, or one twice; text stands before the first.
    """
    path = out / NOTES
    if not path.is_file():
        return {}
    known = {table_name(table): table for table in tables}
    before, *parts = re.split(r"^##[ \t]+(.+?)[ \t]*$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    expected = f"expected headings as `## {next(iter(known))}`, of {', '.join(known)}"
    if before.strip():
        raise ConfigError(f"{path}: text stands before the first heading; {expected}")
    notes: dict[str, str] = {}
    for heading, text in zip(parts[::2], parts[1::2], strict=True):
        if heading not in known or known[heading] in notes:
            what = "stands there twice" if heading in known else "is no table of this scale"
            raise ConfigError(f"{path}: `## {heading}` {what}; {expected}")
        notes[known[heading]] = text.strip()
    return notes
