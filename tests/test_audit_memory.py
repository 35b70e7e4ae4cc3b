"""Counts and the audit hold what their docstrings say, of tables far longer than a block."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from user_llm.data.timelines import Catalogue, TimelineTable
from user_llm.evaluation import blocks
from user_llm.evaluation.baselines import item_counts
from user_llm.inspect import audit as auditor

HISTORY = 5
BLOCK = 1 << 13


class Labels:
    """Windows of timelines of one length, as far as their labels go, worked out and not kept.

    Args:
      users, events: timelines, and events in each.
      first, end: which events of a timeline are labels.
    """

    def __init__(self, users, events, first, end):
        self.users, self.events, self.first, self.of_each = users, events, first, end - first

    def __len__(self):
        return self.users * self.of_each

    def label_positions(self, ids):
        user, place = np.divmod(ids, self.of_each)
        return user * self.events + self.first + place


def make(users, events, items):
    """A table in which all events of a user have one time, and its windows."""
    random = np.random.default_rng(0)
    names = ["", *map(str, range(items))]
    table = TimelineTable(
        name="toy",
        item=random.integers(1, items + 1, users * events, np.int32),
        rating=random.integers(1, 6, users * events, np.uint8),
        timestamp=np.arange(users * events) // events,
        offsets=np.arange(users + 1) * events,
        user_ids=list(map(str, range(users))),
        catalogue=Catalogue(names, names, ["", "all"], np.ones((items + 1, 1), np.int32)),
        rating_names=["", *"12345"],
        fingerprint="",
        summary={},
    )
    ranges = {"train": (HISTORY, events - 2), "validation": (events - 2, events - 1), "test": (events - 1, events)}
    return table, {split: Labels(users, events, *ends) for split, ends in ranges.items()}


def peak(work):
    """What `work` gives, and the bytes it held at most."""
    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


LARGE = [(500, 200), (500, 4000), (20_000, 100)]  # users, events of each


@pytest.mark.parametrize(("users", "events"), LARGE)
def test_counts_hold_a_block_and_the_items(users, events, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", BLOCK)
    items = 1000
    table, windows = make(users, events, items)
    counts, held = peak(lambda: item_counts(table.item, items, [windows["validation"], windows["test"]]))
    expected = np.bincount(table.item.reshape(users, events)[:, :-2].ravel(), minlength=items + 1)
    np.testing.assert_array_equal(counts, expected)
    assert held < 50 * BLOCK + 30 * items + 50_000


@pytest.mark.parametrize(("users", "events"), LARGE)
def test_the_audit_holds_what_it_says(users, events, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", BLOCK)
    monkeypatch.setattr(auditor, "_TIE_USERS", 100)
    monkeypatch.setattr(auditor, "_contents", lambda *_: [])  # reads batches, which are as large as they are
    table, windows = make(users, events, 50)
    config = dict(
        data=dict(history_length=HISTORY, validation=True),
        encoder=dict(checkpoint=""),
        llm=dict(checkpoint="", vocabulary="none", trim_vocabulary=False),
        evaluation=dict(batch_size=50, exclude="nothing"),
    )
    counts = item_counts(table.item, 50, [windows["validation"], windows["test"]])
    experiment = SimpleNamespace(
        table=table, windows=windows.get, item_counts=counts, config=ConfigDict(config), mesh=None
    )
    findings, held = peak(lambda: auditor.audit(experiment))
    of = {finding.check: (finding.count, finding.of) for finding in findings}
    assert of["held-out events in training"] == (0, 2 * users)
    assert of["every window once"] == (0, users * (events - HISTORY))
    assert of["test labels that are last by a tie"] == (users, users)
    assert held < 100 * BLOCK + 40 * users + users * events / 4 + 50_000
