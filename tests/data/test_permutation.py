"""Orders by formula: each is a permutation, and together they look as if all were equally likely."""

import collections
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from user_llm.data.permutation import Permutation


def order(size, seed):
    return Permutation(size, seed)(np.arange(size))


def z_score(counts, expected):
    """How many standard deviations chi-square lies above its mean, where all cells are equally likely."""
    freedom = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 5_000) | st.sampled_from([4095, 4096, 65_536, 65_537, 99_999]), seed=st.integers(0, 2**32))
def test_everything_comes_once(size, seed):
    np.testing.assert_array_equal(np.sort(order(size, (seed,))), np.arange(size))


def test_a_place_is_computed_alone():
    whole = order(10_007, (3, 5))
    for places in ([0], [10_006, 4, 4], range(5_000, 5_100)):
        np.testing.assert_array_equal(Permutation(10_007, (3, 5))(np.array(places)), whole[places])
    assert whole.dtype == np.int64
    assert Permutation(5, (0,))(np.zeros(0, np.int64)).tolist() == []


def test_huge_orders_stay_inside_and_never_repeat():
    for size in (10**9, 2**40 + 1, 2**62):
        places = np.concatenate([np.arange(100_000), size - 1 - np.arange(100_000)])
        found = Permutation(size, (1,))(places)
        assert found.min() >= 0
        assert found.max() < size
        assert len(np.unique(found)) == len(places)


@pytest.mark.parametrize("size", [3, 4, 5])
def test_all_orders_of_few_are_equally_likely(size):
    draws = 3_000
    seen = collections.Counter(tuple(order(size, (seed, 9)).tolist()) for seed in range(draws))
    counts = np.array([seen[possible] for possible in itertools.permutations(range(size))])
    assert abs(z_score(counts, draws / len(counts))) < 5


def test_places_and_pairs_of_places_are_equally_likely():
    size, draws = 24, 2_000
    orders = np.stack([order(size, (seed,)) for seed in range(draws)])
    places = np.stack([np.bincount(column, minlength=size) for column in orders.T])
    assert abs(z_score(places, draws / size)) < 5
    for first, second in ((0, 1), (3, 17)):
        pairs = np.bincount(orders[:, first] * size + orders[:, second], minlength=size * size).reshape(size, size)
        assert abs(z_score(pairs[~np.eye(size, dtype=bool)], draws / (size * (size - 1)))) < 5


@pytest.mark.parametrize("size", [5_000, 300_007])
def test_a_long_order_has_no_trend_and_no_neighbours(size):
    """Against what holds of random orders: about one fixed point, one pair of neighbours, ranks without correlation."""
    orders = [order(size, (seed,)) for seed in range(20)]
    fixed = np.mean([(found == np.arange(size)).sum() for found in orders])
    neighbours = np.mean([(np.diff(found) == 1).sum() for found in orders])
    for mean in (fixed, neighbours):  # Poisson of mean 1, 20 times
        assert abs(mean - 1) < 5 / math.sqrt(20)
    for one, other in itertools.pairwise(orders):
        for lag in (0, 1):
            correlation = np.corrcoef(one[: size - lag], other[lag:])[0, 1]
            assert abs(correlation) < 6 / math.sqrt(size)
        assert abs(np.corrcoef(one, np.arange(size))[0, 1]) < 6 / math.sqrt(size)
        assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 6 / math.sqrt(size)
    # A batch is a sample of everything: its numbers fall evenly into 16 parts of the whole.
    parts = np.concatenate([np.bincount(found[:256] * 16 // size, minlength=16) for found in orders])
    assert abs(z_score(parts, 256 / 16)) < 5


@pytest.mark.parametrize("size", [0, -1, 2**62 + 1])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(ValueError, match="1 to 2\\*\\*62 places"):
        Permutation(size, (0,))
