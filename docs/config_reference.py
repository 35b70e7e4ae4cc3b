"""Writes `docs/config.md` from the comments of `user_llm/schema.py`: `python -m docs.config_reference`.

A key's comment stands at the end of its line; the comment of a group stands where the group opens. Which values are
allowed comes from `user_llm/config.py`. `tests/test_docs.py` holds the committed page to what this writes.
"""

import ast
import io
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from user_llm import config as rules

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = ROOT / "user_llm" / "schema.py"
PAGE = ROOT / "docs" / "config.md"
STAGE = "training.<stage>"
_WIDTH = 120
_NO_UPPER_BOUND = 2**31 - 1

HEAD = """\
# Config reference

<!-- Written by `python -m docs.config_reference` from the comments of user_llm/schema.py: edit those instead. -->

A config is a Python file with a function `get_config`. It starts with the schema's defaults and changes some of them:

```python
from user_llm import schema


def get_config():
    config = schema.get_config()
    config.data.dataset = "movielens/latest_small"
    return config
```

The command line changes a key of the named config: `--config.encoder.width=64`. A tuple is quoted for the shell:
`"--config.encoder.features=('item',)"`. An unknown key, a value of another type and a value that does not go with
another one end the command with status 2. The message names the key and what was expected.

Every key is listed with its default value. A run keeps the values of all keys in `config.json` of its workdir.
"""

SECTIONS = {
    "": ("The experiment", "These keys say what is run."),
    "data": ("Data", "Which dataset is read, and how a timeline becomes windows."),
    "prompt": ("Prompt", "How long the language model's texts are."),
    "encoder": ("Encoder", "The user encoder."),
    "llm": (
        "Language model",
        "A checkpoint or an architecture brings its own dimensions. Those here are for training from scratch.",
    ),
    "integration": ("Integration", "How the language model reads the user embeddings."),
    "strategy": ("Strategy", ""),
    "lora": ("LoRA", "These keys are read under `strategy=lora`."),
    "compute": ("Compute", "Numbers on the devices, and how the devices are used."),
    "training": (
        "Training",
        "For `<stage>` write `llm`, `encoder` or `user_llm`, as in `--config.training.encoder.steps=2000`.",
    ),
    "evaluation": ("Evaluation", "How test users are ranked and measured."),
}


class Entry(NamedTuple):
    """A key, or a group of keys, of the schema: its default in the words of the source, and its comment."""

    key: str
    default: str
    comment: str


def entries(source: str) -> list[Entry]:
    """All that the schema's source declares, in its order; a group has no default."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    found = []
    for statement in functions["get_config"].body:
        target = ast.unparse(statement.targets[0]) if isinstance(statement, ast.Assign) else ""
        if target.startswith("config."):
            found += _entries(target.removeprefix("config."), statement.value, comments)
    changed = {entry.key: entry.default for entry in found if entry.key.startswith("training.")}
    found = [entry for entry in found if entry.key != "training" and entry.key not in changed]
    (declared,) = (node.value for node in functions["training"].body if isinstance(node, ast.Assign))
    for entry in _entries(STAGE, declared, comments):
        name = entry.key.rpartition(".")[2]
        others = [
            f"`{key.split('.')[1]}` {value}"
            for key, value in changed.items()
            if key.split(".")[2:] == [name] and value != entry.default
        ]
        found.append(entry._replace(default=", ".join([entry.default, *others])))
    return found


def _entries(key: str, value: ast.expr, comments: dict[int, str]) -> Iterator[Entry]:
    if not isinstance(value, ast.Call):
        yield Entry(key, f"`{ast.unparse(value)}`", comments.get(value.end_lineno, ""))
        return
    if isinstance(value.func, ast.Name) and value.func.id == "ConfigDict" and key != STAGE:
        yield Entry(key, "", comments.get(value.lineno, "") if value.lineno != value.end_lineno else "")
    for argument in value.args:
        yield from _entries(key, argument, comments) if isinstance(argument, ast.Call) else ()
    for keyword in value.keywords:
        yield from _entries(f"{key}.{keyword.arg}", keyword.value, comments)


def allowed(key: str, comment: str) -> str:
    """The values that a key may have, in words, where a rule says so and the comment does not."""
    choices = rules.CHOICES.get(key, ())
    if not all(choice in comment for choice in choices):
        return " or ".join(f"`{choice!r}`" for choice in choices)
    low, high = rules.RANGES.get(key.replace("<stage>", "*"), (None, None))
    if low is None:
        return ""
    return f"at least {low}" if high >= _NO_UPPER_BOUND else f"from {low} to {high}"


def page() -> str:
    """The whole page."""
    lines, section = [HEAD], None
    for entry in entries(SCHEMA.read_text(encoding="utf-8")):
        first = entry.key.partition(".")[0]
        name = first if first in SECTIONS else ""
        if name != section:
            section = name
            title, about = SECTIONS[section]
            lines.append(f"## {title}\n" if lines == [HEAD] else f"\n## {title}\n")
            lines += [f"{_wrapped(about)}\n"] if about else []
        lines += filter(None, [_line(entry)])
    return "\n".join(lines) + "\n"


def _line(entry: Entry) -> str:
    comment = entry.comment.replace("<", r"\<")  # which would open a tag of HTML
    if not entry.default:
        return f"- `{entry.key}.…`: {comment}" if comment else ""
    values = allowed(entry.key, comment)
    facts = f"default {entry.default}" + (f"; {values}" if values else "")
    return _wrapped(f"- `{entry.key}` ({facts}): {comment}", "  ")


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
