"""Neighbours of items against loops over users."""

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest

from user_llm.evaluation import blocks, neighbours
from user_llm.evaluation.neighbours import followers, neighbour_scores, similar_items
from user_llm.evaluation.places import Places

ITEMS = 7


@pytest.fixture(scope="module")
def timelines():
    """Items, offsets, and the places of the newest event of each user, which are held out."""
    generator = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(generator.integers(0, 9, 30))])
    item = generator.integers(1, ITEMS, offsets[-1]).astype(np.int32)  # nobody has met the last item
    return item, offsets, offsets[1:][np.diff(offsets) > 0] - 1


def known(item, offsets):
    return [item[start : max(start, end - 1)].tolist() for start, end in itertools.pairwise(offsets)]


@pytest.mark.parametrize("block", [8, 1000])
def test_followers_are_those_of_a_loop(timelines, block, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", block)
    item, offsets, held_out = timelines
    expected = np.zeros((ITEMS + 1, ITEMS + 1))
    for events in known(item, offsets):
        for place, one in enumerate(events):
            for distance, other in enumerate(events[place + 1 :][: neighbours.REACH], 1):
                expected[one, other] += 1 / distance
    expected /= np.maximum(expected.sum(axis=1, keepdims=True), 1e-9)
    found = followers(item, offsets, ITEMS, Places([held_out], len(item)))
    np.testing.assert_allclose(found.toarray(), expected, rtol=1e-6)


@pytest.mark.parametrize("longest", [3, 500])
@pytest.mark.parametrize("kept", [2, 200])
@pytest.mark.parametrize("block", [8, 1000])
def test_similar_items_are_those_of_a_loop(timelines, longest, kept, block, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", block)
    monkeypatch.setattr(neighbours, "NEIGHBOURS", kept)
    monkeypatch.setattr(neighbours, "LONGEST", longest)
    monkeypatch.setattr(neighbours, "_COLUMNS", 3)
    item, offsets, held_out = timelines
    users = defaultdict(set)
    for user, events in enumerate(known(item, offsets)):
        for one in events[-longest:]:
            users[one].add(user)
    found = similar_items(item, offsets, ITEMS, Places([held_out], len(item))).toarray()
    for one in range(ITEMS + 1):
        cosines = {
            other: len(users[one] & users[other]) / math.sqrt(len(users[one]) * len(users[other]))
            for other in range(ITEMS + 1)
            if other != one and users[one] & users[other]
        }
        best = sorted(cosines, key=lambda other: (-round(cosines[other], 5), other))[:kept]
        np.testing.assert_allclose(found[one, best], [cosines[other] for other in best], rtol=1e-5)
        assert np.count_nonzero(found[one]) == len(best)


def test_held_out_events_change_nothing(timelines):
    item, offsets, held_out = timelines
    other, places = item.copy(), Places([held_out], len(item))
    other[held_out] = ITEMS
    for count in (followers, similar_items):
        np.testing.assert_array_equal(
            count(item, offsets, ITEMS, places).toarray(), count(other, offsets, ITEMS, places).toarray()
        )


def test_scores_add_the_rows_of_a_history_and_the_newest_most(timelines):
    item, offsets, held_out = timelines
    matrix = followers(item, offsets, ITEMS, Places([held_out], len(item)))
    counts = np.arange(ITEMS + 1)
    history = np.array([[0, 3, 1], [2, 2, 4], [0, 0, 7]], np.int32)
    scores = neighbour_scores(matrix, counts, decay=0.5)({"history/item": history})
    found = scores.all()
    rows = matrix.toarray()
    expected = [rows[3] / 2 + rows[1], rows[2] / 4 + rows[2] / 2 + rows[4], rows[7]]
    np.testing.assert_allclose(found[:, 1:], np.array(expected)[:, 1:] + 1e-6 * counts[1:] / ITEMS, rtol=1e-5)
    assert (found[:, 0] == -np.inf).all()
    assert found[2, 1:].argmax() == ITEMS - 1  # nobody goes on from it: the most popular
    for first in range(0, ITEMS + 1, 3):
        np.testing.assert_array_equal(scores.block(first, 3), found[:, first : first + 3])
