"""Tasks by the name of their dataset, which are made of it on first use."""

import importlib

import pytest
import seqio

from user_llm.builders.simulated import SimulatedConfig
from user_llm.errors import UserError
from user_llm.seqio_road import study
from user_llm.seqio_road.feature_converters import UserLLMFeatureConverter
from user_llm.seqio_road.tasks import find, register, task_lengths
from user_llm.seqio_road.vocabularies import SeqIOVocabulary


class Touched(Exception):
    """Somebody has asked for the data."""


def test_importing_registers_every_dataset_and_touches_none(monkeypatch):
    def touch(*args, **kwargs):
        raise Touched

    monkeypatch.setattr(study, "load_timelines", touch)
    monkeypatch.setattr(study, "builder_of", touch)
    registered = importlib.import_module("user_llm.seqio_road.registered")
    importlib.reload(registered)  # another test may have been here first
    assert {
        "user_llm_movielens_20m_next_item",
        "user_llm_movielens_20m_favorite_category",
        "user_llm_amazon_reviews_gift_cards_2018_review_generation",
        "user_llm_google_local_simulated_review_generation",
        "user_llm_movielens_simulated_next_item",
    } <= set(registered.NAMES) & set(seqio.TaskRegistry.names())
    assert "user_llm_movielens_20m_review_generation" not in registered.NAMES
    task = seqio.get_mixture_or_task("user_llm_movielens_20m_next_item")
    assert task.splits == ("train", "validation", "test")
    assert "inputs" in task.output_features
    assert "not loaded yet" in repr(task.output_features["inputs"].vocabulary)
    for use in (
        lambda: task.num_input_examples("train"),
        lambda: task.get_dataset(split="train"),
        lambda: task.output_features["inputs"].vocabulary.vocab_size,
    ):
        with pytest.raises(Touched):
            use()


def test_a_registered_task_builds_its_dataset_and_a_vocabulary_beside_it(tmp_path):
    options = dict(
        data_dir=str(tmp_path), simulated=SimulatedConfig(48, 60, 26), history_length=24, min_history=4, name="mine"
    )
    name = register("movielens/simulated", "next_item", **options)
    assert not list(tmp_path.iterdir())
    dataset = seqio.get_dataset(name, task_lengths(name), UserLLMFeatureConverter(), dataset_split="test", batch_size=4)
    batch = next(iter(dataset.as_numpy_iterator()))
    assert batch["history/item"].shape == (4, 24)
    example = next(iter(find(name).get_dataset(split="test", shuffle=False).as_numpy_iterator()))
    vocabulary = find(name).output_features["targets"].vocabulary
    assert isinstance(vocabulary, SeqIOVocabulary)
    assert vocabulary.decode(example["targets"]) == example["references"].decode()
    (file,) = tmp_path.rglob("vocabulary-*.model")
    assert (file.parent / "dataset_info.json").is_file()
    made = file.stat().st_mtime_ns
    other = register("movielens/simulated", "favorite_category", **{**options, "name": "mine_too"})
    assert find(other).output_features["targets"].vocabulary == vocabulary  # so the two may be mixed
    assert file.stat().st_mtime_ns == made


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("movielens/20n", "next_item"), {}, "no dataset is called 'movielens/20n': did you mean movielens/20m"),
        (("movielens/20m", "next_itme"), {}, "no task is called 'next_itme': did you mean next_item"),
        (("movielens/20m", "next_item"), {"history": 3}, "no option is called 'history': did you mean .*history"),
    ],
)
def test_what_there_is_not_is_answered_with_what_there_is(arguments, options, message):
    with pytest.raises(UserError, match=message):
        register(*arguments, **options)
