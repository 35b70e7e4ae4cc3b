"""The auditor's arithmetic against plain Python."""

import itertools

import numpy as np
import pytest

from user_llm.evaluation import leaks

# Nobody's events first, in the middle and at the end; one user has a single event.
OFFSETS = np.array([0, 0, 4, 5, 5, 5, 11, 20, 20])


@pytest.fixture
def random():
    return np.random.default_rng(0)


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
    order = leaks.reordered(np.zeros(offsets[-1], int), offsets, seed=0)
    for start, end in itertools.pairwise(offsets):
        assert sorted(order[start:end]) == list(range(start, end))


def test_labels_before_the_training_of_their_user_are_counted_by_a_loop(random):
    events = np.arange(OFFSETS[-1])
    for _ in range(50):
        train = random.choice(events, random.integers(0, 8), replace=False)
        held_out = random.choice(events, 6, replace=False)
        expected = sum(any(owner(learnt) == owner(label) and label <= learnt for learnt in train) for label in held_out)
        assert leaks.learnt_too_late(train, held_out, OFFSETS) == expected


def test_labels_that_training_has_passed():
    train = np.array([1, 2, 6, 7, 13])
    assert leaks.learnt_too_late(train, np.array([3, 4, 8, 15]), OFFSETS) == 0
    assert leaks.learnt_too_late(train, np.array([2, 4, 5, 15]), OFFSETS) == 2  # one is a label, one in a history


@pytest.mark.parametrize("length", [1, 2, 5])
def test_equal_windows_have_equal_hashes_and_others_have_others(random, length):
    item = random.integers(1, 3, OFFSETS[-1])  # two items: many windows are the same
    labels = np.arange(OFFSETS[-1])
    hashes = leaks.window_hashes(item, OFFSETS, labels, length)
    contents = []
    for label in labels:
        start = max(OFFSETS[owner(label)], label - length)
        contents.append(tuple(item[start : label + 1]))
    for one, hash_of_one in zip(contents, hashes, strict=True):
        assert [hash_of_one == other for other in hashes] == [one == other for other in contents]


def test_values_among_others(random):
    values, others = random.integers(0, 30, 20), random.integers(5, 25, 12)
    assert leaks.among(values, others).tolist() == [value in others for value in values]
    assert leaks.among(np.array([4, 9]), np.array([4])).tolist() == [True, False]
    assert leaks.among(np.array([4, 9]), np.array([], int)).tolist() == [False, False]
    assert leaks.among(np.array([], int), np.array([4])).tolist() == []


def test_reordering_moves_equal_times_of_one_user_only(random):
    timestamps = np.sort(random.integers(0, 4, (1, 20)), axis=1)[0]
    for start, stop in itertools.pairwise(OFFSETS):
        timestamps[start:stop] = np.sort(timestamps[start:stop])
    orders = [leaks.reordered(timestamps, OFFSETS, seed) for seed in range(3)]
    for order in orders:
        np.testing.assert_array_equal(timestamps[order], timestamps)
        for start, stop in itertools.pairwise(OFFSETS):
            assert sorted(order[start:stop]) == list(range(start, stop))
    assert (orders[0] != orders[1]).any()
    assert leaks.tied_labels(np.array([1, 1, 2, 2, 3]), np.array([1, 2, 3])) == 2


def test_recount_leaves_held_out_events_out():
    item = np.array([1, 1, 2, 3, 3, 3])
    assert leaks.recount(item, np.array([0, 5, 5]), 4).tolist() == [0, 1, 1, 2, 0]
