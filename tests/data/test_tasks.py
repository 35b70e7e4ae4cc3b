import numpy as np
import pytest
import seqio

from user_llm.data.feature_converters import (
    EncoderFeatureConverter,
    UserLLMFeatureConverter,
    UserLLMSource,
)
from user_llm.data.prompts import NextItemPrompts, next_item
from user_llm.data.tasks import register_next_item, task_feature_lengths, task_name
from user_llm.data.vocabularies import TitleTokens
from user_llm.data.windows import Windows

HISTORY = 5


@pytest.fixture(scope="module")
def titles(table, vocabulary):
    return TitleTokens(table.catalogue, vocabulary, max_targets=9)


def make_prompts(titles, text_history):
    return NextItemPrompts(titles, next_item("movie"), max_inputs=60, text_history=text_history)


def read(dataset, names=None):
    """A dataset's examples as one batch, of all features or of those named."""
    examples = list(dataset.as_numpy_iterator())
    return {name: np.stack([example[name] for example in examples]) for name in names or examples[0]}


@pytest.mark.parametrize("text_history", [0, 4])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_both_roads_give_the_same_language_model_batches(table, titles, text_history, split):
    options = dict(history_length=HISTORY, min_history=2, validation=True)
    prompts = make_prompts(titles, text_history)
    task = register_next_item(table, prompts, **options)
    source = UserLLMSource(Windows(table, split=split, **options), prompts)
    express = source.gather(np.arange(len(source)))
    definition = read(
        seqio.get_dataset(
            task.name,
            task_feature_lengths(prompts, HISTORY),
            dataset_split=split,
            shuffle=False,
            feature_converter=UserLLMFeatureConverter(),
        )
    )
    assert definition.keys() == express.keys()
    for name in express:
        assert definition[name].dtype == express[name].dtype
        np.testing.assert_array_equal(definition[name], express[name], err_msg=name)
    if text_history:
        assert express["dropped_events"].any()


def test_both_roads_give_the_same_encoder_batches(table, titles):
    prompts = make_prompts(titles, 0)
    task = register_next_item(table, prompts, history_length=HISTORY)
    converter = EncoderFeatureConverter()
    lengths = {name: task_feature_lengths(prompts, HISTORY)[name] for name in converter.TASK_FEATURES}
    dataset = converter(task.get_dataset(split="train", shuffle=False), lengths)
    windows = Windows(table, history_length=HISTORY, split="train")
    express = windows.gather(np.arange(len(windows)))
    definition = read(dataset)
    assert definition.keys() == express.keys()
    for name in express:
        np.testing.assert_array_equal(definition[name], express[name], err_msg=name)


def test_task_passes_references_through(table, titles):
    task = register_next_item(table, make_prompts(titles, 0), history_length=HISTORY)
    assert task.splits == ("train", "test")
    for split in task.splits:
        names = ("user", "user_id", "label/item", "references")
        examples = read(task.get_dataset(split=split, shuffle=False), names)
        assert task.num_input_examples(split) == len(examples["user"])
        assert [table.catalogue.titles[item] for item in examples["label/item"]] == [
            title.decode() for title in examples["references"]
        ]
        assert [table.user_ids[user].encode() for user in examples["user"]] == examples["user_id"].tolist()


def test_shuffled_shards_hold_every_window_once(table, titles):
    task = register_next_item(table, make_prompts(titles, 0), history_length=HISTORY)
    shards = [
        read(task.get_dataset(split="train", seed=3, shard_info=seqio.ShardInfo(index, 3)), ["label/item"])
        for index in range(3)
    ]
    windows = Windows(table, history_length=HISTORY, split="train")
    in_order = windows.gather(np.arange(len(windows)))["label/item"]
    together = np.concatenate([shard["label/item"] for shard in shards])
    assert together.tolist() != in_order.tolist()
    np.testing.assert_array_equal(np.sort(together), np.sort(in_order))


def test_registering_again_replaces_the_task(table, make_table, titles):
    prompts = make_prompts(titles, 0)
    name = register_next_item(table, prompts, history_length=HISTORY).name
    assert register_next_item(make_table([7, 7]), prompts, history_length=HISTORY).name == name
    assert seqio.TaskRegistry.get(name).num_input_examples("test") == 2


def test_lengths_that_would_cut_a_prompt_are_refused(table, titles):
    prompts = make_prompts(titles, 0)
    task = register_next_item(table, prompts, history_length=HISTORY)
    for name in ("inputs", "targets"):
        lengths = task_feature_lengths(prompts, HISTORY)
        lengths[name] -= 1
        with pytest.raises(ValueError, match=rf"would cut {name} of up to"):
            task.get_dataset(lengths, split="train")


def test_task_names():
    assert task_name("movielens/20m", history_length=50) == "movielens_20m.next_item.n50"
    assert task_name("movielens/20m", history_length=50, min_history=50) == "movielens_20m.next_item.n50"
    assert (
        task_name("movielens/latest_small", history_length=50, min_history=5, validation=True, text_history=10)
        == "movielens_latest_small.next_item.n50_min5_val_tp10"
    )
