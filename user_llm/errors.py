"""What a user can mend: a wrong file, value or command. And how every command of ours shows an error."""

import errno
import logging
import os
import shutil
import sys

_FULL = (errno.ENOSPC, errno.EDQUOT)

_logger = logging.getLogger(__name__)


class UserError(ValueError):
    """Says in one line what is wrong, what was expected and what to do; commands print it without a trace.

    Attributes:
      status: the exit status of a command that ends with it.
    """

    status = 1


class CheckpointError(UserError):
    """Files that are no checkpoint of a model we can hold; the message names the file and key."""


class MissingFile(UserError, FileNotFoundError):
    """A file or folder is not there."""


class Unreachable(UserError, ConnectionError):
    """Something cannot be fetched."""


def show(error: Exception, *, status: int | None = None, doing: str = "") -> int:
    """Prints `error` in one line where a user can mend it, and returns the exit status; raises it again where not.

    That is a `UserError`, an OSError that names its file, a full disk, or too little memory. All else, a ValueError of
    a library included, is a bug (ours, mostly), of which only the traceback says anything.

    Args:
      error: what a command has caught.
      status: the command's exit status for it, in place of the error's own.
      doing: what could not be done, as "movielens/1m was not built".
    """
    advice = _advice(error)
    if not (isinstance(error, UserError) or advice or (isinstance(error, OSError) and error.filename is not None)):
        raise error
    _logger.debug("Where it happened:", exc_info=error)
    print(f"error: {doing + ': ' if doing else ''}{error}{advice}", file=sys.stderr)
    return getattr(error, "status", 1) if status is None else status


def _advice(error: Exception) -> str:
    """What helps against an error that comes from the machine; "" for others."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return f": {_room(error)}, and start the same command again: it goes on"
    of_jax = type(error).__name__ == "JaxRuntimeError" and str(error).startswith("RESOURCE_EXHAUSTED")  # not imported
    if isinstance(error, MemoryError) or of_jax:
        return ": there is too little memory; lower the batch size, or the sizes of the model"
    return ""


def _room(error: OSError) -> str:
    path = os.path.abspath(error.filename or os.curdir)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    usage = shutil.disk_usage(path)
    return f"{usage.free / 1e6:,.1f} of {usage.total / 1e6:,.0f} MB are free there; make room (old runs' checkpoints)"
