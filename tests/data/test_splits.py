import csv
import io
import zipfile
from collections import Counter
from itertools import chain

import numpy as np
import pytest

from user_llm.data.splits import SPLITS, count_windows, label_ranges


@pytest.fixture(scope="module")
def real_lengths(shared_dir):
    """Timeline lengths of MovieLens latest-small, counted with nothing but the standard library."""
    archive = zipfile.ZipFile(shared_dir / "data" / "ml-latest-small.zip")
    with archive, archive.open("ml-latest-small/ratings.csv") as file:
        users = Counter(row["userId"] for row in csv.DictReader(io.TextIOWrapper(file)))
    return np.array(list(users.values()))


@pytest.mark.parametrize(
    ("history_length", "users", "windows", "train"),
    [(20, 596, 88_636, 88_040), (50, 378, 74_562, 74_184), (100, 245, 59_513, 59_268), (200, 133, 41_684, 41_551)],
)
def test_counts_of_latest_small(real_lengths, history_length, users, windows, train):
    counts = count_windows(real_lengths, history_length)
    assert counts == {"users": users, "train": train, "test": windows - train}


def test_counts_of_ml_20m_follow_from_its_shape():
    long, events = 81_970, 18_001_875
    random = np.random.default_rng(0)
    lengths = 51 + random.multinomial(events - 51 * long, np.full(long, 1 / long))
    short = random.integers(20, 51, 138_493 - long)
    assert count_windows(np.concatenate([short, lengths]), 50) == {
        "users": 81_970,
        "train": 13_821_405,
        "test": 81_970,
    }


@pytest.mark.parametrize("validation", [False, True])
@pytest.mark.parametrize("min_history", [None, 1, 3, 4])
def test_every_label_is_in_exactly_one_split(min_history, validation):
    lengths = np.arange(12)
    minimum = min_history or 4
    splits = [split for split in SPLITS if split != "validation" or validation]
    ranges = {split: label_ranges(lengths, split, minimum, validation) for split in splits}
    for user, length in enumerate(lengths):
        positions = {split: list(range(first[user], end[user])) for split, (first, end) in ranges.items()}
        assert sorted(chain(*positions.values())) == list(range(minimum, length))
        assert positions["test"] == ([length - 1] if length > minimum else [])
        if validation:
            assert positions["validation"] == ([length - 2] if length > minimum + 1 else [])
    counts = count_windows(lengths, 4, min_history, validation)
    assert counts["users"] == counts["test"] == sum(lengths > minimum)
    assert sum(counts[split] for split in splits) == sum(max(length - minimum, 0) for length in lengths)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "history_length must be a whole number of at least 1"),
        ((5, 6), "between 1 and history_length=5, got 6"),
        ((5, 0), "between 1 and history_length=5, got 0"),
    ],
)
def test_impossible_lengths_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        count_windows(np.array([9]), *arguments)


def test_unknown_and_unasked_splits_are_refused():
    with pytest.raises(ValueError, match="unknown split 'tset'"):
        label_ranges(np.array([9]), "tset", 5)
    with pytest.raises(ValueError, match="unless validation=True"):
        label_ranges(np.array([9]), "validation", 5)
