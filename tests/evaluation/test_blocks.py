"""Blocks hold everything once and in order, and no more than they should; sets of places equal Python's."""

import itertools

import numpy as np
import pytest

from user_llm.evaluation import blocks
from user_llm.evaluation.places import Places


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 16)


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 50])
def test_spans_follow_one_another(count):
    spans = list(blocks.spans(count))
    assert [row for start, stop in spans for row in range(start, stop)] == list(range(count))
    assert all(0 < stop - start <= 16 for start, stop in spans)


class Labels:
    """Windows, as far as their labels go."""

    def __init__(self, positions):
        self.positions = positions

    def __len__(self):
        return len(self.positions)

    def label_positions(self, ids):
        assert 0 < len(ids) <= 16
        return self.positions[ids]


def test_labels_of_several_splits_come_one_after_the_other(random):
    one, other = random.integers(0, 99, 40), random.integers(0, 99, 3)
    found = list(blocks.label_blocks(Labels(one), Labels(other[:0]), Labels(other)))
    assert np.concatenate(found).tolist() == [*one, *other]


@pytest.mark.parametrize("ordered", [True, False])
def test_places_are_cut_at_the_multiples_of_a_block(random, ordered):
    places = random.integers(0, 90, 60)
    parts = np.split(np.sort(places) if ordered else places, [0, 20, 50])
    found = list(blocks.by_span(parts))
    assert sorted(place for _, here in found for place in here.tolist()) == sorted(places.tolist())
    for start, here in found:
        assert start % 16 == 0
        assert len(here)
        assert start <= here[0]
        assert here[-1] < start + 16
        assert (np.diff(here) >= 0).all()
    if ordered:
        assert len(found) <= 6 + len(parts)


@pytest.mark.parametrize("lengths", [[], [0, 0], [16], [17], [40, 1, 0, 2], [5, 5, 6, 1], [0, 3, 0, 20, 0, 0]], ids=str)
def test_blocks_of_users_hold_whole_timelines(lengths):
    offsets = np.cumsum([0, *lengths])
    found = list(blocks.user_spans(offsets))
    assert [user for first, end in found for user in range(first, end)] == list(range(len(lengths)))
    for first, end in found:
        assert end - first == 1 or offsets[end] - offsets[first] <= 16
    for (first, _), (_, end) in itertools.pairwise(found):
        assert offsets[end] - offsets[first] > 16  # or one would have done


@pytest.mark.parametrize("events", [1, 8, 16, 37, 48])
def test_a_set_of_places_is_a_set(random, events):
    for _ in range(20):
        parts = [random.integers(0, events, size) for size in random.integers(0, 30, 3)]
        places, expected = Places(parts, events), {int(place) for part in parts for place in part}
        assert len(places) == len(expected)
        assert places.holds(np.arange(events)).tolist() == [event in expected for event in range(events)]
        start, stop = sorted(random.integers(0, events + 1, 2).tolist())
        assert places.mask(start, stop).tolist() == [event in expected for event in range(start, stop)]


def test_a_set_of_no_places():
    assert len(Places([], 0)) == 0
    assert Places([np.zeros(0, np.int64)], 9).mask(0, 9).tolist() == [False] * 9
    assert Places([], 9).holds(np.zeros(0, np.int64)).tolist() == []
