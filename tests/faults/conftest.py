"""A finished run that faults are done to: all three stages, a few steps each."""

import shutil
from pathlib import Path

import pytest

from tests.faults.harness import REPOSITORY, train

FLAGS = (
    f"--config={REPOSITORY / 'tests/end_to_end/tiny.py'}",
    "--gin=Host.tensorboard=False",
    "--config.training.llm.steps=2",
    "--config.training.encoder.steps=4",
    "--config.training.encoder.eval_every=2",
    "--config.training.encoder.checkpoint_every=2",
    "--config.training.user_llm.steps=2",
    "--config.evaluation.max_users=12",
)


@pytest.fixture(scope="session")
def faults_data(tmp_path_factory) -> Path:
    """Where the tiny dataset is built once."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def mini(faults_data) -> list[str]:
    """The flags of a tiny experiment, but for its workdir."""
    return [*FLAGS, f"--config.data.data_dir={faults_data}"]


@pytest.fixture(scope="session")
def finished(tmp_path_factory, mini) -> Path:
    """Its finished workdir; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    train(*mini, f"--workdir={folder / 'run'}", folder=folder, timeout=400).check(0)
    return folder / "run"


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))
