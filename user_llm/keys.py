"""The keys of a config, held against the schema's: which are unknown or missing, and which hold another type.

Whatever a config comes from (a file, flags, a launcher's settings, a workdir's `config.json`), the answer is the same.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import tuple_parser

from user_llm import schema

# Type of a key's default → its name in words, what values may be (JSON has no tuples), and how text becomes one.
_KINDS = {
    bool: ("true or false", (bool,), flags.BooleanParser()),
    int: ("a whole number", (int,), flags.IntegerParser()),
    float: ("a number", (float, int), flags.FloatParser()),
    str: ("text", (str,), flags.ArgumentParser()),
    tuple: ("a tuple", (tuple, list), tuple_parser.TupleParser()),
}


def flatten(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of all that a config holds."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


DEFAULTS = dict(flatten(schema.get_config()))
"""Dotted key → its default: all keys that there are."""


def as_flag(key: str, value: object) -> str:
    """How `key` is given `value` on the command line."""
    return f"--config.{key}={str(value).lower() if isinstance(value, bool) else value}"


def parsed(key: str, text: str) -> object:
    """`text` as a value of the key's type; the text itself where it is none, which `wrong_key` then answers."""
    if key not in DEFAULTS:
        return text
    try:
        return _KINDS[type(DEFAULTS[key])][2].parse(text)
    except ValueError:
        return text


def completed(values: Mapping) -> tuple[ConfigDict, list[str]]:
    """A config of these nested values, with the default of each key that they lack, and which keys those are."""
    config = ConfigDict(_over(schema.get_config().to_dict(), values))
    given = dict(flatten(ConfigDict(values)))
    return config, [key for key, _ in flatten(config) if key not in given]


def _over(defaults: Mapping, values: Mapping) -> dict[str, object]:
    both = {key for key in values if isinstance(values[key], Mapping) and isinstance(defaults.get(key), Mapping)}
    return {**defaults, **values, **{key: _over(defaults[key], values[key]) for key in both}}


def wrong_keys(config: ConfigDict) -> Iterator[str]:
    """A line for each key that the schema does not have or that is missing, and each value of another type."""
    values = dict(flatten(config))
    for key, value in values.items():
        yield from wrong_key(key, value)
    missing = [key for key in DEFAULTS if key not in values and not any(key.startswith(f"{one}.") for one in values)]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        yield f"it lacks {', '.join(missing[:3])}{more}: start with that of user_llm.schema, and change its keys"


def wrong_key(key: str, value: object) -> Iterator[str]:
    """A line where the schema has no such key, or where its values are of another type."""
    if key not in DEFAULTS:
        yield f"config.{key}: {_instead_of(key)}"
        return
    words, types, _ = _KINDS[type(DEFAULTS[key])]
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        yield f"config.{key}={value!r}: expected {words}, as in {as_flag(key, DEFAULTS[key])}"


def nearest_keys(key: str, keys: Sequence[str]) -> list[str]:
    """The dotted `keys` that someone who wrote `key` may have meant: at most three, nearest first."""
    last = {other: other.rsplit(".", 1)[-1] for other in keys}
    names = difflib.get_close_matches(key.rsplit(".", 1)[-1], set(last.values()), n=1, cutoff=0.7)
    alike = [other for other in keys if last[other] in names]
    near = difflib.get_close_matches(key, alike, n=3, cutoff=0.8) if "." in key else []
    return near or alike[:3] or difflib.get_close_matches(key, keys, n=1)


def _instead_of(key: str) -> str:
    inside = [other for other in DEFAULTS if other.startswith(f"{key}.")]
    if inside:
        return f"it is a group of keys; set one of them, as in {as_flag(inside[0], DEFAULTS[inside[0]])}"
    if near := nearest_keys(key, list(DEFAULTS)):
        return f"no such key; did you mean {' or '.join(f'config.{other}' for other in near)}?"
    return f"no such key; there is {', '.join(sorted({other.split('.')[0] for other in DEFAULTS}))}"
