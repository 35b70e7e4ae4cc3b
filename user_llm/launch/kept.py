"""The files that a sweep and its runs keep in its folder, read back."""

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from user_llm.config import ConfigError

Kept = TypeVar("Kept")
Place = Path | zipfile.Path
"""A file or folder, or one of a zip file."""


def kept(path: Place, read: Callable[[str], Kept], helps: str) -> Kept | None:
    """What `read` makes of a file's text; None where there is no file.

    Args:
      read: may raise what Python raises over text or values of another form.
      helps: what a user does about a damaged file.

    Raises:
      ConfigError: the file is not as it was written.
    """
    if not path.is_file():
        return None
    try:
        return read(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError, LookupError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"{path} is damaged ({type(error).__name__}: {error}): {helps}") from error
