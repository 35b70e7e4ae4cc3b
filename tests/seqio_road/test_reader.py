"""SeqIO as the trainer's reader gives the batches of the array road, from any step, in one process or several."""

import itertools

import numpy as np
import pytest
import seqio

from user_llm.data.favorites import FavoriteCategorySource
from user_llm.data.mixture import Mixture
from user_llm.data.pipeline import TrainBatches
from user_llm.data.sources import TextSource
from user_llm.errors import UserError
from user_llm.seqio_road.feature_converters import UserLLMFeatureConverter
from user_llm.seqio_road.mixtures import register_mixture
from user_llm.seqio_road.reader import SeqIOBatches, encoder_batches, llm_batches, user_llm_batches
from user_llm.seqio_road.tasks import register_study, task_lengths

TASK_NAMES = ("next_item", "favorite_category", "review_generation")
RATES = (3, 2, 1)


@pytest.fixture(scope="module")
def study(make_study):
    return make_study(",".join(TASK_NAMES), text_history=2)


@pytest.fixture(scope="module")
def mixture(study):
    return Mixture([study.source(task, "train") for task in TASK_NAMES], RATES)


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_a_mixture_gives_the_array_road_s_batches_from_any_step(study, mixture):
    seqio_road = user_llm_batches(study, mixture, 20, seed=4)
    array_road = TrainBatches(mixture, 20, 4, order=mixture.order(4))
    batches = list(itertools.islice(seqio_road.iterator(), 4))  # three epochs of the first task
    for step, batch in enumerate(batches):
        assert_equal(batch, array_road.batch(step))
    assert_equal(next(seqio_road.iterator(60)), array_road.batch(60))
    assert_equal(seqio_road.whole_batch(3), batches[3])


def test_an_encoder_reads_whatever_its_source_gives(study, mixture):
    source = FavoriteCategorySource(study.windows("train"), study.catalogue.item_categories)
    expected = TrainBatches(source, 7, 4)
    batches = encoder_batches(source, 7, seed=4).iterator(5)
    for step in range(5, 9):
        assert_equal(next(batches), expected.batch(step))


def test_shares_of_a_mixture_and_its_one_shape(study, mixture):
    name = register_mixture(register_study(study), RATES)
    lengths = task_lengths(name)
    assert (lengths["inputs"], lengths["targets"]) == (mixture.prompt_length, mixture.answer_width)
    dataset = seqio.get_dataset(
        name, lengths, UserLLMFeatureConverter(), shuffle=True, seed=1, num_epochs=None, batch_size=1000
    )
    batch = next(iter(dataset.as_numpy_iterator()))
    assert batch["decoder_input_tokens"].shape[1] == mixture.length - 1
    starts = [mixture.sources[index].prompts.before.size for index in range(3)]
    asked = [source.prompts.pieces[-1][0][0] for source in mixture.sources]  # each prompt's last words
    assert len(set(starts)) == 1
    counts = [
        sum(
            row[:length][-len(words) :].tolist() == words.tolist()
            for row, length in zip(batch["prompt_tokens"], batch["prompt_lengths"], strict=True)
        )
        for words in asked
    ]
    assert counts == [500, 333, 167]


def test_shards_are_parts_of_one_epoch_and_of_the_whole_batch(study, mixture):
    windows = study.windows("train")  # 25: with 2 shards, 13 and 12
    parts = [encoder_batches(windows, 8, seed=2, rows=np.arange(4) + 4 * shard) for shard in range(2)]
    read = [list(itertools.islice(part.iterator(), 8)) for part in parts]
    for step in (0, 5):
        whole = parts[0].whole_batch(step)
        assert_equal(parts[1].whole_batch(step), whole)
        for shard in range(2):
            rows = slice(4 * shard, 4 * shard + 4)
            assert_equal(read[shard][step], {name: values[rows] for name, values in whole.items()})
    sizes = (len(windows) + 1) // 2, len(windows) // 2
    for epoch in range(2):
        labels = [
            np.concatenate([batch["label/item"] for batch in read[shard]])[epoch * size : (epoch + 1) * size]
            for shard, size in enumerate(sizes)
        ]
        everything = windows.gather(np.arange(len(windows)))["label/item"]
        assert sorted(np.concatenate(labels)) == sorted(everything)


@pytest.mark.parametrize("rows", [[1, 2], [0, 2], [0, 1, 2]])
def test_rows_that_are_no_shard_are_refused(study, rows):
    with pytest.raises(UserError, match="are no shard of a batch of 4"):
        encoder_batches(study.windows("train"), 4, seed=2, rows=np.array(rows))


def test_more_processes_than_windows_are_refused(study):
    with pytest.raises(UserError, match="training examples for 64 processes"):
        encoder_batches(study.windows("train"), 64, seed=2, rows=np.array([3]))


def test_somebody_else_s_mixture_is_read_too(study):
    names = register_study(study)[:2]
    seqio.MixtureRegistry.remove("theirs")
    seqio.MixtureRegistry.add("theirs", names, default_rate=1.0)
    batches = SeqIOBatches("theirs", task_lengths("theirs"), UserLLMFeatureConverter(), 6, seed=2)
    whole = list(itertools.islice(batches.iterator(), 4))
    assert_equal(next(batches.iterator(3)), whole[3])


def test_a_language_model_reads_documents_and_answered_prompts_half_and_half(study, mixture, vocabulary):
    text = TextSource(study.documents, mixture, max_length=200)
    batch = next(llm_batches(study, mixture, text, 100, seed=5).iterator(2))
    assert batch["decoder_input_tokens"].shape == (100, text.length - 1)
    everything = text.gather(np.arange(2 * len(mixture)))  # every answered prompt and every document

    def rows(batch):
        return [tuple(map(bytes, row)) for row in zip(*(batch[name] for name in sorted(batch)), strict=True)]

    known = rows(everything)
    documents, answered = set(known[::2]), set(known[1::2])
    found = rows(batch)
    assert set(found) <= documents | answered
    # Drawn by the thousand: of 100 rows, 50 are documents, give or take four deviations.
    assert 30 <= sum(row in documents for row in found) <= 70


def test_unshuffled_it_reads_in_order_epoch_after_epoch(study):
    name = register_study(study)[0]
    source = study.source("next_item", "train")
    options = dict(batch_size=10, seed=0, shuffle=False)
    batches = SeqIOBatches(name, task_lengths(name), UserLLMFeatureConverter(), **options).iterator(1)
    for start in (10, 20, 30):  # of 25 windows
        assert_equal(next(batches), source.gather(np.arange(start, start + 10) % len(source)))
