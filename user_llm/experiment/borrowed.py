"""What a run borrows: language models, tokenizers, adapters, another run's encoder, known by what their files hold."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from user_llm.checkpoints import adapters, huggingface
from user_llm.checkpoints.damage import SUMS
from user_llm.checksums import checksums
from user_llm.data import vocabularies
from user_llm.errors import UserError
from user_llm.experiment.workdir import BORROWED, CATALOGUE


def contents(config: ConfigDict, keys: Iterable[str] = BORROWED) -> dict[str, dict[str, Any]]:
    """Config key (of `keys`, where it names anything) → name → checksum, of the files that lie where the config says.

    Raises:
      UserError: nothing lies there.
    """
    return {key: _contents(key, value) for key in keys if (value := config_path.get_value(key, config))}


def _contents(key: str, value: str) -> dict[str, Any]:
    try:
        return _READERS[key](value)
    except UserError as error:
        moved = "" if Path(value).exists() else " If it was moved, start the run's command with its new place."
        raise UserError(f"config.{key}: {error}{moved}") from error


def _encoder(workdir: str) -> dict[str, Any]:
    folder = Path(workdir)
    read = [*sorted((folder / CATALOGUE).iterdir()), *sorted((folder / "encoder" / SUMS).glob("*.json"))]
    return checksums(folder, [path.relative_to(folder).as_posix() for path in read])


def _language_model(name: str) -> dict[str, Any]:
    return huggingface.content(name) | vocabularies.content(huggingface.resolve(name))


_READERS = {
    "llm.checkpoint": _language_model,
    "llm.vocabulary": vocabularies.content,
    "llm.architecture": huggingface.content,
    "lora.checkpoint": adapters.content,
    "encoder.checkpoint": _encoder,
    "evaluation.second_encoder": _encoder,
}
