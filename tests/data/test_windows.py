import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from user_llm.data import windows
from user_llm.data.windows import Windows
from user_llm.errors import UserError


def naive_windows(table, history_length, split, min_history, validation):
    """Every window of a split, event by event, straight from the definition."""
    rows = []
    for user in range(table.num_users):
        events = range(table.offsets[user], table.offsets[user + 1])
        labels = [place for place in range(len(events)) if place >= min_history]
        test = labels[-1:]
        held_out = labels[-2:-1] if validation else []
        chosen = {"test": test, "validation": held_out, "train": [p for p in labels if p not in test + held_out]}
        for place in chosen[split]:
            past = [events[p] for p in range(max(0, place - history_length), place)]
            rows.append((user, past, events[place]))
    return rows


options = st.integers(1, 6).flatmap(
    lambda length: st.fixed_dictionaries(
        {
            "lengths": st.lists(st.integers(0, 12), min_size=1, max_size=6),
            "history_length": st.just(length),
            "min_history": st.none() | st.integers(1, length),
            "validation": st.booleans(),
        }
    )
)


@settings(max_examples=80, deadline=None)
@given(drawn=options, random=st.randoms(use_true_random=False))
def test_gather_equals_the_definition(make_table, drawn, random):
    table = make_table(drawn.pop("lengths"))
    minimum = drawn["min_history"] or drawn["history_length"]
    for split in ("train", "test") + ("validation",) * drawn["validation"]:
        windows = Windows(table, split=split, **drawn)
        expected = naive_windows(table, drawn["history_length"], split, minimum, drawn["validation"])
        assert len(windows) == len(expected) == table.window_counts(**drawn)[split]
        order = random.sample(range(len(expected)), len(expected))
        batch = windows.gather(np.array(order, np.int64))
        assert windows.label_positions(np.array(order, np.int64)).tolist() == [expected[i][2] for i in order]
        for row, number in enumerate(order):
            user, past, label = expected[number]
            padding = [0] * (drawn["history_length"] - len(past))
            assert batch["user"][row] == user
            assert batch["label/item"][row] == table.item[label]
            assert batch["label/rating"][row] == table.rating[label]
            assert batch["history/item"][row].tolist() == padding + table.item[past].tolist()
            assert batch["history/rating"][row].tolist() == padding + table.rating[past].tolist()


@settings(max_examples=40, deadline=None)
@given(drawn=options, stride=st.integers(1, 7))
def test_a_stride_keeps_every_label_so_far_from_a_users_newest(make_table, drawn, stride):
    table = make_table(drawn.pop("lengths"))
    every, some = (Windows(table, split="train", **drawn, stride=step) for step in (1, stride))
    ids = np.arange(len(every))
    users, labels = every.users(ids), every.label_positions(ids)
    newest = dict(zip(users, labels, strict=True))  # of a user, the last
    kept = [i for i in ids if (newest[users[i]] - labels[i]) % stride == 0]
    assert some.label_positions(np.arange(len(some))).tolist() == labels[kept].tolist()
    for name, values in some.gather(np.arange(len(some))).items():
        np.testing.assert_array_equal(values, every.gather(np.array(kept, np.int64))[name])


def test_with_a_stride_of_a_history_every_event_is_learnt_once(make_table):
    table = make_table([1, 2, 5, 9, 30])
    windows = Windows(table, history_length=5, split="train", min_history=1, validation=True, stride=5)
    batch = windows.gather(np.arange(len(windows)))
    targets = np.concatenate([batch["history/item"][:, 1:], batch["label/item"][:, None]], axis=1)
    learnt = np.sort(targets[batch["history/item"] > 0])
    first_and_held_out = [{0, n - 2, n - 1} for n in (1, 2, 5, 9, 30)]
    expected = [
        table.item[table.offsets[user] + place]
        for user, left_out in enumerate(first_and_held_out)
        for place in range(int(table.offsets[user + 1] - table.offsets[user]))
        if place not in left_out
    ]
    assert learnt.tolist() == sorted(expected)


