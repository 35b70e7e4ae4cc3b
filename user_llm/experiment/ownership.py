"""A workdir has one run, and one owner at a time; a folder of anybody else's is left as it is."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from user_llm.errors import UserError
from user_llm.experiment.seal import SEAL, check_kept, check_made
from user_llm.experiment.workdir import (
    ANEW,
    CATALOGUE,
    CONFIG,
    PREPARING,
    RESULTS,
    VOCABULARY,
    read_config,
    refuse_another,
)
from user_llm.locks import LOCK, OWNER, clear_partial, owned
from user_llm.parallel.processes import lead_says


def is_finished(workdir: Path, config: ConfigDict) -> bool:
    """Whether a workdir holds a finished run of `config`. All processes of a run must ask.

    Raises:
      UserError: it holds another run, a damaged one, or files of somebody else.
    """
    return lead_says(lambda: _is_finished(workdir, config))


@contextlib.contextmanager
def owning(workdir: Path, config: ConfigDict) -> Iterator[bool]:
    """Makes this run the owner of a workdir until the block ends, and clears what killed owners have left.

    Gives whether another process has finished the run meanwhile.

    Raises:
      Busy: another process owns it.
      UserError: as `is_finished`.
    """
    with contextlib.ExitStack() as stack:
        lead_says(lambda: stack.enter_context(owned(workdir)))
        yield lead_says(lambda: _begin(workdir, config))


def _is_finished(workdir: Path, config: ConfigDict) -> bool:
    if (workdir / CONFIG).exists():
        read_config(workdir)
        check_kept(workdir)
        refuse_another(workdir, config)
        return check_made(workdir)
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file: name a folder, or a new one")
    others = {path.name for path in workdir.iterdir()} - {LOCK, OWNER} if workdir.exists() else set()
    if others and PREPARING not in others:
        if {CATALOGUE, SEAL} <= others:
            raise UserError(f"{workdir} holds a run that has lost its {CONFIG}: {ANEW}")
        raise UserError(
            f"--workdir={workdir} holds files of somebody else ({', '.join(sorted(others)[:3])}) and no run: "
            "name a new folder, or an empty one"
        )
    return False


def _begin(workdir: Path, config: ConfigDict) -> bool:
    if _is_finished(workdir, config):
        return True
    clear_partial(workdir)
    if (workdir / CONFIG).exists():
        (workdir / PREPARING).unlink(missing_ok=True)
    else:
        (workdir / PREPARING).touch()
        for name in (CATALOGUE, VOCABULARY):
            shutil.rmtree(workdir / name, ignore_errors=True)
        (workdir / SEAL).unlink(missing_ok=True)
    (workdir / RESULTS).unlink(missing_ok=True)
    return False
