"""A finished run that faults are done to."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def mini(tiny_run) -> list[str]:
    """The flags of a tiny experiment, but for its workdir."""
    return tiny_run[1]


@pytest.fixture(scope="session")
def finished(tiny_run) -> Path:
    """Its finished workdir; not to be changed."""
    return tiny_run[0]


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))
