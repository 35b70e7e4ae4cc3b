"""The language model: its mask and its cache are all that decides who sees whom."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from user_llm.models import parameters
from user_llm.models.language_model import LanguageModel, causal_mask
from user_llm.models.layers import RopeScaling

# What differs from a Llama where it could matter to masks, positions and the cache.
FAMILIES = {
    "llama": {},
    "gemma": dict(
        norm="rms_plus_one",
        activation="gelu_tanh",
        post_norms=True,
        qk_norm=True,
        query_scale=0.6,
        attention_softcap=3.0,
        final_softcap=2.0,
        embedding_scale=4.3,
        rope_scaling=RopeScaling("linear", 8.0),
        sliding_window=3,
        local_layers=(True, False, True),
        local_rope_theta=50.0,
    ),
    "gpt2": dict(
        norm="layer",
        activation="gelu",
        gated=False,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        learned_positions=True,
        max_length=9,
    ),
}
# Layers unrolled and scanned share one test each: what differs is where a layer's index and view come from.
KINDS = [("llama", False), ("llama", True), ("gemma", False), ("gemma", True), ("gpt2", False)]
EACH_KIND = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0]}-{'scan' if kind[1] else 'unroll'}")


@pytest.fixture(scope="module")
def models(make_user_llm, with_parameters_of) -> dict[tuple[str, bool], LanguageModel]:
    made = {}
    for family, scan in KINDS:
        model = make_user_llm(family=FAMILIES[family], scan_layers=scan).language_model
        made[family, scan] = with_parameters_of(made[family, False], model) if scan else model
    return made


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


@EACH_KIND
def test_prefill_then_steps_equals_the_whole_sequence(models, tokens, kind):
    model = models[kind]
    expected = _full(model, tokens)
    batch, length, prompt, slots = *tokens.shape, 3, 8
    cache = model.init_cache(batch, slots)
    assert cache["key"].shape == (3, batch, slots, 2, 4)
    assert ("position" in cache) == (kind[0] == "gemma")
    sees = jnp.tril(jnp.ones((length, slots), bool))
    positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
    mask = jnp.broadcast_to(sees, (batch, length, slots))
    logits, cache = _call(model, tokens[:, :prompt], positions[:, :prompt], mask[:, :prompt], cache, 0)
    np.testing.assert_allclose(logits, expected[:, :prompt], atol=1e-5)
    for at in range(prompt, length):  # one compilation: the offset is traced
        step = slice(at, at + 1)
        logits, cache = _call(model, tokens[:, step], positions[:, step], mask[:, step], cache, at)
        np.testing.assert_allclose(logits[:, 0], expected[:, at], atol=1e-5)


@EACH_KIND
def test_beams_share_the_token_axis_and_see_their_own_ancestors(models, kind):
    """Three continuations of a prompt in one cache equal three separate sequences."""
    model = models[kind]
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


@EACH_KIND
def test_padding_on_either_side_changes_nothing(models, tokens, kind):
    model, batch = models[kind], len(tokens)
    expected = _full(model, tokens)
    length = tokens.shape[1]
    for left, right in ((2, 0), (0, 2)):
        padded = np.pad(tokens, ((0, 0), (left, right)))
        valid = jnp.asarray(padded) > 0
        positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
        logits, _ = _call(model, padded, positions, causal_mask(valid))
        np.testing.assert_allclose(logits[:, left : left + length], expected, atol=1e-5)
        assert jnp.all(jnp.isfinite(logits)), batch


@pytest.mark.parametrize("kind", [("gemma", False), ("gemma", True)], ids=["unroll", "scan"])
def test_a_window_counts_positions_and_not_slots_of_the_cache(models, tokens, kind):
    """Rows of 1, 2 and 2 tokens right-padded to 4 slots, then four more each: as the rows without padding."""
    model, lengths, whole = models[kind], np.array([1, 2, 2]), _full(models[kind], tokens)
    cache = model.init_cache(3, 8)
    positions = jnp.broadcast_to(jnp.arange(4), (3, 4))
    visible = np.arange(4) < lengths[:, None]
    mask = np.zeros((3, 4, 8), bool)
    mask[:, :, :4] = np.tril(np.ones((4, 4), bool)) & visible[:, None]
    _, cache = _call(model, tokens[:, :4], positions, mask, cache, 0)
    for step in range(4):
        sees = np.concatenate([visible, np.broadcast_to(np.arange(4) <= step, (3, 4))], axis=1)[:, None]
        at = np.arange(3), lengths + step
        logits, cache = _call(model, tokens[at][:, None], jnp.asarray(at[1])[:, None], sees, cache, 4 + step)
        np.testing.assert_allclose(logits[:, 0], whole[at], atol=1e-5)


def test_a_stack_of_local_layers_reads_as_far_as_its_windows_reach(make_user_llm, tokens):
    """Three layers that see 2 tokens each: token t depends on tokens t-3 … t, of a Llama on all up to t."""
    for family, reach in (({}, 6), (dict(sliding_window=2, local_layers=(True,) * 3), 3)):
        model = make_user_llm(family=family).language_model
        changed = np.stack([tokens[0]] * 7)
        changed[np.arange(6), np.arange(6)] = 1 + tokens[0] % 39  # row s has another token s; row 6 has none
        logits = np.asarray(_full(model, changed))
        depends = np.any(np.abs(logits[:6] - logits[6]) > 1e-6, axis=-1)
        distance = np.arange(6) - np.arange(6)[:, None]
        np.testing.assert_array_equal(depends, (distance >= 0) & (distance <= reach))


def test_embeddings_are_read_as_tokens_are_and_scaled_in_the_compute_dtype(make_user_llm, models, tokens):
    model = models["gemma", False]
    x = model.embed(tokens)
    np.testing.assert_array_equal(x, np.asarray(model.embedding_VD[...])[tokens] * np.float32(4.3))
    positions, mask = jnp.broadcast_to(jnp.arange(6), tokens.shape), causal_mask(tokens > 0)
    read = jax.jit(lambda model, x: model.logits(model.read(x, positions, mask)[0]))(model, x)
    np.testing.assert_allclose(read, _full(model, tokens), atol=1e-5)
    low = make_user_llm(family=dict(embedding_scale=3072**0.5), dtype="bfloat16").language_model
    # √3072 is 55.4256; Gemma's checkpoints know it as the bfloat16 55.5.
    expected = low.embedding_VD[...].astype(jnp.bfloat16)[tokens] * jnp.bfloat16(55.5)
    np.testing.assert_array_equal(low.embed(tokens), expected)


def test_gates_at_zero_leave_every_bit_of_a_scaled_and_post_normed_model(make_user_llm, history, tokens):
    """Its float32 products reach the residual sum rounded, whatever XLA fuses around them (`round_product`)."""
    model = make_user_llm(family=FAMILIES["gemma"])
    structure, values, buffers = parameters.split(model)
    closed = {path: value * (not path.endswith("_gate_D")) for path, value in values.items()}
    model = parameters.merge(structure, closed, buffers)
    positions, mask = jnp.broadcast_to(jnp.arange(6), tokens.shape), causal_mask(tokens > 0)
    run = jax.jit(lambda model, context: model(tokens, positions, mask, context=context)[0])
    context = model.encode(history, history["item"] > 0)
    np.testing.assert_array_equal(run(model, context), run(model, None))


def test_learned_positions_are_added_to_the_embeddings_and_end_at_max_length(models, tokens):
    model = models["gpt2", False]
    positions, mask = jnp.broadcast_to(jnp.arange(6), tokens.shape), causal_mask(tokens > 0)
    run = jax.jit(lambda model, x, positions: model.read(x, positions, mask)[0])
    x = model.embed(tokens)
    table = model.position_TD[...]
    moved = run(model, x + table[positions + 3] - table[positions], positions)
    np.testing.assert_allclose(moved, run(model, x, positions + 3), atol=1e-4)
    assert not jnp.any(jnp.isnan(run(model, x, positions + 3)[:, -1]))
    assert jnp.all(jnp.isnan(run(model, x, positions + 4)[:, -1]))


def test_logits_stay_below_their_cap(models):
    model = models["gemma", False]
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16)) * 10, jnp.float32)
    products = np.asarray(hidden) @ np.asarray(model.output_table()).T
    assert np.max(np.abs(products)) > 4
    np.testing.assert_allclose(model.logits(hidden), 2 * np.tanh(products / 2), atol=1e-5)


def test_bfloat16_compute_gives_float32_logits_close_to_the_exact_ones(
    make_user_llm, user_llm, with_parameters_of, tokens
):
    low = with_parameters_of(user_llm, make_user_llm(dtype="bfloat16")).language_model
    logits, expected = _full(low, tokens), _full(user_llm.language_model, tokens)
    assert logits.dtype == jnp.float32
    assert low.init_cache(1, 2)["key"].dtype == jnp.bfloat16
    np.testing.assert_allclose(logits, expected, atol=0.05 * float(jnp.std(expected)) * 3)


def test_logits_are_products_with_the_output_table(models):
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16)), jnp.float32)
    model = models["llama", False]
    table = np.asarray(model.output_table())
    assert table.shape == (40, 16)
    np.testing.assert_allclose(model.logits(hidden), hidden @ table.T, atol=1e-5)
