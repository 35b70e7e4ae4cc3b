"""RecTools' own environment: it wants another NumPy than ours."""

import subprocess
import sys
from pathlib import Path

from benchmarks.protocol import REPOSITORY

_FOLDER = REPOSITORY / ".venv-bench-rectools"
_REQUIREMENTS = Path(__file__).with_name("requirements-rectools.txt")


class Unavailable(RuntimeError):
    """The environment cannot be made here."""


def rectools_python() -> Path:
    """The environment's interpreter; the first call creates it and installs the requirements.

    Raises:
      Unavailable: with pip's last line.
    """
    python, installed = _FOLDER / "bin" / "python", _FOLDER / ".installed"
    if installed.exists() and installed.read_text() == _REQUIREMENTS.read_text():
        return python
    print(f"installing RecTools into {_FOLDER.name} …", file=sys.stderr, flush=True)
    for command in (
        [sys.executable, "-m", "venv", str(_FOLDER)],
        [str(python), "-m", "pip", "install", "--quiet", "-r", str(_REQUIREMENTS)],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last_line = ((done.stderr or done.stdout).strip().splitlines() or ["no output"])[-1]
            raise Unavailable(f"cannot install RecTools: {last_line}")
    installed.write_text(_REQUIREMENTS.read_text())
    return python
