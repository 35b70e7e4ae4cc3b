"""The config behind a run's overrides, as `user_llm.main` would have it, and a hash that names it."""

import functools
import hashlib
import json
from collections.abc import Sequence

from ml_collections import ConfigDict

from user_llm.command_line import load
from user_llm.config import ConfigError, refuse
from user_llm.keys import parsed, wrong_key

# Where things lie on a machine: they change no number.
PLACES = ("data.raw_path", "data.data_dir")

Overrides = Sequence[tuple[str, object]]

_HASH_DIGITS = 8


def resolve(file: str, overrides: Overrides) -> ConfigDict:
    """The locked config of a file (with what follows its colon) and (key, value) overrides.

    Raises:
      ConfigError: no such file.
      KeyError, TypeError: no such key, or a value of another type.
    """
    config = load(file)
    config.update_from_flattened_dict(dict(overrides))
    return config


def parse_setting(setting: str) -> tuple[str, object]:
    """(key, value) of `key=value`, a setting of every run.

    Raises:
      ConfigError: not of that form, no such key (with the nearest one), or a value of another type.
    """
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {setting}: expected key=value, as in training.user_llm.steps=600")
    value = parsed(key, text)
    refuse(wrong_key(key, value), f"--set {setting}: ")
    return key, value


@functools.lru_cache(maxsize=4096)
def config_hash(file: str, overrides: tuple[tuple[str, object], ...]) -> str:
    """Hex digits that name the resolved config."""
    config = resolve(file, overrides)
    text = json.dumps(json.loads(config.to_json_best_effort()), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]