@pytest.mark.parametrize("validation", [False, True])
@pytest.mark.parametrize("min_history", [None, 1])
def test_nothing_later_than_the_label_and_no_held_out_event_is_seen(table, min_history, validation):
    options = dict(history_length=5, min_history=min_history, validation=validation)
    gathered = {}
    for split in ("train", "test") + ("validation",) * validation:
        windows = Windows(table, split=split, **options)
        ids = np.arange(len(windows))
        batch = gathered[split] = windows.gather(ids)
        label, start = windows.label_positions(ids), table.offsets[batch["user"]]
        seen = batch["history/item"].astype(np.int64) - 1  # the item of position p is p + 1
        real = seen >= 0
        assert np.all((seen < label[:, None]) | ~real)
        assert np.all((seen >= start[:, None]) | ~real)
        assert np.all(real.sum(axis=1) >= windows.min_history)
    train = gathered["train"]
    trained_on = np.union1d(train["history/item"], train["label/item"])
    for split in set(gathered) - {"train"}:
        assert not np.isin(gathered[split]["label/item"], trained_on).any()


@settings(max_examples=20, deadline=None)
@given(drawn=options)
def test_what_a_user_has_met_is_all_before_the_label(make_table, drawn):
    table = make_table(drawn.pop("lengths"))
    windows = Windows(table, split="test", **drawn, seen=True)
    batch = windows.gather(np.arange(len(windows)))
    labels = windows.label_positions(np.arange(len(windows)))
    for user, label, seen in zip(batch["user"], labels, batch["seen/item"], strict=True):
        before = table.item[table.offsets[user] : label].tolist()
        assert seen.tolist() == [0] * (windows.longest - len(before)) + before
    assert batch["seen/item"].shape[1] == max((batch["seen/item"] > 0).sum(axis=1), default=0)


def test_batches_are_int32_and_leave_the_table_alone(table):
    windows = Windows(table, history_length=5, split="train", min_history=1)
    before = table.item.copy()
    batch = windows.gather(np.arange(len(windows)))
    assert {values.dtype for values in batch.values()} == {np.dtype(np.int32)}
    for values in batch.values():
        values[:] = -1
    np.testing.assert_array_equal(table.item, before)
    np.testing.assert_array_equal(windows.gather(np.array([0]))["label/item"], [table.item[1]])


@pytest.mark.parametrize("ids", [[-1], [0, 10_000]])
def test_numbers_out_of_range_are_refused(table, ids):
    with pytest.raises(IndexError, match="window numbers run from 0 to 13 in split 'train'"):
        Windows(table, history_length=5, split="train").gather(np.array(ids))


def test_more_users_than_a_batch_can_name_are_refused(make_table, monkeypatch):
    table = make_table([4, 4, 4])
    monkeypatch.setattr(windows, "MOST_USERS", 3)
    assert len(Windows(table, history_length=2, split="test")) == 3
    monkeypatch.setattr(windows, "MOST_USERS", 2)
    with pytest.raises(UserError, match="has 3 users, and windows number 2 at most"):
        Windows(table, history_length=2, split="test")


def test_windows_hold_nothing_a_window_and_nothing_an_event(make_table):
    """Some bytes a user, however long the timelines are."""
    held = []
    for events in (2_000, 20_000):
        table = make_table([events] * 5)
        tracemalloc.start()
        windows = Windows(table, history_length=5, split="train")
        windows.gather(np.arange(10))
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    assert held[1] < held[0] + 2_000


@pytest.mark.parametrize("shards", [1, 2, 3, 5])
def test_shards_are_of_whole_users_and_about_equal(make_table, shards):
    table = make_table(np.random.default_rng(1).integers(0, 40, 60))
    windows = Windows(table, history_length=3, split="train", min_history=1)
    bounds = windows.bounds(shards)
    assert bounds[[0, -1]].tolist() == [0, len(windows)]
    users = [set(windows.users(np.arange(first, end)).tolist()) for first, end in itertools.pairwise(bounds)]
    assert sum(map(len, users)) == len(set.union(*users))
    assert abs(np.diff(bounds) - len(windows) / shards).max() <= 40


def test_more_shards_than_users_are_refused(make_table):
    windows = Windows(make_table([9, 2, 8]), history_length=3, split="train")
    assert len(windows.bounds(2)) == 3
    with pytest.raises(UserError, match=r"2 users with windows .* do not make 3 shards: lower data.shards"):
        windows.bounds(3)
