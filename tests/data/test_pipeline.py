import json
from itertools import chain

import numpy as np
import pytest

from user_llm.data.pipeline import TrainBatches, evaluation_batches
from user_llm.data.windows import Windows


class Numbers:
    """A source whose examples are their own numbers."""

    def __init__(self, length):
        self._length = length

    def __len__(self):
        return self._length

    def gather(self, ids):
        return {"id": np.array(ids)}


def stream(batches, steps):
    return np.concatenate([batches.batch(step)["id"] for step in range(steps)])


def test_every_epoch_has_every_example_once_in_a_new_order():
    ids = stream(TrainBatches(Numbers(23), 5, seed=1), 23)  # five epochs, batches straddle them
    epochs = ids.reshape(5, 23)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(23), (5, 1)))
    assert len(np.unique(epochs, axis=0)) == 5


def test_a_batch_larger_than_the_source_spans_several_epochs():
    ids = stream(TrainBatches(Numbers(3), 10, seed=0), 3)
    np.testing.assert_array_equal(np.sort(ids.reshape(10, 3), axis=1), np.tile(np.arange(3), (10, 1)))


def test_a_batch_depends_on_seed_and_step_alone():
    forward, backward = TrainBatches(Numbers(50), 8, seed=4), TrainBatches(Numbers(50), 8, seed=4)
    steps = range(30)
    there = {step: forward.batch(step)["id"].tolist() for step in steps}
    back = {step: backward.batch(step)["id"].tolist() for step in reversed(steps)}
    assert there == back
    assert stream(TrainBatches(Numbers(50), 8, seed=5), 30).tolist() != list(chain(*there.values()))


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [6, 7], [1, 4, 5], [5]])
def test_a_host_reads_its_rows_of_the_one_host_batch(rows):
    whole, part = (TrainBatches(Numbers(31), 8, seed=2, rows=rows) for rows in (None, np.array(rows)))
    for step in range(9):  # over the seam of two epochs
        batch = whole.batch(step)["id"]
        np.testing.assert_array_equal(part.batch(step)["id"], batch[rows])
        np.testing.assert_array_equal(part.ids(step), batch[rows])
        np.testing.assert_array_equal(part.whole_batch(step)["id"], batch)


def test_iterator_restored_at_a_step_continues_as_if_uninterrupted(table):
    windows = Windows(table, history_length=3, split="train")
    batches = TrainBatches(windows, 4, seed=9)
    uninterrupted = batches.iterator()
    expected = [next(uninterrupted) for _ in range(12)]
    broken = batches.iterator()
    for _ in range(5):
        next(broken)
    state = json.loads(json.dumps(broken.get_state()))
    restored = TrainBatches(windows, 4, seed=9).iterator()
    restored.set_state(state)
    sought = TrainBatches(windows, 4, seed=9).iterator(start_step=5)
    assert sought.get_state() == state
    for batch in expected[5:]:
        for again in (next(restored), next(sought)):
            assert again.keys() == batch.keys()
            for name in batch:
                np.testing.assert_array_equal(again[name], batch[name])


def test_evaluation_sees_every_example_once_in_order():
    batches = list(evaluation_batches(Numbers(11), 4))
    assert [len(batch["id"]) for batch in batches] == [4, 4, 4]
    ids = np.concatenate([batch["id"] for batch in batches])
    weight = np.concatenate([batch["weight"] for batch in batches])
    assert weight.dtype == np.float32
    assert ids[weight == 1].tolist() == list(range(11))
    assert weight.tolist() == [1] * 11 + [0]


@pytest.mark.parametrize(
    ("length", "options", "message"),
    [
        (0, {}, "no timeline is long enough"),
        (5, {"seed": -1}, "must not be negative"),
        (5, {"batch_size": 0}, "must be positive"),
        (5, {"rows": [0, 4]}, "rows must lie between 0 and 3"),
    ],
)
def test_impossible_streams_are_refused(length, options, message):
    with pytest.raises(ValueError, match=message):
        TrainBatches(Numbers(length), **{"batch_size": 4, "seed": 0, **options})


def test_negative_steps_are_refused():
    with pytest.raises(ValueError, match="count from 0"):
        TrainBatches(Numbers(5), 2, seed=0).batch(-1)
