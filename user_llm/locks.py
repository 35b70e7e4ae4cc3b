"""A folder has one owner at a time: a lock of the kernel, which ends with its process, and who holds it in words."""

import contextlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from user_llm.errors import UserError

LOCK, OWNER = ".lock", ".owner.json"
"""The locked file, and beside it `{"host", "pid"}` of the process that holds the lock, or held it last."""

BUSY = 75
"""Exit status of a command that another process keeps from starting: EX_TEMPFAIL of sysexits.h, "try again later"."""

_PARTIAL = re.compile(r"\.\d+\.partial$")  # of `files.replacing`


class Busy(UserError):
    """Another process works in this folder."""

    status = BUSY


@contextlib.contextmanager
def owned(folder: str | os.PathLike[str], *, wait: bool = False) -> Iterator[None]:
    """Makes this process the owner of a folder, which is made where it is not there, until the block ends.

    The lock files stay: to delete a lock that others may wait for would give it to two of them.

    Args:
      folder: on a file system with `flock` (all local ones, NFS 4, Lustre with `-o flock`).
      wait: whether to wait for the owner to end instead of raising.

    Raises:
      Busy: another process owns it, and which.
      UserError: it is no folder, cannot be written to, or its file system has no locks.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: expected a folder, or the name of a new one")
    lock = FileLock(folder / LOCK, timeout=-1 if wait else 0, fallback_to_soft=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise Busy(f"{folder} is in use by {owner_of(folder)}: wait for it to end, or stop it") from None
    except NotImplementedError as error:
        raise UserError(f"{folder}: its file system has no locks ({error}); name a folder on another one") from error
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}): name another folder") from error
    try:
        (folder / OWNER).write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}) + "\n")
        yield
    finally:
        lock.release()


def owner_of(folder: str | os.PathLike[str]) -> str:
    """Who holds the lock of a folder, or held it last, as "process 123 on host"."""
    try:
        owner = json.loads((Path(folder) / OWNER).read_text())
        return f"process {owner['pid']} on {owner['host']}"
    except (OSError, ValueError, TypeError, KeyError):  # not written yet, or by no program of ours
        return "another process"


def clear_partial(folder: str | os.PathLike[str]) -> None:
    """Deletes what killed processes have left half written (`files.replacing`); for the owner of the folder alone."""
    for path in Path(folder).rglob("*.partial"):
        if _PARTIAL.search(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
