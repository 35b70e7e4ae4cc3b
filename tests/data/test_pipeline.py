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


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_host_stripes_are_disjoint_and_together_the_one_host_order(hosts):
    whole = TrainBatches(Numbers(31), 8, seed=2)
    parts = [TrainBatches(Numbers(31), 8, seed=2, host_index=h, host_count=hosts) for h in range(hosts)]
    for step in range(3):  # within the first epoch: no example can come twice
        stripes = [part.batch(step)["id"] for part in parts]
        assert len(np.unique(np.concatenate(stripes))) == 8
        np.testing.assert_array_equal(np.concatenate(stripes), whole.batch(step)["id"])


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


@pytest.mark.parametrize("hosts", [1, 2])
def test_evaluation_sees_every_example_once_in_order_whatever_the_batch(hosts):
    parts = [list(evaluation_batches(Numbers(11), 4, host_index=h, host_count=hosts)) for h in range(hosts)]
    batches = [
        {name: np.concatenate([part[name] for part in row]) for name in ("id", "weight")}
        for row in zip(*parts, strict=True)
    ]
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
        (5, {"batch_size": 0}, "positive multiple"),
        (5, {"host_count": 3}, "positive multiple of the 3 hosts"),
        (5, {"host_index": 2, "host_count": 2}, "host_index must lie between 0 and 1"),
    ],
)
def test_impossible_streams_are_refused(length, options, message):
    with pytest.raises(ValueError, match=message):
        TrainBatches(Numbers(length), **{"batch_size": 4, "seed": 0, **options})


def test_negative_steps_are_refused():
    with pytest.raises(ValueError, match="count from 0"):
        TrainBatches(Numbers(5), 2, seed=0).batch(-1)
