"""The checksums of what a run has made and of what it borrows, kept in its workdir: nothing of it changes unnoticed.

Checkpoints have their own (`checkpoints/damage.py`); metrics are only for reading.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from user_llm.checksums import Checksum, changed, checksum, checksums, read_signed, write_signed
from user_llm.errors import UserError
from user_llm.experiment.workdir import (
    ANEW,
    CATALOGUE,
    CONFIG,
    PREDICTIONS,
    PREPARING,
    RESULTS,
    REWRITTEN,
    VOCABULARY,
    config_text,
)
from user_llm.files import replacing

SEAL = "checksums.json"
"""`{"files": {name: checksum}, "borrowed": {config key: {name: checksum}}}`."""

Contents = Mapping[str, Mapping[str, Checksum]]
"""Config key → the checksums of the files that loading what it names reads."""


def claim(workdir: Path, config: ConfigDict, borrowed: Contents) -> None:
    """Writes `config.json`, with which a workdir belongs to a run, behind the checksums of it and of what is there."""
    with replacing(workdir / CONFIG) as partial:
        partial.write_text(config_text(config), encoding="utf-8")
        made = _all_below(workdir, CATALOGUE, VOCABULARY)
        before = _read(workdir)["files"] if (workdir / SEAL).exists() else {}
        # What this start writes anew has no checksum until it is finished: a kill between the two changes nothing.
        before = {name: one for name, one in before.items() if name not in REWRITTEN}
        files = {**before, **checksums(workdir, made), CONFIG: checksum(partial)}
        write_signed(workdir / SEAL, {"files": files, "borrowed": borrowed})
    (workdir / PREPARING).unlink(missing_ok=True)


def seal(workdir: Path, *names: str) -> None:
    """Keeps the checksums of files, and of all in folders, that are finished."""
    kept = _read(workdir)
    kept["files"] |= checksums(workdir, _all_below(workdir, *names))
    write_signed(workdir / SEAL, kept)


def is_sealed(workdir: Path, name: str) -> bool:
    """Whether checksums of a file, or of anything in a folder, are kept."""
    return any(_is_below(other, name) for other in _read(workdir)["files"])


def check_kept(workdir: Path) -> None:
    """Raises `UserError` where what a run is made of (config, catalogue, vocabulary) is not what it was."""
    for name, one in _read(workdir)["files"].items():
        for line in changed(workdir, {name: one} if _is_kept(name) else {}):
            raise UserError(f"{line}: {ANEW}")


def check_made(workdir: Path) -> bool:
    """Whether all that a finished run leaves is there: results, predictions, exported models.

    Raises:
      UserError: some of it is there, and has changed.
    """
    made = {name: one for name, one in _read(workdir)["files"].items() if not _is_kept(name)}
    whole = {RESULTS, PREDICTIONS} <= {*made}
    for name, one in made.items():
        leftover = workdir / Path(*Path(name).parts[:2])  # a file, or a stage's exported folder
        if not leftover.exists():
            whole = False
            continue
        for line in changed(workdir, {name: one}, sampled=True):
            raise UserError(f"{line}: delete {leftover}, and the same command writes it again")
    return whole


def refuse_swapped(workdir: Path, config: ConfigDict, contents: Contents) -> None:
    """Raises `UserError` where what the config borrows is not what the run began with, wherever it lies now."""
    if not (workdir / CONFIG).exists():
        return
    borrowed = _read(workdir)["borrowed"]
    for key, now in contents.items():
        before = borrowed[key]
        for name in sorted({*before, *now}):
            if before.get(name) != now.get(name):
                what = "is missing" if name not in now else "is new" if name not in before else "is another"
                value = config_path.get_value(key, config)
                raise UserError(
                    f"config.{key}={value}: {name or 'the file'} {what} since {workdir} began: name what the run "
                    "began with, or start anew in another --workdir"
                )


def _read(workdir: Path) -> dict[str, Any]:
    if not (workdir / SEAL).is_file():
        raise UserError(f"{workdir / SEAL} is missing, without which nothing in {workdir} can be trusted: {ANEW}")
    return read_signed(workdir / SEAL, ANEW)


def _is_kept(name: str) -> bool:
    return name == CONFIG or _is_below(name, CATALOGUE) or _is_below(name, VOCABULARY)


def _is_below(name: str, folder: str) -> bool:
    return name == folder or name.startswith(f"{folder}/")


def _all_below(workdir: Path, *names: str) -> list[str]:
    paths = [path for name in names for path in (workdir / name, *(workdir / name).rglob("*")) if path.is_file()]
    return [path.relative_to(workdir).as_posix() for path in paths]
