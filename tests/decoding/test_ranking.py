"""Scores of the whole catalogue against full forward passes."""

import numpy as np
import pytest

from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.decoding.ranking import rank_catalogue


@pytest.fixture(scope="module")
def trie(catalogue):
    return CatalogueTrie.build(*catalogue.tables, 2)


@pytest.mark.parametrize("nodes_per_chunk", [1, 7, 1000])
def test_every_title_has_its_exact_log_probability(truth, catalogue, trie, nodes_per_chunk):
    scores = np.asarray(
        rank_catalogue(
            truth.model,
            truth.prompts,
            truth.lengths,
            truth.context,
            trie,
            eos_id=truth.eos_id,
            nodes_per_chunk=nodes_per_chunk,
        )
    )
    assert scores.shape == (3, len(catalogue.titles) + 1)
    assert (scores[:, 0] == -np.inf).all()
    for row in truth.rows:
        expected = [truth.log_prob(row, (*title, truth.eos_id)) for title in catalogue.titles.values()]
        np.testing.assert_allclose(scores[row, 1:], expected, atol=2e-5)


@pytest.mark.parametrize("nodes_per_chunk", [7, 1000])
def test_within_the_catalogue_titles_share_all_there_is(truth, catalogue, trie, nodes_per_chunk):
    titles = {(*title, truth.eos_id) for title in catalogue.titles.values()}
    prompts = truth.prompts, truth.lengths, truth.context
    options = dict(eos_id=truth.eos_id, nodes_per_chunk=nodes_per_chunk, within_catalogue=True)
    scores = np.asarray(rank_catalogue(truth.model, *prompts, trie, **options))
    assert (scores[:, 0] == -np.inf).all()
    for row in truth.rows:
        expected = [truth.log_prob(row, (*title, truth.eos_id), titles) for title in catalogue.titles.values()]
        np.testing.assert_allclose(scores[row, 1:], expected, atol=2e-5)
        assert sum(np.exp(truth.log_prob(row, title, titles)) for title in titles) == pytest.approx(1)


def test_titles_of_one_token(truth):
    trie = CatalogueTrie.build(np.array([[0], [5], [3]]), np.array([0, 1, 1]), truth.eos_id)
    scores = rank_catalogue(truth.model, truth.prompts, truth.lengths, truth.context, trie, eos_id=truth.eos_id)
    expected = [[truth.log_prob(row, (token, truth.eos_id)) for token in (5, 3)] for row in truth.rows]
    np.testing.assert_allclose(scores[:, 1:], expected, atol=2e-5)


def test_bad_chunks_are_named(truth, trie):
    with pytest.raises(ValueError, match="nodes_per_chunk must be at least 1, got 0"):
        rank_catalogue(truth.model, truth.prompts, truth.lengths, truth.context, trie, eos_id=2, nodes_per_chunk=0)
