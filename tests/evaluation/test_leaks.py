"""The auditor's arithmetic against plain Python, in one block and in several."""

import itertools

import numpy as np
import pytest

from user_llm.evaluation import blocks, leaks
from user_llm.evaluation.places import Places

# Nobody's events first, in the middle and at the end; one user has a single event.
OFFSETS = np.array([0, 0, 4, 5, 5, 5, 11, 20, 20])


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture(autouse=True, params=[8, 1000])
def block(request, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", request.param)


def owner(event):
    """The user whose event it is, by going through all users."""
    (user,) = [user for user, (start, end) in enumerate(itertools.pairwise(OFFSETS)) if start <= event < end]
    return user


def test_contains_finds_whole_parts_only(random):
    for _ in range(50):
        rows, parts = random.integers(0, 3, (8, 9)), random.integers(0, 3, (8, 3))
        lengths, part_lengths = random.integers(0, 10, 8), random.integers(0, 4, 8)
        expected = []
        for row, length, part, part_length in zip(rows, lengths, parts, part_lengths, strict=True):
            text, wanted = row[:length].tolist(), part[:part_length].tolist()
            starts = range(length - part_length + 1)
            expected.append(part_length > 0 and any(text[at : at + part_length] == wanted for at in starts))
        assert leaks.contains(rows, lengths, parts, part_lengths).tolist() == expected


def test_answers_are_what_a_batch_teaches_without_eos():
    targets = np.array([[5, 6, 7, 2, 0], [5, 2, 0, 0, 0], [5, 6, 7, 8, 0]])
    weights = np.array([[0, 1, 1, 1, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
    answers, lengths = leaks.answers_of({"decoder_target_tokens": targets, "decoder_loss_weights": weights})
    assert lengths.tolist() == [2, 0, 0]
    assert answers[0, :2].tolist() == [6, 7]


def test_prompts_that_know_the_label_are_told_from_those_whose_history_has_its_words():
    batch = {
        "prompt_tokens": np.array([[1, 5, 6, 0], [1, 5, 6, 0], [1, 5, 6, 0], [1, 5, 6, 0]]),
        "prompt_lengths": np.array([3, 3, 3, 3]),
        "decoder_target_tokens": np.array([[5, 6, 2], [5, 7, 2], [5, 6, 2], [5, 7, 2]]),
        "decoder_loss_weights": np.ones((4, 3)),
    }
    others = batch["prompt_tokens"].copy()
    others[2:, 1] = 4
    depends, holds = leaks.answers_in_prompts(batch, others)
    assert depends.tolist() == [False, False, True, True]
    assert holds.tolist() == [True, False, False, False]  # the words of the third may come from the label
    depends, holds = leaks.answers_in_prompts(batch, others[:, :3])  # prompts of another width are other prompts
    assert depends.tolist() == [True] * 4
    assert holds.tolist() == [False] * 4


@pytest.mark.parametrize("length", [1, 3, 7])
def test_expected_histories_are_slices_of_one_user(random, length):
    column = random.integers(1, 50, OFFSETS[-1])
    labels = np.arange(OFFSETS[-1])
    for label, history in zip(labels, leaks.expected_history(column, OFFSETS, labels, length), strict=True):
        start = OFFSETS[owner(label)]
        past = column[start:label][-length:].tolist()
        assert history.tolist() == [0] * (length - len(past)) + past


def test_disorder_counts_within_users(random):
    timestamps = np.array([5, 6, 6, 7, 1, 3, 2, 4, 4, 1, 9, *range(9)])
    assert leaks.disorder(timestamps, OFFSETS) == 2  # 3 to 2, and 4 to 1; not from one user to the next
    for _ in range(50):
        timestamps = random.integers(0, 4, OFFSETS[-1])
        expected = sum(
            int(timestamps[start:end][place] < timestamps[start:end][place - 1])
            for start, end in itertools.pairwise(OFFSETS)
            for place in range(1, end - start)
        )
        assert leaks.disorder(timestamps, OFFSETS) == expected


@pytest.mark.parametrize(
    "offsets", [[0, 0, 3], [0, 3, 3], [0, 1, 1, 3], [0, 1, 2, 3], [0, 0, 0], [0], [0, 0, 1, 3, 3]], ids=str
)
def test_users_without_events_hide_nothing(offsets):
    timestamps = np.arange(offsets[-1])[::-1]  # each earlier than the one before
    offsets = np.array(offsets)
    assert leaks.disorder(timestamps, offsets) == sum(
        max(0, end - start - 1) for start, end in itertools.pairwise(offsets)
    )
    events = np.arange(offsets[-1])
    places, run = leaks.tied_runs(np.zeros(len(events), int), offsets, np.ones(len(events), bool))
    users = np.searchsorted(offsets, events, side="right")
    assert places.tolist() == [event for event in events if (users == users[event]).sum() > 1]
    assert (np.diff(run) != 0).tolist() == (np.diff(users[places]) != 0).tolist()


def test_labels_before_the_training_of_their_user_are_counted_by_a_loop(random):
    events = np.arange(OFFSETS[-1])
    for _ in range(50):
        train = random.choice(events, random.integers(0, 8), replace=False)
        held_out = random.choice(events, 6, replace=False)
        expected = sum(any(owner(learnt) == owner(label) and label <= learnt for learnt in train) for label in held_out)
        assert leaks.learnt_too_late(np.split(train, [2]), np.split(held_out, [4]), OFFSETS) == expected


def test_labels_that_training_has_passed():
    train = [np.array([1, 2, 6, 7, 13])]
    assert leaks.learnt_too_late(train, [np.array([3, 4, 8, 15])], OFFSETS) == 0
    assert leaks.learnt_too_late(train, [np.array([2, 4, 5, 15])], OFFSETS) == 2  # one is a label, one in a history


def test_labels_of_a_user_who_has_more_are_counted_by_a_set(random):
    for _ in range(50):
        labels = random.integers(0, OFFSETS[-1], 7)
        assert leaks.repeated_users(np.split(labels, [3]), OFFSETS) == 7 - len(set(map(owner, labels)))


class Alike(str):
    """Ids whose hashes say nothing."""

    __slots__ = ()

    def __hash__(self):
        return len(self)


@pytest.mark.parametrize("kind", [str, Alike])
def test_users_in_several_records(random, kind):
    for count in (0, 1, 2, 3, 40):
        user_ids = [kind(user) for user in random.integers(0, 30, count)]
        assert leaks.repeated(user_ids) == count - len(set(user_ids))
    assert leaks.repeated([kind(user) for user in range(30)]) == 0


@pytest.mark.parametrize("length", [1, 2, 5])
def test_equal_windows_have_equal_hashes_and_others_have_others(random, length):
    item = random.integers(1, 3, OFFSETS[-1])  # two items: many windows are the same
    labels = np.arange(OFFSETS[-1])
    found = leaks.WindowHashes(item, OFFSETS, 2, length).of(np.split(labels, [5, 17]))
    hashes = np.concatenate(list(found))
    contents = []
    for label in labels:
        start = max(OFFSETS[owner(label)], label - length)
        contents.append(tuple(item[start : label + 1]))
    for one, hash_of_one in zip(contents, hashes, strict=True):
        assert [hash_of_one == other for other in hashes] == [one == other for other in contents]


def test_values_among_others(random):
    for _ in range(20):
        values, others = random.integers(0, 30, 20, np.uint64), random.integers(5, 25, 12, np.uint64)
        expected = sum(value in others for value in values)
        assert leaks.count_among(np.split(values, [7]), np.split(others, [0, 3])) == expected
    of = lambda *values: [np.array(values, np.uint64)]  # noqa: E731
    assert leaks.count_among(of(4, 9, 4), of(4, 2**64 - 1)) == 2
    assert leaks.count_among(of(4, 9), []) == 0
    assert leaks.count_among([], of(4)) == 0


def test_tied_labels_have_the_time_of_the_event_before():
    assert leaks.tied_labels(np.array([1, 1, 2, 2, 3]), [np.array([1, 2]), np.array([3])]) == 2


def test_runs_of_equal_times_are_found_by_a_loop(random):
    for _ in range(50):
        timestamps = random.integers(0, 4, OFFSETS[-1])
        for start, stop in itertools.pairwise(OFFSETS):
            timestamps[start:stop] = np.sort(timestamps[start:stop])
        wanted = random.random(OFFSETS[-1]) < 0.2
        keys = [(owner(event), timestamps[event]) for event in range(OFFSETS[-1])]
        touched = {key for key, asked in zip(keys, wanted, strict=True) if asked and keys.count(key) > 1}
        expected = [event for event, key in enumerate(keys) if key in touched]
        places, run = leaks.tied_runs(timestamps, OFFSETS, wanted)
        assert places.tolist() == expected
        for one, run_of_one in zip(places, run, strict=True):
            assert [run_of_one == other for other in run] == [keys[one] == keys[other] for other in places]


def test_recount_leaves_held_out_events_out(random):
    item = np.array([1, 1, 2, 3, 3, 3], np.int32)
    assert leaks.recount(item, Places([np.array([0, 5, 5])], 6), 4).tolist() == [0, 1, 1, 2, 0]
    item = random.integers(1, 5, 30).astype(np.uint8)
    held_out = random.integers(0, 30, 12)
    expected = [sum(item[event] == one for event in range(30) if event not in held_out) for one in range(5)]
    assert leaks.recount(item, Places([held_out], 30), 4).tolist() == expected
