"""Paths that a user names: of this machine, not addresses elsewhere."""

import os
import re
from pathlib import Path

from user_llm.errors import UserError

_ADDRESS = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+):/", re.IGNORECASE)


def local_path(path: str | os.PathLike[str], name: str) -> Path:
    """`path` as it is: a folder or file, there or not.

    Args:
      path: what the user has given.
      name: of what it was given for, as "--workdir".

    Raises:
      UserError: it is an address, as gs://bucket/folder, which would become a folder of that name.
    """
    if address := _ADDRESS.match(os.fspath(path)):
        raise UserError(
            f"{name}={path}: {address['scheme']}:// is an address, and files are read and written on this machine: "
            "mount the bucket (gcsfuse, s3fs, …) or fetch what is there, and name the folder"
        )
    return Path(path)
