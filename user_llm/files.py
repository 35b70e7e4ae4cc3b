"""Files and folders that are whole or not there: what a killed process leaves half written never has the real name."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from user_llm.errors import UserError


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a path to write to, which takes the place of `path` in one step when the block ends without an error.

    It may become a folder, where `path` is not there yet.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)


def full_disk(folder: str | os.PathLike[str], number: int = errno.ENOSPC, needed: str = "") -> OSError:
    """The error of a full disk (or quota: `number`) that names `folder`, and what there is no room for."""
    return OSError(number, os.strerror(number) + needed, str(folder))


@contextlib.contextmanager
def naming_full_disk(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Makes an OSError that names `folder` of whatever a library raises when the disk it writes to is full.

    TensorStore (RESOURCE_EXHAUSTED, which means a full device memory too) and TensorFlow only say it in words.
    """
    try:
        yield
    except Exception as error:
        for number in (errno.ENOSPC, errno.EDQUOT):
            if os.strerror(number) in str(error):
                raise full_disk(folder, number) from error
        raise


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a JSON file that people can read, in one step."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike[str], advice: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      UserError: it holds anything else; `advice` says what helps, as "delete it".
      OSError: it cannot be read.
    """
    try:
        value = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or brackets without end
        raise UserError(f"{path} is damaged ({error}): {advice}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged (it holds a {type(value).__name__}, not an object): {advice}")
    return value
