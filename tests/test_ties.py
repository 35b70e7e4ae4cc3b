"""Other orders of equal times, made in blocks, against shuffling the whole table and building windows anew."""

import dataclasses

import numpy as np
import pytest

from user_llm.data.timelines import Catalogue, TimelineTable
from user_llm.data.windows import Windows
from user_llm.evaluation import blocks
from user_llm.evaluation.places import Places
from user_llm.inspect.ties import other_orders

ITEMS, LENGTH = 30, 4


@pytest.fixture
def table():
    """Forty timelines in which most times are another event's, too."""
    random = np.random.default_rng(0)
    lengths = random.integers(0, 15, 40)
    offsets = np.cumsum([0, *lengths])
    events = int(offsets[-1])
    names = ["", *map(str, range(ITEMS))]
    return TimelineTable(
        name="toy",
        item=random.integers(1, ITEMS + 1, events).astype(np.int32),
        rating=random.integers(1, 6, events).astype(np.int32),
        timestamp=np.cumsum(random.integers(0, 2, events)),
        offsets=offsets,
        user_ids=list(map(str, range(40))),
        catalogue=Catalogue(names, names, [""], np.zeros((ITEMS + 1, 1), np.int32)),
        rating_names=["", *"12345"],
        fingerprint="",
        summary={},
    )


def splits(table):
    return {
        split: Windows(table, history_length=LENGTH, min_history=2, split=split, validation=True, times=True, seen=True)
        for split in ("validation", "test")
    }


def held_out_and_counts(table):
    """Places of all held-out labels, and the counts of everything else."""
    held_out = np.concatenate([of.label_positions(np.arange(len(of))) for of in splits(table).values()])
    counts = np.bincount(np.delete(table.item, held_out), minlength=ITEMS + 1)
    return held_out, counts


def shuffled(table, seed):
    """The table with all events of equal time shuffled at once."""
    user = np.repeat(np.arange(table.num_users), np.diff(table.offsets))
    order = np.lexsort((np.random.default_rng(seed).random(len(user)), table.timestamp, user))
    return dataclasses.replace(table, item=table.item[order], rating=table.rating[order])


@pytest.mark.parametrize("block", [8, 40, 1000])
def test_orders_equal_those_of_the_whole_table(table, block, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", block)
    held_out, counts = held_out_and_counts(table)
    ids = np.arange(0, len(splits(table)["test"]), 3)
    labels = splits(table)["test"].label_positions(ids)
    lengths = {"history": LENGTH, "seen": splits(table)["test"].longest}
    before = counts.copy()
    orders = other_orders(table, Places([held_out], len(table.item)), counts, labels[::-1], lengths, range(3))
    for seed, order in enumerate(orders):
        other = shuffled(table, seed)
        assert (other.item != table.item).any()
        np.testing.assert_array_equal(order.counts, held_out_and_counts(other)[1])
        expected = splits(other)["test"].gather(ids)
        found = order.windows.gather(np.arange(len(order.windows)))
        assert found.keys() == expected.keys()
        for name, rows in expected.items():
            np.testing.assert_array_equal(found[name], rows, strict=True)
    assert any((order.counts != before).any() for order in orders)
    np.testing.assert_array_equal(counts, before)


def test_ratings_in_bytes_give_the_same_windows(table):
    held_out, counts = held_out_and_counts(table)
    narrow = dataclasses.replace(table, rating=table.rating.astype(np.uint8))
    one, other = (
        other_orders(of, Places([held_out], len(table.item)), counts, held_out[:5], {"history": LENGTH}, [0])[0].windows
        for of in (table, narrow)
    )
    for name, rows in one.gather(np.arange(5)).items():
        np.testing.assert_array_equal(other.gather(np.arange(5))[name], rows, strict=True)
