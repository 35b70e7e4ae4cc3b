"""Masses of nodes against sums in float64, and fused beams against a ranking of every title."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from user_llm.decoding.beam import beam_search
from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.decoding.prior import DensePrior, TopPrior, open_log_prior
from user_llm.decoding.ranking import rank_catalogue

EXCLUDED = np.array([[3, 9, 9, 0], [0, 0, 0, 0], [41, 42, 43, 44]], np.int32)


@pytest.fixture(scope="module")
def trie(catalogue):
    return CatalogueTrie.build(*catalogue.tables, 2)


@pytest.fixture(scope="module")
def log_prior(catalogue):
    logits = np.random.default_rng(0).normal(size=(3, len(catalogue.titles) + 1), scale=3).astype(np.float32)
    logits[1, 5] = 120.0  # beside which all others vanish in float32
    return open_log_prior(jnp.array(logits), jnp.array(EXCLUDED), jnp.zeros(logits.shape[1], bool), jnp.float32(0.1))


def build(kind, trie, log_prior):
    more = () if kind is DensePrior else (jnp.array(EXCLUDED),)
    return kind.build(trie, log_prior, *more)


def expected_masses(trie, log_prior):
    """float64 `[nodes, B]`, by the range of titles below each node."""
    title = np.asarray(trie.title_of_item)[1:]
    values = np.asarray(log_prior, np.float64)[:, 1:]
    below = (np.asarray(trie.first_title)[:, None] <= title) & (title < np.asarray(trie.end_title)[:, None])
    with np.errstate(divide="ignore"):
        return np.log(np.exp(values) @ below.T.astype(np.float64)).T


def candidates(trie, depth):
    """The nodes above the nodes of a depth, and these as `[1, K, C]`, with the mask of real ones."""
    parents = np.arange(*((0, *trie.level_ends)[depth - 1 : depth + 1]))
    children = np.asarray(trie.first_child)[parents][:, None] + np.arange(trie.fan_out[depth - 1])
    real = np.arange(children.shape[1]) < np.asarray(trie.num_children)[parents][:, None]
    return parents, np.minimum(children, len(trie.token) - 1), real


def asked(prior, trie, depth):
    parents, children, real = candidates(trie, depth)
    nodes, children = np.broadcast_to(parents, (3, len(parents))), np.broadcast_to(children, (3, *children.shape))
    masses = prior.log_mass(trie, jnp.int32(depth), jnp.array(nodes), jnp.array(children))
    return np.asarray(masses)[:, real], children[0][real]


def test_a_prior_is_a_distribution_over_open_items():
    logits = jnp.array(np.random.default_rng(1).normal(size=(2, 6)), jnp.float32)
    excluded, untrained = jnp.array([[2, 2], [0, 0]]), jnp.array([False] * 4 + [True] * 2)
    found = np.exp(np.asarray(open_log_prior(logits, excluded, untrained, jnp.float32(0.2))))
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    assert found[0, 0] == found[0, 2] == 0
    np.testing.assert_allclose(found[:, 4:], 0.1, rtol=1e-6)
    np.testing.assert_allclose(found[1, 3] / found[1, 1], np.exp(logits[1, 3] - logits[1, 1]), rtol=1e-5)
    # Where no untrained item is open, nothing is kept for it.
    closed = np.exp(np.asarray(open_log_prior(logits, jnp.array([[4, 5], [4, 5]]), untrained, jnp.float32(0.2))))
    np.testing.assert_allclose(closed.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("kind", [DensePrior, TopPrior])
def test_masses_are_the_sums_of_what_is_below(trie, log_prior, kind):
    prior, expected = build(kind, trie, log_prior), expected_masses(trie, log_prior)
    seen = []
    for depth in range(1, len(trie.level_ends)):
        masses, nodes = asked(prior, trie, depth)
        wanted = expected[nodes].T
        assert ((masses == -np.inf) == (wanted == -np.inf)).all()
        near = wanted > expected.max(axis=0)[:, None] - 60
        np.testing.assert_allclose(masses[near], wanted[near], rtol=1e-5, atol=1e-5)
        seen += nodes.tolist()
    assert sorted(seen) == list(range(1, len(trie.token)))


def test_leaves_are_exact_beside_a_far_likelier_item(trie, log_prior):
    prior = DensePrior.build(trie, log_prior)
    leaves = np.flatnonzero(np.asarray(trie.leaf_item))
    expected = expected_masses(trie, log_prior)[leaves]
    assert expected[:, 1].min() < -110  # no float32 holds it as a share
    np.testing.assert_allclose(np.asarray(prior.masses)[leaves], expected, rtol=1e-5)


def test_beyond_the_top_items_share_what_is_left(trie, log_prior, catalogue):
    prior = TopPrior.build(trie, log_prior, jnp.array(EXCLUDED), top=10)
    flat = np.asarray(log_prior, np.float64).copy()
    for row in flat:
        order = np.argsort(-row)
        others = order[10:][row[order[10:]] > -np.inf]
        row[others] = np.log(np.exp(row[others]).mean())
    expected = expected_masses(trie, flat)
    for depth in range(1, len(trie.level_ends)):
        masses, nodes = asked(prior, trie, depth)
        wanted = expected[nodes].T
        near = wanted > expected.max(axis=0)[:, None] - 60
        np.testing.assert_allclose(masses[near], wanted[near], rtol=1e-4, atol=1e-4)
        assert ((masses == -np.inf) == (wanted == -np.inf)).all()


def test_what_else_is_closed_stays_closed(trie, log_prior):
    closed = np.asarray(log_prior).copy()
    closed[:, 20:] = -np.inf
    masses, nodes = asked(TopPrior.build(trie, jnp.array(closed), jnp.array(EXCLUDED), top=10), trie, 1)
    likeliest = np.where(closed >= np.sort(closed, axis=1)[:, [-10]], closed, -np.inf)
    wanted = expected_masses(trie, likeliest)[nodes].T
    assert ((masses == -np.inf) == (wanted == -np.inf)).all()


def fused(truth, trie, prior, weight, num_beams=60):
    options = dict(num_beams=num_beams, max_steps=9, trie=trie, eos_id=truth.eos_id, excluded_items=EXCLUDED)
    found = beam_search(
        truth.model, truth.prompts, truth.lengths, truth.context, prior=prior, weight=jnp.float32(weight), **options
    )
    return jax.tree.map(np.asarray, found)


@pytest.mark.parametrize("kind", [DensePrior, TopPrior])
@pytest.mark.parametrize("num_beams", [4, 60])
def test_with_all_the_weight_beams_are_those_of_the_language_model_to_the_bit(truth, trie, log_prior, kind, num_beams):
    found = fused(truth, trie, build(kind, trie, log_prior), 1.0, num_beams)
    plain = fused(truth, trie, None, 1.0, num_beams)
    for field in found._fields:
        np.testing.assert_array_equal(getattr(found, field), getattr(plain, field))


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.9])
def test_as_many_beams_as_titles_are_the_exact_mix(truth, trie, log_prior, catalogue, weight):
    found = fused(truth, trie, DensePrior.build(trie, log_prior), weight)
    exact = np.asarray(
        rank_catalogue(truth.model, truth.prompts, truth.lengths, truth.context, trie, eos_id=truth.eos_id)
    )
    leaves = expected_masses(trie, log_prior)[np.asarray(trie.leaf_of_title)]  # [R, B]
    for row in truth.rows:
        wanted = {}
        for item, title in enumerate(np.asarray(trie.title_of_item)[1:], start=1):
            if leaves[title, row] > -np.inf and item not in EXCLUDED[row]:
                wanted.setdefault(title, (weight * exact[row, item] + (1 - weight) * leaves[title, row], item))
        alive = found.items[row] > 0
        assert alive.sum() == len(wanted)
        scores, items = zip(*sorted(wanted.values(), reverse=True), strict=True)
        np.testing.assert_allclose(found.scores[row, alive], scores, rtol=1e-5, atol=2e-5)
        assert found.items[row, alive].tolist() == list(items)


def test_a_prior_needs_a_trie(truth, trie, log_prior):
    with pytest.raises(ValueError, match="prior need trie="):
        beam_search(
            truth.model, truth.prompts, truth.lengths, num_beams=2, max_steps=2, eos_id=2,
            prior=DensePrior.build(trie, log_prior),
        )  # fmt: skip
