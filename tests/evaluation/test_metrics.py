"""Vectorised metrics against loops that follow the definitions, and intervals against statistics."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from user_llm.evaluation import metrics


@settings(max_examples=200, deadline=None)
@given(
    scores=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=5, max_size=5),
    counts=st.lists(st.integers(0, 3), min_size=5, max_size=5),
    label=st.integers(1, 5),
    order=st.permutations(range(5)),
)
def test_ranks_from_titles_are_those_of_scores_in_which_each_item_has_its_title_s(scores, counts, label, order):
    """A title of 3 items is as good as 3 items of one score, in whatever order the titles come."""
    titles, found = np.arange(1, 6)[order], np.array(scores)[order]
    ranks = metrics.ranks_from_titles(titles[None], found[None], np.array(counts)[order][None], np.array([label]))
    if counts[label - 1]:
        items = np.repeat(scores, counts)
        item = sum(counts[: label - 1]) + 1
        assert ranks == np.sum(items >= items[item - 1])
    else:
        assert ranks == np.inf


def test_among_scores_that_are_no_numbers_there_is_no_rank():
    scores = np.zeros((3, 4))
    scores[1, 2] = np.nan
    ranks = metrics.ranks_from_titles(np.ones((3, 4), int), scores, np.ones((3, 4), int), np.array([1, 9, 9]))
    np.testing.assert_array_equal(ranks, [4, np.nan, np.inf])
    with pytest.raises(ValueError, match="1 of 3 rows of scores hold NaN, the first in row 1"):
        metrics.refuse_nan(np.isnan(ranks))


def test_a_title_that_was_not_found_has_no_rank_and_padding_none():
    titles, scores = np.array([[4, 2, 0], [0, 0, 0]]), np.array([[-1.0, -2.0, -np.inf], [-np.inf] * 3])
    for label in (9, 1):
        ranks = metrics.ranks_from_titles(titles, scores, np.array([[1, 1, 0], [0, 0, 0]]), np.array([label, label]))
        assert ranks.tolist() == [np.inf, np.inf]


@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_and_ndcg_equal_their_definitions(k):
    ranks = np.array([1, 2, 3, 5, 6, 10, 11, np.inf])
    gains = []
    for rank in ranks:
        relevant = [1.0 if place == rank else 0.0 for place in range(1, k + 1)]
        gains.append(sum(gain / math.log2(1 + place) for place, gain in enumerate(relevant, start=1)))
    np.testing.assert_allclose(metrics.ndcg_at_k(ranks, k), gains, rtol=1e-12)
    np.testing.assert_array_equal(metrics.recall_at_k(ranks, k), [float(gain > 0) for gain in gains])


def naive_bootstrap(values, samples, seed):
    generator = np.random.default_rng(seed)
    means = [generator.choice(values, size=len(values)).mean() for _ in range(samples)]
    return np.quantile(means, (0.025, 0.975))


@pytest.mark.parametrize("name", ["recall", "gains", "continuous"])
def test_the_interval_is_that_of_resampled_users(name):
    generator = np.random.default_rng(1)
    values = {
        "recall": (generator.random(200) < 0.3).astype(float),
        "gains": metrics.ndcg_at_k(generator.integers(1, 40, 200), 10),
        "continuous": generator.normal(size=200),
    }[name]
    interval = metrics.bootstrap_interval(values, samples=4000, seed=2)
    assert interval["value"] == pytest.approx(values.mean())
    # Two independent estimates of the same quantiles: they differ by some hundredths of the spread.
    spread = values.std() / math.sqrt(len(values))
    low, high = naive_bootstrap(values, samples=4000, seed=3)
    assert interval["low"] == pytest.approx(low, abs=0.15 * spread)
    assert interval["high"] == pytest.approx(high, abs=0.15 * spread)


def test_the_interval_does_not_depend_on_how_many_samples_are_drawn_at_once(monkeypatch):
    values = np.random.default_rng(4).normal(size=50)
    whole = metrics.bootstrap_interval(values, samples=100, seed=5)
    monkeypatch.setattr(metrics, "_DRAWS_AT_ONCE", 350)
    assert metrics.bootstrap_interval(values, samples=100, seed=5) == whole


def test_a_seed_decides_the_interval():
    values = np.random.default_rng(6).normal(size=50)
    assert metrics.bootstrap_interval(values, seed=1) == metrics.bootstrap_interval(values, seed=1)
    assert metrics.bootstrap_interval(values, seed=1) != metrics.bootstrap_interval(values, seed=2)


def test_what_everybody_has_is_certain():
    assert metrics.bootstrap_interval(np.ones(7)) == {"value": 1.0, "low": 1.0, "high": 1.0}


@pytest.mark.parametrize("values", [[], [1.0, np.nan]])
def test_no_interval_over_nobody_or_nan(values):
    with pytest.raises(ValueError, match="need at least one user"):
        metrics.bootstrap_interval(np.array(values))


def test_a_paired_difference_is_surer_than_its_parts():
    """The users' own hardness cancels: b hits where a hits, and on a few users more."""
    a = (np.random.default_rng(7).random(500) < 0.5).astype(float)
    b = a.copy()
    b[np.flatnonzero(a == 0)[:15]] = 1.0
    difference = metrics.paired_bootstrap(b, a)
    assert difference["value"] == pytest.approx(15 / 500)
    assert difference["low"] > 0
    alone = metrics.bootstrap_interval(b)
    assert difference["high"] - difference["low"] < (alone["high"] - alone["low"]) / 2


def test_pairs_are_of_the_same_users():
    with pytest.raises(ValueError, match="got 2 and 3"):
        metrics.paired_bootstrap(np.zeros(2), np.zeros(3))


def test_summary_and_comparison_hold_every_metric():
    ranks = np.array([1.0, 3.0, 8.0, np.inf])
    values = metrics.ranking_metrics(ranks)
    summary = metrics.summarise(values, samples=50)
    assert {name: row["value"] for name, row in summary.items()} == pytest.approx(
        {"recall@1": 0.25, "recall@5": 0.5, "recall@10": 0.75, "ndcg@10": (1 + 1 / 2 + 1 / math.log2(9)) / 4}
    )
    worse = metrics.compare(values, metrics.ranking_metrics(np.full(4, np.inf)), samples=50)
    assert worse == summary


def test_many_values_are_drawn_one_by_one_with_the_interval_of_the_normal_limit():
    values = np.random.default_rng(0).normal(0.3, 0.1, 4000)  # more distinct ones than the multinomial takes
    interval = metrics.bootstrap_interval(values, samples=2000)
    error = 1.96 * values.std() / math.sqrt(len(values))
    assert interval["value"] == pytest.approx(values.mean())
    assert interval["low"] == pytest.approx(values.mean() - error, abs=error / 8)
    assert interval["high"] == pytest.approx(values.mean() + error, abs=error / 8)
    assert metrics.bootstrap_interval(values, samples=2000) == interval
