"""The config behind a run's overrides, as `user_llm.main` would have it, and a hash that names it."""

import ast
import functools
import hashlib
import json
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from user_llm.command_line import check_overrides, load
from user_llm.config import ConfigError

# Where things lie on a machine: they change no number.
PLACES = ("data.raw_path", "data.data_dir")

Overrides = Sequence[tuple[str, object]]

_HASH_DIGITS = 8
_PARSERS = {
    bool: flags.BooleanParser().parse,
    int: flags.IntegerParser().parse,
    float: flags.FloatParser().parse,
    str: str,
    tuple: ast.literal_eval,
}


def resolve(file: str, overrides: Overrides) -> ConfigDict:
    """The locked config of a file (with what follows its colon) and (key, value) overrides.

    Raises:
      ConfigError: no such file.
      KeyError, TypeError: no such key, or a value of another type.
    """
    config = load(file)
    config.update_from_flattened_dict(dict(overrides))
    return config


def parse_setting(setting: str, file: str) -> tuple[str, object]:
    """(key, value) of `key=value`, a setting of the config in `file`.

    Raises:
      ConfigError: not of that form, no such key (with the nearest one), or a value of another type.
    """
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {setting}: expected key=value, as in training.user_llm.steps=600")
    check_overrides(["", f"--config={file}", f"--config.{setting}"])
    kind = type(config_path.get_value(key, load(file)))
    try:
        return key, _PARSERS[kind](text)
    except (ValueError, SyntaxError) as error:
        raise ConfigError(f"--set {setting}: expected a {kind.__name__}") from error


@functools.lru_cache(maxsize=4096)
def config_hash(file: str, overrides: tuple[tuple[str, object], ...]) -> str:
    """Hex digits that name the resolved config."""
    config = resolve(file, overrides)
    text = json.dumps(json.loads(config.to_json_best_effort()), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]
