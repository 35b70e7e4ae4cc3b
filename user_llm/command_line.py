"""The command line of an experiment: a wrong flag, file, key or type is answered in one line, not a stack trace.

Use it as `absl.app.run(main, flags_parser=functools.partial(flags_parser, validate=validate))`.
"""

import importlib.machinery
import importlib.util
import inspect
import itertools
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from absl import flags
from ml_collections import ConfigDict

from user_llm.config import ConfigError, refuse
from user_llm.errors import UserError, show
from user_llm.keys import DEFAULTS, parsed, wrong_key, wrong_keys
from user_llm.shipped import config_file, config_names

_FLAG = re.compile(r"--?(?P<name>[\w-]+)(\.(?P<key>[^=]*))?(=(?P<value>.*))?", re.DOTALL)
_MODULE = "config_config"  # as ml_collections calls it: what a file registers is the same, whoever reads the file


def flags_parser(argv: Sequence[str], validate: Callable[[ConfigDict], None]) -> list[str]:
    """Parses `argv` (program name first) into `absl.flags.FLAGS`, and validates its flag `config`.

    Args:
      validate: `experiment.validation.validate`, which brings JAX; XManager's launcher, without it, only loads configs.

    Returns the program name. What a user can mend is printed as `error: …` and ends the program with status 2.
    """
    try:
        rest = _parsed_flags(argv)
        if len(rest) > 1:
            raise ConfigError(f"unexpected argument {rest[1]!r}: every argument is a flag, --name=value")
        if flags.FLAGS.config is None:
            raise ConfigError("name an experiment: --config=simulated, say; --help lists the flags")
        validate(flags.FLAGS.config)
    except Exception as error:
        sys.exit(show(error, status=2))
    return rest


def check_overrides(argv: Sequence[str]) -> None:
    """Raises `ConfigError` for a config file that cannot be read, for a second one, and for the first
    `--config.key=value` whose key is not in the schema, or whose value is of another type than the key's default.
    """
    named = False
    arguments = list(itertools.takewhile(lambda argument: argument != "--", argv[1:]))
    for argument, following in itertools.zip_longest(arguments, arguments[1:]):
        flag = _FLAG.fullmatch(argument)
        if flag is None:
            continue
        value = following if flag["value"] is None else flag["value"]
        if flag["key"] is None:
            if flag["name"] == "config":
                if named:
                    raise ConfigError(f"--config={value} is the second config: name one, and override its keys")
                load(value or "")
                named = True
        elif flag["name"] not in ("config", "noconfig"):
            raise ConfigError(f"{argument}: unknown flag; did you mean --config.{flag['key']}?")
        elif not named:
            raise ConfigError(f"{argument} stands before --config=FILE: name the file, then change its keys")
        elif not (isinstance(DEFAULTS.get(flag["key"]), bool) and flag["value"] is None):
            refuse(wrong_key(flag["key"], None if value is None else parsed(flag["key"], value)))


def load(path: str) -> ConfigDict:
    """The locked config that a Python file makes with `get_config`, which gets what follows a `:` in `path`.

    Args:
      path: of the file, or the name of a config that comes with the package (`shipped`).

    Raises:
      ConfigError: there is no such file, it ends with an error (its line and the reason), or what it makes is no
        config, or none of the schema.
    """
    found = config_file(path)
    name, *argument = found.split(":", 1)
    file = Path(name)
    if file.suffix != ".py" or not file.is_file():
        there = config_names() if found != path else sorted(str(other) for other in file.parent.glob("*.py"))
        raise ConfigError(f"--config={path}: no such config file; there is {', '.join(there) or 'none there'}")
    try:
        config = _made(file, argument)
    except UserError as error:
        raise ConfigError(f"--config={path}: {error}") from error
    except (Exception, SystemExit) as error:  # of the user's own code
        raise ConfigError(f"--config={path}: {_reason(error, file)}") from error
    if not isinstance(config, ConfigDict):
        made = "nothing" if config is None else f"a {type(config).__name__}"
        raise ConfigError(
            f"--config={path}: get_config returns {made}, expected a ConfigDict: start with that of user_llm.schema"
        )
    refuse(wrong_keys(config), f"--config={path}: ")
    return config.lock()


def _parsed_flags(argv: Sequence[str]) -> list[str]:
    try:
        expanded = flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
        check_overrides(expanded)
        return flags.FLAGS(_with_files(expanded))
    except flags.Error as error:
        raise ConfigError(str(error)) from error


def _with_files(argv: Sequence[str]) -> list[str]:
    """`argv` with a config of the package, where one is named, as its file, which ml_collections reads."""
    words, value_follows = [], False
    for word in argv:
        flag = _FLAG.fullmatch(word)
        if value_follows:
            word = config_file(word)
        elif flag and flag["name"] == "config" and flag["key"] is None and flag["value"] is not None:
            word = f"--config={config_file(flag['value'])}"
        value_follows = word in ("--config", "-config")
        words.append(word)
    return words


def _made(file: Path, argument: Sequence[str]) -> object:
    """What the file's `get_config` returns."""
    loader = importlib.machinery.SourceFileLoader(_MODULE, str(file))
    spec = cast(importlib.machinery.ModuleSpec, importlib.util.spec_from_loader(_MODULE, loader))
    module = sys.modules[_MODULE] = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    if not callable(get_config := getattr(module, "get_config", None)):
        raise ConfigError("it has no function get_config: expected one that returns a ConfigDict, as in configs/")
    try:
        inspect.signature(get_config).bind(*argument)
    except TypeError as error:
        takes = "takes nothing behind a colon; override keys instead" if argument else "needs something behind a colon"
        raise ConfigError(f"{file} {takes}") from error
    return get_config(*argument)


def _reason(error: BaseException, file: Path) -> str:
    """Where in the file it happened, and what."""
    if isinstance(error, SyntaxError):
        where, line, what = error.filename, error.lineno, error.msg
    else:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        where, line, what = None, lines[-1] if lines else None, " ".join(str(error).split())
    elsewhere = where if where not in (None, str(file)) else ""
    place = [elsewhere, f"line {line}" if line else ""]
    return ": ".join(filter(None, [", ".join(filter(None, place)), type(error).__name__, what]))
