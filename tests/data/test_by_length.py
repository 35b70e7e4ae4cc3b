"""Texts in groups: the same rows, cut where nothing is learnt any more."""

import itertools

import numpy as np
import pytest

from user_llm.data.by_length import ByLength, Cut, by_length, text_lengths
from user_llm.models.sharding import deal

T = 20


class Texts:
    """Batches of texts of lengths that the step and `lengths(generator, size)` give."""

    def __init__(self, size, lengths, prompts=True):
        self._size, self._lengths, self._prompts = size, lengths, prompts

    def whole_batch(self, step):
        generator = np.random.default_rng(step)
        lengths = self._lengths(generator, self._size)[:, None]
        tokens = generator.integers(1, 99, (self._size, T + 1)) * (np.arange(T + 1) <= lengths)
        prompt = np.minimum(3, lengths[:, 0])
        batch = {
            "user": np.arange(self._size) + 1000 * step,
            "decoder_input_tokens": tokens[:, :-1],
            "decoder_target_tokens": tokens[:, 1:],
            "decoder_positions": np.tile(np.arange(T), (self._size, 1)),
            "decoder_loss_weights": ((np.arange(T) >= prompt[:, None]) & (np.arange(T) < lengths)).astype(np.float32),
        }
        return {**batch, "prompt_lengths": prompt} if self._prompts else batch

    def iterator(self, start_step=0, *, threads, prefetch):
        return map(self.whole_batch, itertools.count(start_step))


def mostly_short(generator, size):
    return np.where(generator.random(size) < 0.9, generator.integers(4, 8, size), generator.integers(8, T, size))


def batches_of(source, steps, start=0):
    return list(itertools.islice(source.iterator(start, threads=1, prefetch=1), steps))


@pytest.mark.parametrize("prompts", [True, False])
@pytest.mark.parametrize("size", [64, 60])
def test_groups_hold_the_rows_of_the_batch_and_all_that_is_learnt(size, prompts):
    source = Texts(size, mostly_short, prompts)
    grouped = by_length(source, 1)
    for step, batch in enumerate(batches_of(grouped, 20)):
        whole = source.whole_batch(step)
        texts = batch["texts"]
        sizes = [len(text["decoder_input_tokens"]) for text in texts]
        assert sum(sizes) == size
        users = deal(batch["user"], sizes)  # as models deal what they made of the whole batch
        assert sorted(np.concatenate(users)) == sorted(whole["user"])
        for text, mine in zip(texts, users, strict=True):
            assert ("prompt_lengths" in text) == prompts
            for name, values in text.items():
                theirs = whole[name][np.asarray(mine) - 1000 * step]
                if values.ndim == 2:
                    dropped, theirs = np.split(theirs, [values.shape[1]], axis=1)[::-1]
                    assert name != "decoder_loss_weights" or not dropped.any()
                np.testing.assert_array_equal(values, theirs)
        np.testing.assert_array_equal(grouped.whole_batch(step)["user"], whole["user"])


def test_widths_spare_what_they_can_and_the_program_is_one():
    grouped = by_length(Texts(64, mostly_short), 1)
    shapes = {
        tuple(text["decoder_input_tokens"].shape for text in batch["texts"]) for batch in batches_of(grouped, 300)
    }
    assert len(shapes) == 1
    ((short, long),) = shapes
    assert short[0] * short[1] + long[0] * long[1] < 0.7 * 64 * T
    assert long[1] == T


def test_a_batch_that_does_not_fit_is_left_as_it_is():
    source = Texts(8, mostly_short)
    whole = source.whole_batch(0)
    width = int(np.sort(text_lengths(whole))[3])
    assert "texts" in ByLength(source, Cut(1, 1, width)).group(whole)
    assert ByLength(source, Cut(1, 1, width - 1)).group(whole) is whole


def test_it_resumes_at_any_step():
    grouped = by_length(Texts(64, mostly_short), 1)
    for whole, resumed in zip(
        batches_of(grouped, 6)[2:], batches_of(by_length(Texts(64, mostly_short), 1), 4, 2), strict=True
    ):
        np.testing.assert_array_equal(resumed["user"], whole["user"])
        for ours, theirs in zip(resumed["texts"], whole["texts"], strict=True):
            for name, values in theirs.items():
                np.testing.assert_array_equal(ours[name], values)


@pytest.mark.parametrize(
    ("size", "lengths", "shards"),
    [
        (64, lambda generator, size: np.full(size, T), 1),  # nothing to spare
        (64, lambda generator, size: generator.integers(17, T, size), 1),  # hardly anything
        (6, mostly_short, 4),  # no equal parts for the devices
        (4, mostly_short, 1),  # of so few rows, nobody knows how many are short
        (64, lambda generator, size: np.zeros(size, int), 128),
    ],
)
def test_where_it_does_not_pay_batches_stay_as_they_are(size, lengths, shards):
    source = Texts(size, lengths)
    assert by_length(source, shards) is source


def test_rows_without_a_target_need_no_text():
    source = Texts(64, lambda generator, size: np.where(np.arange(size) < 60, 0, T))
    (batch,) = batches_of(by_length(source, 1), 1)
    assert batch["texts"][0]["decoder_input_tokens"].shape[1] == 1
