"""Baselines against counting by hand, on timelines where the held-out labels would change the answer."""

import dataclasses

import numpy as np
import pytest

from user_llm.data.timelines import TimelineTable
from user_llm.data.windows import Windows
from user_llm.evaluation import baselines, blocks
from user_llm.evaluation.ranks import rank_labels


@dataclasses.dataclass(frozen=True)
class Labels:
    """Windows, as far as a baseline sees them."""

    positions: np.ndarray

    def __len__(self):
        return len(self.positions)

    def label_positions(self, ids):
        return self.positions[ids]


# Three users' events, one after the other; the last event of each is a test label, the one before for validation.
ITEM = np.array([1, 2, 2, 3, 4, 4, 2, 3, 3, 1, 3, 3], np.int32)
TEST = Labels(np.array([3, 7, 11]))
VALIDATION = Labels(np.array([2, 6, 10]))
BATCH = {"history/item": np.array([[0, 1, 2], [3, 2, 4], [0, 0, 5]], np.int32)}


def test_counts_leave_out_what_is_held_out():
    np.testing.assert_array_equal(baselines.item_counts(ITEM, 5, [TEST]), [0, 2, 3, 2, 2, 0])
    np.testing.assert_array_equal(baselines.item_counts(ITEM, 5, [TEST, VALIDATION]), [0, 2, 1, 1, 2, 0])


@pytest.mark.parametrize("block", [8, 1000])
def test_counts_in_blocks_equal_a_loop(monkeypatch, block):
    monkeypatch.setattr(blocks, "BLOCK", block)
    generator = np.random.default_rng(0)
    item = generator.integers(1, 6, 50).astype(np.int32)
    test, validation = (Labels(np.sort(half)) for half in np.split(generator.permutation(50)[:30], 2))
    held_out = {*test.positions.tolist(), *validation.positions.tolist()}
    expected = [sum(item[event] == one for event in range(50) if event not in held_out) for one in range(7)]
    assert baselines.item_counts(item, 6, [test, validation]).tolist() == expected
    expected = [sum(item[event] == one for event in test.positions) for one in range(7)]
    assert baselines.label_counts(item, 6, [test]).tolist() == expected


def test_changing_a_test_label_changes_no_count():
    other = ITEM.copy()
    other[TEST.positions] = 5
    np.testing.assert_array_equal(baselines.item_counts(other, 5, [TEST]), baselines.item_counts(ITEM, 5, [TEST]))


def test_popularity_is_the_same_for_everybody():
    counts = baselines.item_counts(ITEM, 5, [TEST])
    scores = baselines.popularity_scores(counts)(BATCH).all()
    np.testing.assert_array_equal(scores, np.tile([-np.inf, 2, 3, 2, 2, 0], (3, 1)))


def test_shared_categories_come_first_and_popularity_orders_both_halves():
    counts = np.array([0, 50, 40, 30, 20, 10])
    #            padding  item 1  item 2  item 3  item 4  item 5
    categories = np.array([[0, 0], [1, 2], [2, 0], [1, 3], [3, 0], [0, 0]])
    scores = baselines.category_popularity_scores(counts, categories)(BATCH).all()
    order = np.argsort(-scores, axis=1)
    np.testing.assert_array_equal(order[0], [1, 2, 3, 4, 5, 0])  # newest 2: category 2 is that of 1 and 2
    np.testing.assert_array_equal(order[1], [3, 4, 1, 2, 5, 0])  # newest 4: category 3 is that of 3 and 4
    np.testing.assert_array_equal(order[2], [1, 2, 3, 4, 5, 0])  # newest 5 has none: plain popularity


def test_category_popularity_equals_a_loop_over_sets():
    generator = np.random.default_rng(0)
    counts = np.concatenate([[0], generator.permutation(np.arange(1, 31))])
    categories = np.zeros((31, 4), np.int32)
    for item in range(1, 31):
        chosen = generator.choice(np.arange(1, 7), size=generator.integers(0, 5), replace=False)
        categories[item, : len(chosen)] = chosen
    history = generator.integers(1, 31, size=(40, 5)).astype(np.int32)
    labels = generator.integers(1, 31, size=40)
    scores = baselines.category_popularity_scores(counts, categories)({"history/item": history})
    ranks = rank_labels(scores, labels).ranks
    sets = [set(row) - {0} for row in categories.tolist()]
    for row, (newest, label) in enumerate(zip(history[:, -1], labels, strict=True)):
        ordered = sorted(range(1, 31), key=lambda item: (not sets[item] & sets[newest], -counts[item]))
        assert ranks[row] == ordered.index(label) + 1
    for first in range(0, 31, 7):
        np.testing.assert_array_equal(scores.block(first, 7), scores.all()[:, first : first + 7])


def test_baselines_read_real_windows():
    """The shape of the contract with `user_llm.data`: flat columns, label positions, batches of `gather`."""
    columns = dict(item=ITEM, rating=np.ones_like(ITEM), timestamp=np.arange(12), offsets=np.array([0, 4, 8, 12]))
    names = dict(name="toy", user_ids=list("abc"), catalogue=None, rating_names=["", "1"], fingerprint="", summary={})
    table = TimelineTable(**columns, **names)
    test = Windows(table, history_length=2, split="test", validation=True)
    validation = Windows(table, history_length=2, split="validation", validation=True)
    np.testing.assert_array_equal(test.label_positions(np.arange(3)), TEST.positions)
    counts = baselines.item_counts(table.item, 5, [test, validation])
    np.testing.assert_array_equal(counts, [0, 2, 1, 1, 2, 0])
    assert baselines.popularity_scores(counts)(test.gather(np.arange(3))).all().shape == (3, 6)


def test_categories_of_the_newest_event_come_first():
    item_categories = np.array([[0, 0], [1, 0], [2, 3], [3, 0], [1, 2], [0, 0]])
    counts = np.array([0, 5, 1, 9])
    scores = baselines.latest_category_scores(counts, item_categories)(BATCH).all()  # newest events: 2, 4 and 5
    order = [np.argsort(-row[1:], kind="stable") + 1 for row in scores]
    assert [row.tolist() for row in order] == [[3, 2, 1], [1, 2, 3], [3, 1, 2]]
    assert np.isneginf(scores[:, 0]).all()
