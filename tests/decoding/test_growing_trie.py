"""A trie that titles are added to against one that was built of all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoding.test_catalogue_trie import padded
from user_llm.decoding.beam import beam_search
from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.decoding.growing_trie import GrowingTrie
from user_llm.decoding.prior import build_prior, open_log_prior
from user_llm.decoding.ranking import rank_catalogue
from user_llm.decoding.trie_building import Capacity, merged, sorted_titles
from user_llm.errors import UserError

EOS = 2
words = st.lists(st.sampled_from([0, 3, 4, 5]), min_size=1, max_size=5)
some_titles = st.lists(words, min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(first=some_titles, more=st.lists(some_titles, min_size=1, max_size=3))
def test_titles_that_are_merged_are_those_that_are_sorted_together(first, more):
    titles = sorted_titles(*padded(first))
    for some in more:
        table, lengths = padded(some)
        titles = merged(titles, table[1:], lengths[1:])
    together = sorted_titles(*padded([*first, *(title for some in more for title in some)]))
    for name, found, wanted in zip(titles._fields, titles, together, strict=True):
        np.testing.assert_array_equal(found, wanted, err_msg=name)
    assert Capacity.of(together).holds(titles)


@pytest.fixture(scope="module")
def grown(catalogue) -> tuple[GrowingTrie, GrowingTrie, CatalogueTrie]:
    """Of the first 30 titles; of all, which came in three pieces; and a trie that was built of all."""
    tokens, lengths = catalogue.tables
    first = GrowingTrie.build(tokens[:31], lengths[:31], EOS, room=len(tokens))
    last = first
    for piece in (slice(31, 32), slice(32, 40), slice(40, None)):
        last = last.add(tokens[piece], lengths[piece])
    return first, last, CatalogueTrie.build(tokens, lengths, EOS)


def test_it_has_the_shapes_that_it_had(grown):
    first, last, _ = grown
    assert jax.tree.structure(first.trie) == jax.tree.structure(last.trie)
    assert jax.tree.map(jnp.shape, first.trie) == jax.tree.map(jnp.shape, last.trie)
    assert last.num_items > first.num_items == 30


def test_it_is_that_which_was_built_of_all_in_arrays_as_long(grown, catalogue):
    _, last, _ = grown
    anew = CatalogueTrie.of_titles(sorted_titles(*catalogue.tables), EOS, last._capacity)
    for found, wanted in zip(jax.tree.leaves(last.trie), jax.tree.leaves(anew), strict=True):
        np.testing.assert_array_equal(found, wanted)


def excluded_of(catalogue) -> np.ndarray:
    return np.random.default_rng(5).integers(0, len(catalogue.titles) + 1, (3, 12)).astype(np.int32)


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("dense", [None, True, False])
def test_beams_are_those_of_a_trie_that_was_built_of_all(truth, grown, catalogue, dense, closed, monkeypatch):
    _, last, fresh = grown
    excluded, count = excluded_of(catalogue), len(catalogue.titles) + 1
    left = np.random.default_rng(6).random(count) < 0.6 if closed else np.ones(count, bool)
    monkeypatch.setattr("user_llm.decoding.prior.MOST_DENSE", 10_000 if dense else 1)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, count), scale=3), jnp.float32)
    log_prior = open_log_prior(logits, jnp.asarray(excluded), jnp.zeros(count, bool), jnp.float32(0))

    def search(trie, left):
        trie = trie.only(left) if closed else trie
        prior = None if dense is None else build_prior(trie, log_prior, jnp.asarray(excluded))
        found = beam_search(
            truth.model, truth.prompts, truth.lengths, truth.context, num_beams=20, max_steps=len(trie.fan_out),
            eos_id=EOS, trie=trie, excluded_items=excluded, prior=prior, weight=0.5,
        )  # fmt: skip
        return jax.tree.map(np.asarray, found)

    found, wanted = search(last.trie, np.pad(left, (0, len(last.trie.title_of_item) - count))), search(fresh, left)
    np.testing.assert_array_equal(found.items, wanted.items)
    np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-5, atol=1e-5)
    assert (found.items > 30).any()


@pytest.mark.parametrize("within", [False, True])
def test_every_title_is_as_likely_as_in_a_trie_that_was_built_of_all(truth, grown, within):
    _, last, fresh = grown
    options = dict(eos_id=EOS, nodes_per_chunk=16, within_catalogue=within)
    found, wanted = (
        rank_catalogue(truth.model, truth.prompts, truth.lengths, truth.context, trie, **options)
        for trie in (last.trie, fresh)
    )
    np.testing.assert_allclose(found[:, : wanted.shape[1]], wanted, rtol=1e-5, atol=1e-5)


def test_more_than_there_is_room_for_makes_more_room(catalogue):
    tokens, lengths = catalogue.tables
    small = GrowingTrie.build(tokens[:31], lengths[:31], EOS, room=2)
    grown = small.add(tokens[31:], lengths[31:])
    assert grown.trie.level_ends[-1] > small.trie.level_ends[-1]
    fresh = CatalogueTrie.build(tokens, lengths, EOS)
    for name in ("canonical_item", "group_size", "next_twin", "title_of_item"):
        np.testing.assert_array_equal(getattr(grown.trie, name)[: len(tokens)], getattr(fresh, name), err_msg=name)


def test_what_is_no_title_is_refused(grown):
    first, _, _ = grown
    with pytest.raises(UserError, match="the title of item 2 is empty"):
        first.add(np.array([[3, 4], [3, 4]]), np.array([2, 0]))
    with pytest.raises(UserError, match="holds EOS"):
        first.add(np.array([[3, EOS]]), np.array([2]))
