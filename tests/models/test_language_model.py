"""The language model: its mask and its cache are all that decides who sees whom."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from user_llm.models.language_model import LanguageModel, causal_mask

# Layers unrolled and scanned share one test each: what differs is where the cache's layer index comes from.
LAYOUTS = pytest.mark.parametrize("scan_layers", [False, True])


@pytest.fixture(scope="module")
def models(make_user_llm, user_llm, with_parameters_of) -> dict[bool, LanguageModel]:
    scanned = with_parameters_of(user_llm, make_user_llm(scan_layers=True))
    return {False: user_llm.language_model, True: scanned.language_model}


@jax.jit
def _call(model, tokens, positions, mask, cache=None, offset=0):
    hidden, cache = model(tokens, positions, mask, cache=cache, offset=offset)
    return model.logits(hidden), cache


def _full(model, tokens):
    """Logits of whole sequences, without a cache."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return _call(model, tokens, positions, causal_mask(jnp.asarray(tokens) > 0))[0]


def test_causal_mask_is_its_definition():
    valid = np.array([[True, False, True]])
    expected = [[[s <= t and valid[0, s] for s in range(3)] for t in range(3)]]
    np.testing.assert_array_equal(causal_mask(jnp.asarray(valid)), expected)


@LAYOUTS
def test_prefill_then_steps_equals_the_whole_sequence(models, tokens, scan_layers):
    model = models[scan_layers]
    expected = _full(model, tokens)
    batch, length, prompt, slots = *tokens.shape, 3, 8
    cache = model.init_cache(batch, slots)
    assert cache["key"].shape == (3, batch, slots, 2, 4)
    sees = jnp.tril(jnp.ones((length, slots), bool))
    positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
    mask = jnp.broadcast_to(sees, (batch, length, slots))
    logits, cache = _call(model, tokens[:, :prompt], positions[:, :prompt], mask[:, :prompt], cache, 0)
    np.testing.assert_allclose(logits, expected[:, :prompt], atol=1e-5)
    for at in range(prompt, length):  # one compilation: the offset is traced
        step = slice(at, at + 1)
        logits, cache = _call(model, tokens[:, step], positions[:, step], mask[:, step], cache, at)
        np.testing.assert_allclose(logits[:, 0], expected[:, at], atol=1e-5)


@LAYOUTS
def test_beams_share_the_token_axis_and_see_their_own_ancestors(models, scan_layers):
    """Three continuations of a prompt in one cache equal three separate sequences."""
    model = models[scan_layers]
    prompt, beams = np.array([7, 3, 21]), np.array([[4, 5], [4, 9], [30, 5]])
    parents = np.array([2, 0, 0])  # the second token of beam j continues the first token of slot parents[j]
    cache = model.init_cache(1, 3 + 3 + 3)

    def run(tokens, positions, sees, cache, offset):
        mask = np.zeros((1, len(tokens), 9), bool)
        for t, slots in enumerate(sees):
            mask[0, t, slots] = True
        return _call(model, np.array([tokens]), np.array([positions]), mask, cache, offset)

    _, cache = run(prompt, [0, 1, 2], [[0], [0, 1], [0, 1, 2]], cache, 0)
    _, cache = run(beams[:, 0], [3] * 3, [[0, 1, 2, 3 + j] for j in range(3)], cache, 3)
    ancestry = [[0, 1, 2, 3 + parents[j], 6 + j] for j in range(3)]
    logits, _ = run(beams[:, 1], [4] * 3, ancestry, cache, 6)
    sequences = np.stack([[*prompt, beams[parents[j], 0], beams[j, 1]] for j in range(3)])
    np.testing.assert_allclose(logits[0], _full(model, sequences)[:, -1], atol=1e-5)


def test_padding_on_either_side_changes_nothing(models, tokens):
    model, batch = models[False], len(tokens)
    expected = _full(model, tokens)
    length = tokens.shape[1]
    for left, right in ((2, 0), (0, 2)):
        padded = np.pad(tokens, ((0, 0), (left, right)))
        valid = jnp.asarray(padded) > 0
        positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
        logits, _ = _call(model, padded, positions, causal_mask(valid))
        np.testing.assert_allclose(logits[:, left : left + length], expected, atol=1e-5)
        assert jnp.all(jnp.isfinite(logits)), batch


def test_bfloat16_compute_gives_float32_logits_close_to_the_exact_ones(
    make_user_llm, user_llm, with_parameters_of, tokens
):
    low = with_parameters_of(user_llm, make_user_llm(dtype="bfloat16")).language_model
    logits, expected = _full(low, tokens), _full(user_llm.language_model, tokens)
    assert logits.dtype == jnp.float32
    assert low.init_cache(1, 2)["key"].dtype == jnp.bfloat16
    np.testing.assert_allclose(logits, expected, atol=0.05 * float(jnp.std(expected)) * 3)


def test_logits_are_products_with_the_output_table(models, user_llm):
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16)), jnp.float32)
    table = np.asarray(models[False].output_table())
    assert table.shape == (40, 16)
    np.testing.assert_allclose(models[False].logits(hidden), hidden @ table.T, atol=1e-5)
