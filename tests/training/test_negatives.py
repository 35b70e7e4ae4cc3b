"""What is drawn as a negative, against the distribution that it is said to have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from user_llm.training.negatives import Negatives

COUNTS = np.array([50, 9, 0, 1000, 3, 40, 1])
DROPPED = np.array([0, 0, 0, 0, 0, 1, 0], bool)


@pytest.mark.parametrize("dropped", [None, DROPPED])
@pytest.mark.parametrize("power", [0.75, 0.0])
def test_items_are_drawn_as_often_as_their_log_probability_says(dropped, power):
    negatives = Negatives.by_popularity(COUNTS, dropped, power)
    mass = np.maximum(COUNTS, 1.0) ** power
    mass[0] = 0
    mass[dropped if dropped is not None else []] = 0
    expected, draws = mass / mass.sum(), 100_000
    items, log_probabilities = jax.jit(negatives.draw, static_argnums=1)(jax.random.key(0), draws)
    np.testing.assert_allclose(np.exp(log_probabilities), expected[np.asarray(items)], rtol=1e-5)
    share = np.bincount(items, minlength=7) / draws
    assert (np.abs(share - expected) <= 5 * np.sqrt(expected * (1 - expected) / draws)).all()


def test_every_number_belongs_to_one_item(monkeypatch):
    negatives = Negatives.by_popularity(COUNTS)
    first = negatives.starts
    last = np.append(first[1:] - np.uint32(1), np.uint32(2**32 - 1))
    for numbers in (first, last):
        monkeypatch.setattr(jax.random, "bits", lambda *_, of=numbers: jnp.asarray(of))
        items, log_probabilities = negatives.draw(jax.random.key(0), 6)
        np.testing.assert_array_equal(items, [1, 2, 3, 4, 5, 6])
        widths = last.astype(np.float64) - first + 1
        np.testing.assert_allclose(log_probabilities, np.log(widths / 2**32), rtol=1e-6, atol=1e-6)
    assert first[0] == 0
    assert widths.sum() == 2**32


def test_the_rarest_of_a_million_items_are_drawn_too():
    """Where float32 sums of shares would give many of them none, or their neighbours'."""
    counts = np.ones(1_000_001, np.int64)
    counts[1:1000] = 10_000_000
    negatives = Negatives.by_popularity(counts)
    widths = np.diff(np.append(negatives.starts.astype(np.int64), 2**32))
    mass = counts[1:] ** 0.75
    np.testing.assert_allclose(widths, 2**32 * mass / mass.sum(), rtol=1e-3, atol=2)
    assert widths.min() > 20


def test_the_only_item_is_certain():
    items, log_probabilities = Negatives.by_popularity(np.array([0, 5])).draw(jax.random.key(0), 3)
    assert (items.tolist(), log_probabilities.tolist()) == ([1, 1, 1], [0, 0, 0])


def test_a_key_always_draws_the_same():
    negatives = Negatives.by_popularity(COUNTS)
    first, again, other = (negatives.draw(jax.random.key(seed), 100)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
