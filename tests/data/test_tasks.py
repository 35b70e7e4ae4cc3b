import dataclasses

import numpy as np
import pytest
import seqio
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from user_llm.data.feature_converters import (
    EncoderFeatureConverter,
    UserLLMFeatureConverter,
    UserLLMSource,
)
from user_llm.data.prompts import NextItemPrompts, next_item
from user_llm.data.tasks import register_next_item, task_feature_lengths, task_name
from user_llm.data.vocabularies import TitleTokens, load_vocabulary
from user_llm.data.windows import Windows

HISTORY = 5


@pytest.fixture(scope="module")
def titles(table, vocabulary):
    return TitleTokens(table.catalogue, vocabulary, max_targets=9)


@pytest.fixture(scope="module")
def titles_with_token_0(table, tmp_path_factory):
    """Of a vocabulary in which 0, as in GPT-2, is "!", at which every title begins."""
    letters = ByteLevel.alphabet()
    tokenizer = Tokenizer(BPE({letter: index for index, letter in enumerate([*sorted(letters), "<end>"])}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    folder = tmp_path_factory.mktemp("bytes")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    named = dataclasses.replace(table.catalogue, titles=["", *(f"!{title}!" for title in table.catalogue.titles[1:])])
    titles = TitleTokens(named, load_vocabulary(folder), max_targets=9)
    assert (titles.tokens[1:, 1] == 0).all()
    return titles


def make_prompts(titles, text_history):
    return NextItemPrompts(titles, next_item("movie"), max_inputs=60, text_history=text_history)


def read(dataset, names=None):
    """A dataset's examples as one batch, of all features or of those named."""
    examples = list(dataset.as_numpy_iterator())
    return {name: np.stack([example[name] for example in examples]) for name in names or examples[0]}


@pytest.mark.parametrize("text_history", [0, 4])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_both_roads_give_the_same_language_model_batches(table, titles, text_history, split):
    compare_roads(table, make_prompts(titles, text_history), split)


def test_both_roads_tell_token_0_from_what_fills_up(table, titles_with_token_0):
    express = compare_roads(table, make_prompts(titles_with_token_0, 4), "test")
    within = np.arange(express["prompt_tokens"].shape[1]) < express["prompt_lengths"][:, None]
    assert ((express["prompt_tokens"] == 0) & within).any()
    assert ((express["decoder_target_tokens"] == 0) & (express["decoder_loss_weights"] > 0)).any(axis=1).all()


def compare_roads(table, prompts, split):
    """Holds the roads equal and returns their batch."""
    options = dict(history_length=HISTORY, min_history=2, validation=True)
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
    if prompts.text_history:
        assert express["dropped_events"].any()
    return express


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
