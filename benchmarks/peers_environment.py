"""The environment of RecTools, pandas and datasets: RecTools wants another NumPy than ours."""

import subprocess
import sys
from pathlib import Path

from benchmarks.protocol import REPOSITORY, Unavailable

_FOLDER = REPOSITORY / ".venv-bench-peers"
_PYTHON, _INSTALLED = _FOLDER / "bin" / "python", _FOLDER / ".installed"
_REQUIREMENTS = Path(__file__).with_name("requirements-peers.txt")


def is_installed() -> bool:
    """Whether the environment is there, with the requirements of today."""
    return _INSTALLED.exists() and _INSTALLED.read_text() == _REQUIREMENTS.read_text()


def peers_python() -> Path:
    """The environment's interpreter; the first call creates it and installs the requirements.

    Raises:
      Unavailable: with pip's last line.
    """
    if is_installed():
        return _PYTHON
    print(f"installing RecTools and datasets into {_FOLDER.name} …", file=sys.stderr, flush=True)
    for command in (
        [sys.executable, "-m", "venv", str(_FOLDER)],
        [str(_PYTHON), "-m", "pip", "install", "--quiet", "-r", str(_REQUIREMENTS)],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last_line = ((done.stderr or done.stdout).strip().splitlines() or ["no output"])[-1]
            raise Unavailable(f"cannot install RecTools and datasets: {last_line}")
    _INSTALLED.write_text(_REQUIREMENTS.read_text())
    return _PYTHON
