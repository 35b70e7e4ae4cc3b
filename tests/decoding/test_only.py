"""A trie with some of its items left against one that was built of these alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from user_llm.decoding.beam import beam_search
from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.decoding.prior import DensePrior, TopPrior, build_prior, open_log_prior
from user_llm.errors import UserError

EOS = 2
EXCLUDED = np.array([[3, 9, 9, 0], [0, 0, 0, 0], [41, 42, 43, 44]], np.int32)


@pytest.fixture(scope="module")
def left(catalogue):
    """bool [I+1]: some of twins, and of titles that begin alike; and one that row 2 has met."""
    chosen = np.random.default_rng(3).random(len(catalogue.titles) + 1) < 0.4
    chosen[0], chosen[41:] = False, [False, True, False, False]
    return chosen


@pytest.fixture(scope="module")
def tries(catalogue, left):
    """With items closed, and built anew of the others, whose ids are their places among them."""
    tokens, lengths = catalogue.tables
    kept = np.flatnonzero(left)
    anew = CatalogueTrie.build(tokens[[0, *kept]], lengths[[0, *kept]], EOS)
    return CatalogueTrie.build(tokens, lengths, EOS).only(left), anew, kept


def search(truth, trie, excluded, **options):
    return jax.tree.map(
        np.asarray,
        beam_search(
            truth.model, truth.prompts, truth.lengths, truth.context, eos_id=EOS, max_steps=9, trie=trie,
            excluded_items=excluded, **options,
        ),
    )  # fmt: skip


def renamed(excluded, kept):
    """Excluded items by their ids in the trie that was built anew, 0 for those it has not."""
    return np.where(np.isin(excluded, kept), np.searchsorted(kept, excluded) + 1, 0).astype(np.int32)


def assert_same(found, wanted, kept):
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.items, np.concatenate([[0], kept])[wanted.items])


@pytest.mark.parametrize("num_beams", [3, 60])
def test_beams_are_those_of_the_items_left(truth, tries, num_beams):
    closed, anew, kept = tries
    found = search(truth, closed, EXCLUDED, num_beams=num_beams)
    assert_same(found, search(truth, anew, renamed(EXCLUDED, kept), num_beams=num_beams), kept)
    assert (found.items > 0).any()


@pytest.mark.parametrize("kind", [DensePrior, TopPrior])
def test_a_prior_is_that_of_the_items_left(truth, tries, left, kind, monkeypatch):
    closed, anew, kept = tries
    monkeypatch.setattr("user_llm.decoding.prior.MOST_DENSE", 100 if kind is DensePrior else 1)
    logits = np.random.default_rng(0).normal(size=(3, len(left)), scale=3).astype(np.float32)
    nobody = jnp.zeros(logits.shape[1], bool)

    def of(trie, logits, excluded):
        known = open_log_prior(jnp.array(logits), jnp.array(excluded), nobody[: logits.shape[1]], jnp.float32(0))
        prior = build_prior(trie, known, jnp.array(excluded))
        assert isinstance(prior, kind)
        return search(truth, trie, excluded, num_beams=60, prior=prior, weight=jnp.float32(0.4))

    wanted = of(anew, logits[:, [0, *kept]], renamed(EXCLUDED, kept))
    assert_same(of(closed, logits, EXCLUDED), wanted, kept)


def test_an_empty_catalogue_is_refused(tries, left):
    with pytest.raises(UserError, match="no item is left"):
        tries[0].only(np.zeros_like(left))
