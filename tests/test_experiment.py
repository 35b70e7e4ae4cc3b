"""What an experiment finds out about its data and workdir before anything is trained."""

import json

import pytest
from ml_collections.config_flags import config_path

from configs import base
from user_llm.config import ConfigError
from user_llm.experiment.experiment import Experiment
from user_llm.experiment.prepare import prepare
from user_llm.experiment.workdir import CATALOGUE
from user_llm.parallel.mesh import one_device

TINY = {"num_users": 24, "num_items": 60, "mean_events": 26}


def test_other_raw_files_than_the_workdir_was_made_of_are_refused(tmp_path):
    config = base.get_config()
    values = {f"simulated.{key}": value for key, value in TINY.items()}
    for key, value in {**values, "dataset": "movielens/simulated", "data_dir": str(tmp_path), "min_history": 4}.items():
        config_path.set_value(f"data.{key}", config, value)
    prepare(Experiment(config, tmp_path, one_device()))
    path = tmp_path / CATALOGUE
    path.write_text(json.dumps({**json.loads(path.read_text()), "fingerprint": "of other files"}))
    with pytest.raises(ConfigError, match="reads other raw files of movielens/simulated"):
        prepare(Experiment(config, tmp_path, one_device()))
