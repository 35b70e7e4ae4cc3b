"""An experiment to look at, in a run's workdir or in one for the occasion: nothing of a run is changed."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from user_llm.experiment.experiment import Experiment
from user_llm.experiment.prepare import prepare
from user_llm.experiment.seal import check_kept
from user_llm.experiment.workdir import read_config


@contextlib.contextmanager
def prepared(config: ConfigDict, workdir: str | None, mesh: Mesh | None = None) -> Iterator[Experiment]:
    """The experiment of `config`, its data, catalogue and vocabulary at hand.

    Args:
      workdir: of a run, whose vocabulary is then taken; None: one is made for the occasion.
      mesh: see `Experiment`.

    Raises:
      NoRun: the workdir holds none. Nothing is written there.
    """
    if workdir:
        read_config(Path(workdir))
        check_kept(Path(workdir))
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment(config, Path(workdir or folder), mesh)
        prepare(experiment)
        yield experiment
