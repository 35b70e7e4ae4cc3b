"""A run that reads SeqIO's tasks: the losses and parameters of the array road, resumed or not."""

import importlib.util
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from user_llm.data.pipeline import TrainBatches
from user_llm.experiment.experiment import Experiment
from user_llm.experiment.prepare import prepare
from user_llm.experiment.stages import STAGES
from user_llm.experiment.training import run_stages
from user_llm.experiment.validation import validate
from user_llm.host import Host
from user_llm.parallel.mesh import one_device
from user_llm.seqio_road.reader import SeqIOBatches

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

HOST = Host(tensorboard=False)


class Stopped(Exception):
    """The reader has nothing more for now."""


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Builds a prepared experiment: the LLM on two tasks, with a random encoder."""
    data_dir = tmp_path_factory.mktemp("data")

    def make(reader, workdir):
        config = tiny.get_config()
        config.data.data_dir = str(data_dir)
        config.data.reader = reader
        config.task, config.task_rates = "next_item,favorite_category", (2, 1)
        config.stages, config.encoder.init = ("user_llm",), "random"
        training = config.training.user_llm
        training.steps, training.checkpoint_every, training.log_every = 6, 3, 1
        training.eval_every, training.keep_best = 0, ""
        validate(config)
        workdir.mkdir(exist_ok=True)
        experiment = Experiment(config, workdir, one_device())
        prepare(experiment)
        return experiment

    return make


def losses(workdir):
    rows = map(json.loads, (workdir / "user_llm" / "metrics.jsonl").open())
    return {row["step"]: row["loss"] for row in rows}


def test_stopped_and_started_again_it_learns_what_the_array_road_does(make, tmp_path, monkeypatch):
    whole = run_stages(make("windows", tmp_path / "windows"), HOST)["user_llm"]
    read = SeqIOBatches.iterator

    def stopping(self, start_step=0, **options):
        yield from itertools.islice(read(self, start_step, **options), 5)
        raise Stopped

    monkeypatch.setattr(SeqIOBatches, "iterator", stopping)
    with pytest.raises(Stopped):  # at the third step, where it has saved; the loop reads two ahead
        run_stages(make("seqio", tmp_path / "seqio"), HOST)
    resumed = run_stages(make("seqio", tmp_path / "seqio"), HOST)["user_llm"]
    assert losses(tmp_path / "seqio") == losses(tmp_path / "windows")
    assert len(losses(tmp_path / "seqio")) == 6
    for path, value in whole.parameters.items():
        np.testing.assert_array_equal(resumed.parameters[path], value, err_msg=path)


def test_every_stage_has_batches_of_the_array_road_s_shape(make, tmp_path):
    experiments = {reader: make(reader, tmp_path / reader) for reader in ("windows", "seqio")}
    for stage in STAGES:
        array_road, seqio_road = (
            stage.batches(experiments[reader], lambda source: source) for reader in ("windows", "seqio")
        )
        assert isinstance(array_road, TrainBatches)
        assert isinstance(seqio_road, SeqIOBatches)
        expected, found = array_road.whole_batch(2), seqio_road.whole_batch(2)
        told = [{name: (values.shape, values.dtype) for name, values in batch.items()} for batch in (found, expected)]
        assert told[0] == told[1], stage.name
