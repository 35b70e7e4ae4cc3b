"""The data and models of one experiment, each made once, on first use."""

import functools
from pathlib import Path

from ml_collections import ConfigDict

from user_llm.data.timelines import TimelineTable, load_timelines
from user_llm.data.windows import Windows
from user_llm.parallel.mesh import make_mesh


class Experiment:
    """What the stages and the evaluation of one config share.

    Args:
      config: a validated config (`configs/base.py`).
      workdir: where everything the experiment makes is kept.
    """

    def __init__(self, config: ConfigDict, workdir: Path):
        self.config = config
        self.workdir = workdir
        self.mesh = make_mesh(config.compute.mesh)

    @functools.cached_property
    def table(self) -> TimelineTable:
        """The timelines; built from the raw files where they are not built yet."""
        data = self.config.data
        return load_timelines(
            data.dataset,
            raw_path=data.raw_path or None,
            data_dir=data.data_dir or None,
            max_malformed=data.max_malformed,
            simulated=data.simulated.to_dict() if data.dataset.endswith("/simulated") else None,
        )

    def windows(self, split: str) -> Windows:
        """The windows of `train`, `validation` or `test`."""
        data = self.config.data
        return Windows(
            self.table,
            history_length=data.history_length,
            split=split,
            min_history=data.min_history or None,
            validation=data.validation,
        )
