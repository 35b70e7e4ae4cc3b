"""Options that change the whole way through, each run from raw files to results.

On one device: what meshes change is held in `tests/parallel`, in a step or two. XLA's collectives on eight virtual
devices and two cores now and then wait for one another for ever, the more so the more steps there are.
"""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from ml_collections.config_flags import config_path

from user_llm import experiment
from user_llm.config import ConfigError, validate
from user_llm.host import Host
from user_llm.parallel.mesh import one_device
from user_llm.run import run

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

VARIANTS = {
    "text history, free beams": {
        "data.text_history": 4,
        "prompt.max_inputs": 40,
        "evaluation.constrained": False,
        "encoder.features": ("item",),
        "stages": ("encoder", "user_llm"),
    },
    "proj with a random encoder, bf16, scanned, exact": {
        "strategy": "proj",
        "encoder.init": "random",
        "stages": ("llm", "user_llm"),
        "compute.dtype": "bfloat16",
        "compute.frozen_dtype": "bfloat16",
        "compute.scan_layers": True,
        "compute.remat": True,
        "data.validation": False,
        "training.user_llm.keep_best": "",
        "llm.tie_embeddings": False,
        "evaluation.answers": "exact",
    },
    "the encoder alone, few users, seen items allowed": {
        "stages": ("encoder",),
        "evaluation.max_users": 20,
        "evaluation.max_validation": 10,
        "evaluation.exclude_history": False,
    },
}


def configured(data_dir, overrides):
    config = tiny.get_config()
    values = {"data.data_dir": str(data_dir), **overrides}
    for stage in config.stages:
        values |= {f"training.{stage}.{key}": 6 for key in ("steps", "eval_every", "checkpoint_every")}
    for key, value in values.items():
        config_path.set_value(key, config, value)
    validate(config)
    return config


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_runs_to_its_results(name, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "make_mesh", lambda sizes: one_device())
    config = configured(data_dir, VARIANTS[name])
    results = run(config, tmp_path / "run", Host(tensorboard=False))
    protocol = next(iter(results["protocols"].values()))
    assert protocol["users"] == (config.evaluation.max_users or 48)
    assert ("User-LLM" in protocol["rows"]) == ("user_llm" in config.stages)
    assert ("Encoder alone" in protocol["rows"]) == ("encoder" in config.stages)
    for row in protocol["rows"].values():
        assert all(np.isfinite(value) for interval in row.values() for value in interval.values())
    rows = [json.loads(line) for line in (tmp_path / "run" / config.stages[-1] / "metrics.jsonl").open()]
    assert np.isfinite([row["loss"] for row in rows]).all()
    assert any(row["kind"] == "validation" for row in rows) == config.data.validation


def test_a_batch_the_devices_cannot_share_is_refused(data_dir, tmp_path):
    config = configured(data_dir, {"training.encoder.batch_size": 12})
    with pytest.raises(ConfigError, match=r"training\.encoder\.batch_size / accumulate = 12: .* multiple of the 8"):
        run(config, tmp_path / "run", Host(tensorboard=False))
