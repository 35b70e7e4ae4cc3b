"""What a run borrows: language models, tokenizers, adapters, another run's encoder, known by what their files hold."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from tfds_builders.checksums import checksums
from user_llm.checkpoints import huggingface
from user_llm.checkpoints.damage import SUMS
from user_llm.errors import UserError
from user_llm.experiment.workdir import BORROWED, CATALOGUE

_SUFFIXES = (".json", ".safetensors", ".model")  # of the files that loading may read


def contents(config: ConfigDict, keys: Iterable[str] = BORROWED) -> dict[str, dict[str, Any]]:
    """Config key (of `keys`, where it names anything) → name → checksum, of the files that lie where the config says.

    Raises:
      UserError: nothing lies there.
    """
    return {key: _contents(key, value) for key in keys if (value := config_path.get_value(key, config))}


def _contents(key: str, value: str) -> dict[str, Any]:
    if key == "encoder.checkpoint":
        folder = Path(value)
        return checksums(folder, [CATALOGUE, *(f"encoder/{SUMS}/{path.name}" for path in _json(folder))])
    path = huggingface.resolve(value) if key == "llm.checkpoint" else Path(value)
    if path.is_file():  # a vocabulary or an architecture: its name tells nothing
        return {"": checksums(path.parent, [path.name])[path.name]}
    if not path.is_dir():
        raise UserError(
            f"config.{key}={value}: no such file or folder; if it was moved, start the run with its new place"
        )
    return checksums(path, [file.name for file in path.iterdir() if file.suffix in _SUFFIXES and file.is_file()])


def _json(folder: Path) -> list[Path]:
    return sorted((folder / "encoder" / SUMS).glob("*.json"))
