"""Histories side by side: the same events, targets and ages, each history in one row, and few rows."""

import itertools
from collections import Counter

import numpy as np
import pytest

from user_llm.data.packing import Packed, packed

S = 12  # slots of a history; a packed row has 16


class Histories:
    """Batches of histories of lengths that the step and `lengths(generator, size)` give."""

    def __init__(self, size, lengths):
        self._size, self._lengths = size, lengths

    def whole_batch(self, step):
        generator = np.random.default_rng(step)
        lengths = self._lengths(generator, self._size)[:, None]
        item, rating = (generator.integers(1, high, (self._size, S + 1)).astype(np.int32) for high in (99, 6))
        batch = {"user": np.arange(self._size)}
        for name, values in (("item", item), ("rating", rating)):
            batch[f"history/{name}"] = values[:, :-1] * (np.arange(S) >= S - lengths)
            batch[f"label/{name}"] = values[:, -1]
        return batch

    def iterator(self, start_step=0, *, threads, prefetch):
        return map(self.whole_batch, itertools.count(start_step))


def mostly_short(generator, size):
    return np.where(generator.random(size) < 0.9, generator.integers(1, 5, size), generator.integers(5, S + 1, size))


def histories_of(batch):
    """All events in order with age and target, one tuple a user, of a batch as it is or packed: with how often."""
    if "history/user" not in batch:
        following = {
            name: np.concatenate([batch[f"history/{name}"][:, 1:], batch[f"label/{name}"][:, None]], axis=1)
            for name in ("item", "rating")
        }
        rows = []
        for row in range(len(batch["user"])):
            slots = np.flatnonzero(batch["history/item"][row])
            events = zip(*(batch[f"history/{name}"][row, slots] for name in ("item", "rating")), strict=True)
            targets = zip(*(following[name][row, slots] for name in ("item", "rating")), strict=True)
            rows.append([(*e, S - 1 - s, *t) for e, s, t in zip(events, slots, targets, strict=True)])
    else:
        names = ("history/item", "history/rating", "history/age", "target/item", "target/rating")
        rows = []
        for user in range(1, batch["history/user"].max() + 1):
            (row,) = np.unique(np.nonzero(batch["history/user"] == user)[0])  # in one row
            slots = np.flatnonzero(batch["history/user"][row] == user)
            assert np.ptp(slots) == len(slots) - 1  # side by side
            rows.append([tuple(batch[name][row, slot] for name in names) for slot in slots])
    return Counter(tuple(map(tuple, row)) for row in rows if row)


@pytest.mark.parametrize("multiple", [1, 8])
def test_rows_hold_the_events_of_the_batch(multiple):
    source = Histories(64, mostly_short)
    dense = packed(source, multiple)
    assert isinstance(dense, Packed)
    batches = list(itertools.islice(dense.iterator(5, threads=1, prefetch=1), 100))
    assert {values.shape for batch in batches for values in batch.values()} == {(dense.rows, 16)}
    assert dense.rows % multiple == 0
    assert dense.rows * 16 < 0.6 * 64 * S
    for step, batch in enumerate(batches[:5], 5):
        whole = source.whole_batch(step)
        assert histories_of(batch) == histories_of(whole)
        empty = batch["history/user"] == 0
        assert all((values[empty] == 0).all() for values in batch.values())
        assert {values.dtype for values in batch.values()} == {np.dtype(np.int32)}
        np.testing.assert_array_equal(dense.whole_batch(step)["user"], whole["user"])


def test_a_batch_that_does_not_fit_is_left_as_it_is():
    source = Histories(64, mostly_short)
    batch = source.whole_batch(0)
    assert Packed(source, 3).pack(batch) is batch
    full = Packed(source, 1000)
    assert histories_of(full.pack(batch)) == histories_of(batch)


def test_full_histories_stay_as_they_are():
    source = Histories(64, lambda generator, size: generator.integers(S - 2, S + 1, size))
    assert packed(source, 1) is source
