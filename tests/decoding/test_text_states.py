"""What is computed once for all users, against the whole model on every user."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from user_llm.decoding.beam import beam_search
from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.decoding.ranking import rank_catalogue
from user_llm.decoding.text_states import TextStates, name_rows, read_texts
from user_llm.models.cross_attention import CrossAttention, CrossAttentionConfig
from user_llm.models.language_model import LanguageModel, LanguageModelConfig, causal_mask

PROMPT, WIDTH = [1, 4, 3], 5  # asked of everybody; and how wide prompts are
EXCLUDED = np.array([[1, 2, 3, 41], [5, 5, 0, 0], [0, 0, 0, 0]])


@pytest.fixture(scope="module")
def model(truth):
    """The model of `truth` with its one block before its last layer."""
    language_model = truth.model.language_model
    config = CrossAttentionConfig(every=1, num_heads=2, head_dim=4, hidden=8, first_layer=1)
    connector = CrossAttention(config, language_model.config, 8, rngs=nnx.Rngs(3))
    for block in connector.blocks:
        block.attention_gate_D[...] = jnp.full_like(block.attention_gate_D[...], 2.0)
    model = nnx.clone(truth.model)
    model.connector = connector
    return model


@pytest.fixture(scope="module")
def context(model):
    items = jnp.array([[1, 2, 3, 4], [0, 5, 2, 1], [0, 0, 0, 5]])
    return model.encode({"item": items, "rating": items}, items > 0)


@pytest.fixture(scope="module")
def prompts():
    return np.tile(PROMPT + [0] * (WIDTH - len(PROMPT)), (3, 1)), np.full(3, len(PROMPT))


@pytest.fixture(scope="module")
def trie(catalogue):
    return CatalogueTrie.build(*catalogue.tables, 2)


@pytest.fixture(scope="module")
def states(model, trie):
    return TextStates(
        jnp.concatenate([*read_texts(model.language_model, PROMPT, trie, 1, nodes_per_chunk=7)]), len(PROMPT)
    )


def test_they_are_those_of_every_text_by_itself(model, catalogue, trie, states):
    rows = name_rows(trie, len(PROMPT), WIDTH + 4)
    assert states.table.shape == (len(PROMPT) + len(trie.tree.token), 16)
    texts = np.zeros((len(rows), WIDTH + 4), np.int32)
    for item, title in catalogue.titles.items():
        texts[item, : len(PROMPT) + len(title)] = [*PROMPT, *title]
    positions, mask = jnp.broadcast_to(jnp.arange(WIDTH + 4), texts.shape), causal_mask(jnp.ones(texts.shape, bool))
    expected, _ = model.language_model.lower(texts, positions, mask, 1)
    for item, title in catalogue.titles.items():
        length = len(PROMPT) + len(title)
        np.testing.assert_allclose(states.table[rows[item]][:length], expected[item, :length], atol=1e-5)
        assert not rows[item][length:].any()
    np.testing.assert_array_equal(name_rows(trie, len(PROMPT), len(PROMPT) + 2), rows[:, : len(PROMPT) + 2])


def test_the_layers_above_go_on_from_them(model, context, prompts):
    tokens, _ = prompts
    positions, mask = jnp.broadcast_to(jnp.arange(WIDTH), tokens.shape), causal_mask(jnp.ones(tokens.shape, bool))
    below, _ = model.language_model.lower(tokens, positions, mask, model.first_layer)
    for read in (context, None):
        found, _ = model.above(below, positions, mask, context=read)
        expected, _ = model(tokens, positions, mask, context=read)
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("num_beams", [1, 6])
@pytest.mark.parametrize("reads", [True, False])
def test_beams_are_those_of_the_whole_model(model, context, prompts, trie, states, num_beams, reads):
    options = dict(num_beams=num_beams, max_steps=5, eos_id=2, trie=trie, excluded_items=jnp.asarray(EXCLUDED))
    expected = beam_search(model, *prompts, context if reads else None, **options)
    found = beam_search(model, *prompts, context if reads else None, **options, states=states)
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


def test_they_are_read_and_not_computed_again(model, context, prompts, trie, states):
    others = TextStates(states.table[:, ::-1], states.prompt_length)
    options = dict(num_beams=3, max_steps=5, eos_id=2, trie=trie)
    scores = [np.asarray(beam_search(model, *prompts, context, **options, states=s).scores) for s in (states, others)]
    assert np.abs(scores[0] - scores[1]).max() > 0.1


@pytest.mark.parametrize("nodes_per_chunk", [7, 1000])
def test_so_are_scores_of_the_whole_catalogue(model, context, prompts, trie, states, nodes_per_chunk):
    options = dict(eos_id=2, nodes_per_chunk=nodes_per_chunk)
    expected = rank_catalogue(model, *prompts, context, trie, **options)
    found = rank_catalogue(model, *prompts, context, trie, **options, states=states)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_cache_is_that_of_the_layers_above(model):
    config = model.language_model.config
    assert model.language_model.init_cache(2, 3, first=1)["key"].shape[0] == config.num_layers - 1
    assert model.language_model.init_cache(2, 3, end=1)["key"].shape[0] == 1


def test_free_beams_have_no_states(model, context, prompts, states):
    with pytest.raises(ValueError, match="states and prior need trie="):
        beam_search(model, *prompts, context, num_beams=2, max_steps=2, eos_id=2, states=states)


def test_learned_positions_and_windows_are_below_too(truth):
    """GPT-2's positions are added once, at the bottom; a local layer's window counts positions above as well."""
    config = LanguageModelConfig(
        vocab_size=9, num_layers=3, width=16, num_heads=2, num_kv_heads=2, head_dim=8, hidden=16,
        learned_positions=True, sliding_window=2, local_layers=(True, False, True), max_length=8,
    )  # fmt: skip
    model = LanguageModel(config, rngs=nnx.Rngs(0))
    tokens = jax.random.randint(jax.random.key(0), (2, 8), 0, 9)
    positions, mask = jnp.broadcast_to(jnp.arange(8), (2, 8)), causal_mask(jnp.ones((2, 8), bool))
    expected, _ = model(tokens, positions, mask)
    for layer in (1, 2):
        below, _ = model.lower(tokens, positions, mask, layer)
        found, _ = model.read(below, positions, mask, first=layer)
        np.testing.assert_allclose(found, expected, atol=1e-6)
