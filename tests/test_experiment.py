"""What an experiment finds out about its data and workdir before anything is trained."""

from collections import Counter

import pytest
from ml_collections.config_flags import config_path

from user_llm import schema
from user_llm.config import ConfigError
from user_llm.data import by_length
from user_llm.encoders import dual_encoder
from user_llm.experiment.experiment import Experiment
from user_llm.experiment.prepare import prepare
from user_llm.experiment.stages import STAGES
from user_llm.experiment.workdir import FACTS
from user_llm.files import read_json, write_json
from user_llm.parallel.mesh import one_device

TINY = {"num_users": 24, "num_items": 60, "mean_events": 26}


@pytest.fixture
def config(tmp_path):
    config = schema.get_config()
    values = {f"simulated.{key}": value for key, value in TINY.items()}
    for key, value in {**values, "dataset": "movielens/simulated", "data_dir": str(tmp_path), "min_history": 4}.items():
        config_path.set_value(f"data.{key}", config, value)
    return config


def test_a_prompt_that_drops_every_event_of_every_user_is_refused(tmp_path, config):
    """Fault g3r_text_none_small. With room for the shortest title, some are written."""
    config.data.text_history, config.prompt.max_inputs = 20, 64
    experiment = Experiment(config, tmp_path, one_device())
    prepare(experiment)
    prompts = experiment.prompts("next_item")
    words = len(prompts.before) + sum(int(lengths.max()) for _, lengths, _ in prompts.pieces)
    shortest = int(prompts.event_lengths[1:].min())
    config.prompt.max_inputs = words + shortest - 1
    with pytest.raises(ConfigError, match=r"no room for a single event of config\.data\.text_history=20"):
        prepare(Experiment(config, tmp_path, one_device()))
    config.prompt.max_inputs = words + int(prompts.event_lengths.max())
    prepare(Experiment(config, tmp_path, one_device()))


def test_other_raw_files_than_the_workdir_was_made_of_are_refused(tmp_path, config):
    prepare(Experiment(config, tmp_path, one_device()))
    write_json(tmp_path / FACTS, {**read_json(tmp_path / FACTS, ""), "fingerprint": "of other files"})
    with pytest.raises(ConfigError, match="reads other raw files of movielens/simulated"):
        prepare(Experiment(config, tmp_path, one_device()))


def test_the_dual_encoder_is_told_how_often_an_item_is_a_label_and_not_how_often_it_occurs(tmp_path, monkeypatch):
    """The first events of a timeline are in histories alone: nothing is ever sampled for them."""
    config = schema.get_config()
    values = {f"data.simulated.{key}": value for key, value in TINY.items()}
    values |= {"data.dataset": "movielens/simulated", "data.data_dir": str(tmp_path), "data.history_length": 8}
    values |= {"data.min_history": 4, "encoder.kind": "dual_encoder"}
    for key, value in values.items():
        config_path.set_value(key, config, value)
    experiment = Experiment(config, tmp_path, one_device())
    given = []
    monkeypatch.setattr(dual_encoder, "dual_encoder_objective", lambda chunk_rows, counts: given.append(counts))
    STAGES["encoder"].objective(experiment)
    table, expected = experiment.table, Counter()
    for user in range(table.num_users):
        items = table.item[table.offsets[user] : table.offsets[user + 1]].tolist()
        expected.update(items[4:-2])  # behind four events, before the validation's and the test's
    assert {item: count for item, count in enumerate(given[0].tolist()) if count} == expected
    config.encoder.dual_encoder.sampling_correction = False
    STAGES["encoder"].objective(experiment)
    assert given[1] is None


def test_long_trainings_in_one_piece_read_their_texts_in_groups(tmp_path, config, monkeypatch):
    """Groups take longer to compile, and microbatches would cut them."""
    monkeypatch.setattr(by_length, "_WORTH", 1.0)  # whatever they spare
    for stage in config.training.values():
        stage.steps = 1000
    experiment = Experiment(config, tmp_path, one_device())
    prepare(experiment)

    def batches_of(stage):
        return stage.denser_batches(experiment, lambda source: source)

    def grouped():
        return {stage.name for stage in STAGES if isinstance(batches_of(stage), by_length.ByLength)}

    assert grouped() == {"llm", "user_llm"}
    batch = next(batches_of(STAGES["user_llm"]).iterator(3, threads=1, prefetch=1))
    whole = batches_of(STAGES["user_llm"]).whole_batch(3)
    learnt = sum(text["decoder_loss_weights"].sum() for text in batch["texts"])
    assert learnt == whole["decoder_loss_weights"].sum() > 0
    config.training.user_llm.accumulate = 2
    assert grouped() == {"llm"}
    config.training.llm.steps = 999
    assert grouped() == set()
