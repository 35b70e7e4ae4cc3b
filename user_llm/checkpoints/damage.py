"""Checkpoints that are no longer what was written: found by their checksums, and put out of the way."""

import contextlib
import logging
import shutil
from pathlib import Path

from user_llm.checksums import changed, checksums, read_signed, write_signed
from user_llm.errors import UserError

STEPS, SUMS, DAMAGED = "checkpoints", "checksums", "damaged"
"""Folders of a stage: a folder a step, the checksums of a step's files as `STEP.json`, steps that were put aside."""

DELETED = "deleted"
"""Folder in `STEPS`, where Orbax moves what it keeps no longer: a kill while that is deleted leaves no half a step."""

_logger = logging.getLogger(__name__)


def keep_checksums(folder: Path) -> None:
    """Keeps the checksums of each complete step that has none yet, and forgets those of steps that are gone."""
    steps = complete_steps(folder)
    for step in steps:
        if not (path := _sums(folder, step)).exists():
            with contextlib.suppress(FileNotFoundError):  # Orbax deletes old steps while this reads
                write_signed(path, {"files": checksums(folder / STEPS / str(step))})
    for path in (folder / SUMS).glob("*.json"):
        if path.stem.isdecimal() and int(path.stem) not in steps:
            path.unlink(missing_ok=True)


def clear_deleted(folder: Path) -> None:
    """Deletes what Orbax has moved away. The folder stays: it may be moving more into it."""
    for path in (folder / STEPS / DELETED).glob("*"):
        shutil.rmtree(path, ignore_errors=True)


def complete_steps(folder: Path) -> list[int]:
    """The steps that Orbax has finished writing, in order: it names them so in the end."""
    paths = (folder / STEPS).glob("*") if (folder / STEPS).is_dir() else ()
    return sorted(int(path.name) for path in paths if path.name.isdecimal())


def damage(folder: Path, step: int, item: str = "") -> str | None:
    """What of a step, or of one of its items, has changed; None where nothing has, or where it has no checksums."""
    if not (path := _sums(folder, step)).exists():
        return None
    sums = read_signed(path, "delete it; the checkpoint is then read as it is")["files"]
    files = {name: one for name, one in sums.items() if name.startswith(item)}
    return next(changed(folder / STEPS / str(step), files), None)


def put_aside_damaged(folder: Path, last: int) -> None:
    """Leaves a stage with intact checkpoints alone: damaged ones that are newer than all intact go to `DAMAGED`.

    Args:
      folder: of the stage.
      last: its number of steps.

    Raises:
      UserError: there is no way back to the same result, or there is a step beyond the last.
    """
    steps = complete_steps(folder)
    if steps and steps[-1] > last:
        raise UserError(f"{folder / STEPS / str(steps[-1])} is no step of this run, which ends at {last}: delete it")
    broken = {step: line for step in steps if (line := damage(folder, step))}
    intact = [step for step in steps if step not in broken]
    for step, line in broken.items():
        if not intact or step < max(intact):  # an older one that is kept is the best, for which there is no other
            raise UserError(f"{line}: delete {folder}, and the same command trains this stage anew")
    for step, line in broken.items():
        aside = folder / DAMAGED / str(step)
        aside.parent.mkdir(exist_ok=True)
        (folder / STEPS / str(step)).rename(aside)
        _logger.warning("%s: this checkpoint is now %s; step %d is intact", line, aside, max(intact))


def refuse_damaged(folder: Path, step: int, item: str = "") -> None:
    """Raises `UserError` where a step, or one of its items, is not what was written, and says which step is."""
    if line := damage(folder, step, item):
        intact = [str(other) for other in complete_steps(folder) if other != step and not damage(folder, other)]
        ways = f": step {' and '.join(intact)} of it is intact, and the run's command goes on there" if intact else ""
        raise UserError(f"{line}{ways or ': put it back from a copy, or train anew'}")


def _sums(folder: Path, step: int) -> Path:
    return folder / SUMS / f"{step}.json"
