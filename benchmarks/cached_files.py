"""Files that a benchmark makes once, and reads ever after."""

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.protocol import REPOSITORY, ContenderFailed, Unavailable

TARGET = "{target}"
"""Among the arguments of what makes a file: where it is to write."""
_ANNOUNCED = 10**9
_BLOCK = 1 << 24


def made(target: Path, size: int, module: str, *arguments: str) -> Path:
    """The file or folder `target`, made first where it is not yet: whole, or not at all.

    A process of its own makes it, so that all memory which that took is free again.

    Args:
      target: what to make.
      size: about how many bytes it has.
      module: is run, and makes it.
      arguments: of the module, `TARGET` among them.

    Raises:
      Unavailable: the disk has too little room.
      ContenderFailed: the module has failed.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    if size > (free := shutil.disk_usage(target.parent).free):
        raise Unavailable(f"{target} needs {size / 1e9:.1f} GB of disk, and {free / 1e9:.1f} are free")
    if size > _ANNOUNCED:
        say(f"writing {size / 1e9:.1f} GB to {target} …")
    part = target.with_name(f"{target.name}.part")
    if part.is_dir():
        shutil.rmtree(part)
    part.unlink(missing_ok=True)
    command = [sys.executable, "-m", module, *(str(part) if argument == TARGET else argument for argument in arguments)]
    # The module's own progress goes to stderr; what it prints at the end would stand between our tables.
    if code := subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL).returncode:
        raise ContenderFailed(f"{module} ended with {code}")
    return part.rename(target)


def warm(*files: Path) -> None:
    """Reads files once, so that the page cache has them, as far as there is room."""
    buffer = bytearray(_BLOCK)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)
