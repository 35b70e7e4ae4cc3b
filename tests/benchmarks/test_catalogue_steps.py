"""The benchmark trains what it says it trains, and its table shows what could not be run too."""

import dataclasses

import numpy as np
import pytest

from benchmarks.catalogue_steps import KINDS, markdown
from benchmarks.contenders import jax_catalogue
from benchmarks.protocol import Unavailable
from benchmarks.workload import Workload

TINY = Workload(2, history_length=4, num_items=50, num_layers=1, width=8, num_heads=2, hidden=8)


@pytest.mark.parametrize(("softmax", "tables"), KINDS[::2])
def test_steps_train_and_are_weighed(softmax, tables):
    options = {"workload": dataclasses.asdict(TINY), "softmax": softmax, "tables": tables}
    work = jax_catalogue.setup(options)
    losses = [work.round() for _ in range(3)]
    assert losses == [pytest.approx(np.log(TINY.num_items), abs=0.1)] * 3  # which knows nothing yet
    assert losses[2] != losses[0]
    assert work.facts["bytes"] > 4 * 51 * 8  # the table alone


def test_a_step_without_room_says_so(monkeypatch):
    monkeypatch.setattr(jax_catalogue, "available_bytes", lambda: 1000)
    with pytest.raises(Unavailable, match=r"a step takes 0\.0 GB, and 0\.0 GB are free"):
        jax_catalogue.setup({"workload": dataclasses.asdict(TINY), "softmax": "sampled", "tables": "rowwise"})


def test_the_table_shows_medians_and_what_was_skipped():
    kind = {"items": 1_000_000, "softmax": "sampled", "tables": "adam"}
    lines = markdown([{**kind, "seconds": [0.1, 0.3, 0.2], "bytes": 2.5e9}, {**kind, "skipped": "no room"}]).split("\n")
    assert lines[2] == "| 1,000,000 | sampled | adam | 200 | 2.50 |"
    assert lines[3] == "| 1,000,000 | sampled | adam | skipped: no room |  |"
