"""The command line of an experiment: a wrong flag, key or type is answered in one line, not a stack trace.

Use it as `absl.app.run(main, flags_parser=functools.partial(flags_parser, validate=validate))`.
"""

import difflib
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from user_llm.config import ConfigError, as_flag

_FLAG = re.compile(r"--?(?P<name>[\w-]+)(\.(?P<key>[^=]*))?(=(?P<value>.*))?", re.DOTALL)
_EXPECTED = {bool: "true or false", int: "a whole number", float: "a number"}
_PARSERS = {bool: flags.BooleanParser(), int: flags.IntegerParser(), float: flags.FloatParser()}


def flags_parser(argv: Sequence[str], validate: Callable[[ConfigDict], None]) -> list[str]:
    """Parses `argv` (program name first) into `absl.flags.FLAGS`, and validates its flag `config`.

    Args:
      validate: `experiment.validation.validate`. Launchers, which have no JAX, only load configs.

    Returns the program name. Anything wrong is printed as `error: …` and ends the program with status 2.
    """
    try:
        check_overrides(argv)
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise ConfigError(f"unexpected argument {rest[1]!r}: every argument is a flag, --name=value")
        if flags.FLAGS.config is None:
            raise ConfigError("name an experiment: --config=configs/simulated.py, say; --help lists the flags")
        validate(flags.FLAGS.config)
    except (ConfigError, flags.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    return rest


def check_overrides(argv: Sequence[str]) -> None:
    """Raises `ConfigError` for a config file that is not there, and for the first `--config.key=value` whose
    key is not in the config, or whose value is of another type than the key's default.
    """
    config = None
    arguments = list(itertools.takewhile(lambda argument: argument != "--", argv[1:]))
    for argument, following in itertools.zip_longest(arguments, arguments[1:]):
        flag = _FLAG.fullmatch(argument)
        if flag is None:
            continue
        value = following if flag["value"] is None else flag["value"]
        if flag["key"] is None:
            if flag["name"] == "config":
                config = load(value or "")
        elif flag["name"] not in ("config", "noconfig"):
            raise ConfigError(f"{argument}: unknown flag; did you mean --config.{flag['key']}?")
        elif config is None:
            raise ConfigError(f"{argument} stands before --config=FILE: name the file, then change its keys")
        elif not (isinstance(_default(config, flag["key"]), bool) and flag["value"] is None):
            _check_value(flag["key"], _default(config, flag["key"]), value)


def load(path: str) -> ConfigDict:
    """The config that a Python file makes with `get_config`, which gets what follows a `:` in `path`."""
    file = Path(path.split(":", 1)[0])
    if file.suffix != ".py" or not file.is_file():
        beside = ", ".join(sorted(str(other) for other in file.parent.glob("*.py"))) or "none there"
        raise ConfigError(f"--config={path}: no such config file; there is {beside}")
    try:
        return config_flags.ConfigFileFlagParser("config").parse(path)
    except ModuleNotFoundError as error:
        if error.name != "configs":
            raise
        raise ConfigError(f"--config={path}: configs import `configs.base`; run from the root of the clone") from error
    except TypeError as error:
        if ":" not in path:
            raise
        raise ConfigError(f"--config={path}: {file} takes nothing behind a colon; override keys instead") from error
    except ValueError as error:  # a config's own answer to what stands behind the colon
        raise ConfigError(f"--config={path}: {error}") from error


def nearest_keys(key: str, keys: Sequence[str]) -> list[str]:
    """The dotted `keys` that someone who wrote `key` may have meant: at most three, nearest first."""
    last = {other: other.rsplit(".", 1)[-1] for other in keys}
    names = difflib.get_close_matches(key.rsplit(".", 1)[-1], set(last.values()), n=1, cutoff=0.7)
    alike = [other for other in keys if last[other] in names]
    near = difflib.get_close_matches(key, alike, n=3, cutoff=0.8) if "." in key else []
    return near or alike[:3] or difflib.get_close_matches(key, keys, n=1)


def _default(config: ConfigDict, key: str) -> object:
    values = dict(_flatten(config))
    if key in values:
        return values[key]
    inside = [other for other in values if other.startswith(f"{key}.")]
    if inside:
        example = as_flag(inside[0], values[inside[0]])
        raise ConfigError(f"--config.{key} is a group of keys: set one of them, as in {example}")
    near = " or ".join(f"--config.{other}" for other in nearest_keys(key, list(values)))
    hint = f"did you mean {near}?" if near else f"there is {', '.join(sorted(config))}"
    raise ConfigError(f"--config.{key}: no such key; {hint}")


def _check_value(key: str, default: object, value: str | None) -> None:
    kind = type(default)
    try:
        if value is None:
            raise ValueError("no value")
        if kind in _PARSERS:
            _PARSERS[kind].parse(value)
    except ValueError:
        given = "" if value is None else f"={value}"
        expected = f"expected {_EXPECTED.get(kind, 'a value')}, as in {as_flag(key, default)}"
        raise ConfigError(f"--config.{key}{given}: {expected}") from None


def _flatten(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
