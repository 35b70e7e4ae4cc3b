"""Rows of the next-item table that need no training."""

import dataclasses
import logging

import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.timelines import make_table
from user_llm.tasks import next_item
from user_llm.tasks.task_data import TaskData

__all__ = ["make_table"]


class Study(TaskData):
    """Timelines alone."""

    catalogue = rating_names = vocabulary = None
    table = None

    def __init__(self, table):
        super().__init__()
        self.table = table
        self.config = ConfigDict({"data": {"history_length": 3, "min_history": 1, "validation": True}})


@pytest.fixture
def study(make_table):
    table = make_table([5, 5, 5])
    item = np.array([1, 2, 3, 4, 5, 1, 2, 3, 6, 7, 1, 2, 3, 8, 9], np.int32)
    return Study(dataclasses.replace(table, item=item))


def test_what_follows_comes_first_and_held_out_events_do_not_count(study):
    rows = next_item._neighbour_rows(study)
    assert [*rows] == [next_item.FOLLOWERS, next_item.SIMILAR]
    for scores in rows.values():
        best = scores({"history/item": np.array([[0, 1, 2]])}).all()[0].argsort()[::-1]
        assert set(best[:3]) == {1, 2, 3}  # items 4 to 9 are nobody's training


def test_more_events_than_counts_are_made_for_leave_the_rows_out(study, monkeypatch, caplog):
    monkeypatch.setattr(next_item, "MOST_COUNTED", 14)
    with caplog.at_level(logging.INFO):
        assert next_item._neighbour_rows(study) == {}
    assert "Item-kNN are left out: 15 events are more than 14" in caplog.text
