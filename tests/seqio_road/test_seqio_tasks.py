import dataclasses

import numpy as np
import pytest
import seqio
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from user_llm.data.prompts import Prompts
from user_llm.data.sources import UserLLMSource
from user_llm.data.vocabularies import load_vocabulary
from user_llm.data.windows import Windows
from user_llm.seqio_road.feature_converters import EncoderFeatureConverter, UserLLMFeatureConverter
from user_llm.seqio_road.tasks import register_task, task_feature_lengths, task_name
from user_llm.tasks import TASKS
from user_llm.tasks.favorite_category import FavoriteCategoryAnswers
from user_llm.tasks.next_item import TitleAnswers
from user_llm.tasks.review_generation import ReviewAnswers

HISTORY = 5


@pytest.fixture(scope="module")
def names(table, vocabulary, make_names):
    return make_names(table, vocabulary, 9)


@pytest.fixture(scope="module")
def names_with_token_0(table, make_names, tmp_path_factory):
    """Of a vocabulary in which 0, as in GPT-2, is "!", at which every title begins."""
    letters = ByteLevel.alphabet()
    tokenizer = Tokenizer(BPE({letter: index for index, letter in enumerate([*sorted(letters), "<end>"])}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    folder = tmp_path_factory.mktemp("bytes")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    named = dataclasses.replace(table.catalogue, titles=["", *(f"!{title}!" for title in table.catalogue.titles[1:])])
    names = make_names(dataclasses.replace(table, catalogue=named), load_vocabulary(folder), 9)
    assert (names.titles.tokens[1:, 1] == 0).all()
    return names


def make_task(table, names, task="next_item", text_history=0):
    """Prompts and answers of a task."""
    catalogue = table.catalogue
    if task == "next_item":
        wording, answers = TASKS["next_item"].wording("movie", "genre"), TitleAnswers(catalogue.titles, names.titles)
    elif task == "favorite_category":
        wording = TASKS["favorite_category"].wording("movie", "genre")
        answers = FavoriteCategoryAnswers(catalogue.category_names, names.categories, catalogue.item_categories)
    else:
        wording = TASKS["review_generation"].wording("movie", "genre")
        answers = ReviewAnswers(table, names.titles.vocabulary, 12)
    max_inputs = 60 if task == "next_item" else 120
    return Prompts(names, wording, max_inputs=max_inputs, text_history=text_history), answers


def read(dataset, names=None):
    """A dataset's examples as one batch, of all features or of those named."""
    examples = list(dataset.as_numpy_iterator())
    return {name: np.stack([example[name] for example in examples]) for name in names or examples[0]}


@pytest.mark.parametrize("text_history", [0, 4])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_both_roads_give_the_same_language_model_batches(table, names, text_history, split):
    compare_roads(table, *make_task(table, names, text_history=text_history), split)


@pytest.mark.parametrize("text_history", [0, 4])
@pytest.mark.parametrize("task", ["favorite_category", "review_generation"])
def test_both_roads_give_the_same_batches_of_the_other_tasks(table, names, task, text_history):
    express = compare_roads(table, *make_task(table, names, task, text_history), "train")
    answered = (express["decoder_loss_weights"] > 0).any(axis=1)
    assert answered.any()
    assert not answered.all()  # a history without category, an event without review


def test_both_roads_tell_token_0_from_what_fills_up(table, names_with_token_0):
    express = compare_roads(table, *make_task(table, names_with_token_0, text_history=4), "test")
    within = np.arange(express["prompt_tokens"].shape[1]) < express["prompt_lengths"][:, None]
    assert ((express["prompt_tokens"] == 0) & within).any()
    assert ((express["decoder_target_tokens"] == 0) & (express["decoder_loss_weights"] > 0)).any(axis=1).all()


def compare_roads(table, prompts, answers, split):
    """Holds the roads equal and returns their batch."""
    options = dict(history_length=HISTORY, min_history=2, validation=True)
    task = register_task(table, prompts, answers, **options)
    source = UserLLMSource(Windows(table, split=split, **options), prompts, answers)
    express = source.gather(np.arange(len(source)))
    definition = read(
        seqio.get_dataset(
            task.name,
            task_feature_lengths(prompts, answers, HISTORY),
            dataset_split=split,
            shuffle=False,
            feature_converter=UserLLMFeatureConverter(),
        )
    )
    assert definition.keys() == express.keys()
    for name in express:
        assert definition[name].dtype == express[name].dtype
        np.testing.assert_array_equal(definition[name], express[name], err_msg=name)
    if prompts.text_history and prompts.wording.name.startswith("next_item"):
        assert express["dropped_events"].any()
    return express


def test_both_roads_give_the_same_encoder_batches(table, names):
    prompts, answers = make_task(table, names)
    task = register_task(table, prompts, answers, history_length=HISTORY)
    converter = EncoderFeatureConverter()
    lengths = {name: task_feature_lengths(prompts, answers, HISTORY)[name] for name in converter.TASK_FEATURES}
    dataset = converter(task.get_dataset(split="train", shuffle=False), lengths)
    windows = Windows(table, history_length=HISTORY, split="train")
    express = windows.gather(np.arange(len(windows)))
    definition = read(dataset)
    assert definition.keys() == express.keys()
    for name in express:
        np.testing.assert_array_equal(definition[name], express[name], err_msg=name)


def test_task_passes_references_through(table, names):
    task = register_task(table, *make_task(table, names), history_length=HISTORY)
    assert task.splits == ("train", "test")
    for split in task.splits:
        names = ("user", "user_id", "label/item", "references")
        examples = read(task.get_dataset(split=split, shuffle=False), names)
        assert task.num_input_examples(split) == len(examples["user"])
        assert [table.catalogue.titles[item] for item in examples["label/item"]] == [
            title.decode() for title in examples["references"]
        ]
        assert [table.user_ids[user].encode() for user in examples["user"]] == examples["user_id"].tolist()


def test_shuffled_shards_hold_every_window_once(table, names):
    task = register_task(table, *make_task(table, names), history_length=HISTORY)
    shards = [
        read(task.get_dataset(split="train", seed=3, shard_info=seqio.ShardInfo(index, 3)), ["label/item"])
        for index in range(3)
    ]
    windows = Windows(table, history_length=HISTORY, split="train")
    in_order = windows.gather(np.arange(len(windows)))["label/item"]
    together = np.concatenate([shard["label/item"] for shard in shards])
    assert together.tolist() != in_order.tolist()
    np.testing.assert_array_equal(np.sort(together), np.sort(in_order))


def test_registering_again_replaces_the_task(table, make_table, names):
    task = make_task(table, names)
    name = register_task(table, *task, history_length=HISTORY).name
    assert register_task(make_table([7, 7]), *task, history_length=HISTORY).name == name
    assert seqio.TaskRegistry.get(name).num_input_examples("test") == 2


@pytest.mark.parametrize("kind", ["next_item", "favorite_category", "review_generation"])
def test_lengths_that_would_cut_a_prompt_are_refused(table, names, kind):
    prompts, answers = make_task(table, names, kind)
    task = register_task(table, prompts, answers, history_length=HISTORY)
    for name in ("inputs", "targets"):
        lengths = task_feature_lengths(prompts, answers, HISTORY)
        lengths[name] -= 1
        with pytest.raises(ValueError, match=rf"would cut {name} of up to"):
            task.get_dataset(lengths, split="train")


def test_task_names():
    assert task_name("movielens/20m", "next_item_v1", history_length=50) == "movielens_20m.next_item_v1.n50"
    same = task_name("movielens/20m", "next_item_v1", history_length=50, min_history=50)
    assert same == "movielens_20m.next_item_v1.n50"
    options = dict(history_length=50, min_history=5, validation=True, text_history=10)
    name = task_name("movielens/latest_small", "favorite_category_v1", **options)
    assert name == "movielens_latest_small.favorite_category_v1.n50_min5_val_tp10"
