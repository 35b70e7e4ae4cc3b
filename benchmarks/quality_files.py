"""Writes the split that RecTools trains on: our own timelines, in our order.

python -m benchmarks.quality_files CONFIG OVERRIDES_AS_JSON SPLIT.npz
"""

import importlib.util
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections.config_flags import config_path

from benchmarks.protocol import REPOSITORY
from user_llm.experiment.experiment import Experiment
from user_llm.experiment.prepare import prepare
from user_llm.experiment.stages import STAGES
from user_llm.parallel.mesh import one_device


def experiment_of(config_file: str, overrides: Mapping[str, Any], workdir: Path) -> Experiment:
    """A prepared experiment of the encoder alone."""
    spec = importlib.util.spec_from_file_location("quality_config", REPOSITORY / config_file)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    config = module.get_config()
    for key, value in {"stages": ("encoder",), **overrides}.items():
        config_path.set_value(key, config, value)
    experiment = Experiment(config, workdir, one_device())
    workdir.mkdir(parents=True, exist_ok=True)
    prepare(experiment)
    return experiment


def write_split(config_file: str, overrides: Mapping[str, Any], path: Path) -> None:
    """Items, times and where users begin, whom the validation asks, and the sizes of our encoder."""
    with tempfile.TemporaryDirectory() as workdir:
        experiment = experiment_of(config_file, overrides, Path(workdir))
        table = experiment.table
        asked = STAGES["encoder"].validation_source(experiment, lambda source: source)
        users = asked.gather(np.arange(len(asked)))["user"]
        columns = {name: np.asarray(getattr(table, name)) for name in ("item", "timestamp", "offsets")}
        encoder = experiment.config.encoder
        sizes = {
            "length": experiment.config.data.history_length,
            "layers": encoder.num_layers,
            "heads": encoder.num_heads,
            "width": encoder.width,
            "dropout": encoder.dropout,
        }
        facts = {"num_items": table.catalogue.num_items, "encoder": json.dumps(sizes)}
        np.savez(path, validation_users=users, **facts, **columns)


if __name__ == "__main__":
    write_split(sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3]))
