"""The benchmark compares equals: STATIC's search finds the items that our beams find, with the same scores."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.beam_workload import EOS, BeamWorkload
from benchmarks.static_trie import StaticTrie, static_search
from user_llm.checkpoints.huggingface import load_language_model
from user_llm.decoding.beam import beam_search
from user_llm.decoding.catalogue_trie import CatalogueTrie

SMALL = BeamWorkload(
    users=3, num_beams=6, prompt_length=4, vocabulary=15, num_layers=2, width=16, num_heads=2, hidden=24
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    SMALL.save(folder)
    return load_language_model(folder)


@pytest.mark.parametrize("count", [400, 4])
def test_static_finds_our_items(model, count):
    """Of 4 items: beams that have nowhere to go. Of 400: some that are equal."""
    codes = np.random.default_rng(count).integers(3, SMALL.vocabulary, (count + 1, 4), dtype=np.int32)
    prompts, lengths = jnp.asarray(SMALL.prompts(), jnp.int32), jnp.full(SMALL.users, SMALL.prompt_length, jnp.int32)
    ours = beam_search(
        model,
        prompts,
        lengths,
        num_beams=SMALL.num_beams,
        max_steps=4,
        eos_id=EOS,
        trie=CatalogueTrie.build(codes, np.full(count + 1, 4), EOS),
    )
    trie = StaticTrie.build(codes[1:], SMALL.vocabulary)
    tokens, scores = static_search(model, prompts, lengths, trie, num_beams=SMALL.num_beams)
    np.testing.assert_allclose(scores, ours.scores, atol=1e-5)
    found = np.isfinite(scores)
    assert (found.sum(axis=1) == min(count, SMALL.num_beams)).all()
    np.testing.assert_array_equal(np.asarray(tokens)[found], np.asarray(ours.tokens)[found])
    assert {tuple(item) for item in np.asarray(tokens)[found]} <= {tuple(item) for item in codes[1:]}
