"""Attention against loops over single queries, written without looking at it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from user_llm.models import attention
from user_llm.models.attention import Attention, attend, write_cache
from user_llm.models.layers import rotary_angles, rotate

B, T, S, N, K, H = 2, 5, 7, 6, 3, 4


@pytest.fixture(scope="module")
def inputs() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=shape).astype(np.float32) for shape in [(B, T, N, H), (B, S, K, H), (B, S, K, H)])
    mask = rng.random((B, T, S)) < 0.6
    mask[..., 0] = True
    return q, k, v, mask


def _naive(q, k, v, mask, scale=H**-0.5, cap=None):
    """Query head n reads key head n // (N / K)."""
    out = np.zeros((B, T, N, H))
    for b in range(B):
        for t in range(T):
            for n in range(N):
                slots = np.flatnonzero(mask[b, t % mask.shape[1]])
                scores = k[b, slots, n // (N // K)] @ q[b, t, n] * scale
                scores = scores if cap is None else cap * np.tanh(scores / cap)
                weights = np.exp(scores - scores.max())
                out[b, t, n] = weights / weights.sum() @ v[b, slots, n // (N // K)]
    return out


def test_equals_loops_over_queries_with_grouped_heads(inputs):
    q, k, v, mask = inputs
    np.testing.assert_allclose(attend(q, k, v, mask), _naive(q, k, v, mask), atol=1e-5)


def test_one_mask_row_serves_all_queries(inputs):
    q, k, v, mask = inputs
    np.testing.assert_allclose(attend(q, k, v, mask[:, :1]), _naive(q, k, v, mask[:, :1]), atol=1e-5)


def test_scores_have_their_own_scale_and_a_soft_cap_below_the_mask(inputs):
    q, k, v, mask = inputs
    found = attend(q, k, v, mask, scale=0.9, cap=1.5)
    np.testing.assert_allclose(found, _naive(q, k, v, mask, scale=0.9, cap=1.5), atol=1e-5)
    assert np.max(np.abs(found - attend(q, k, v, mask, scale=0.9))) > 0.1


def test_gradients_equal_those_of_the_library(inputs):
    q, k, v, mask = inputs
    weight = jax.random.normal(jax.random.key(0), q.shape)

    def library(q, k, v):
        return jnp.sum(weight * jax.nn.dot_product_attention(q, k, v, mask=mask[:, None]))

    ours = jax.grad(lambda q, k, v: jnp.sum(weight * attend(q, k, v, mask)), argnums=(0, 1, 2))(q, k, v)
    for got, expected in zip(ours, jax.grad(library, argnums=(0, 1, 2))(q, k, v), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_large_scores_and_empty_rows_stay_finite(inputs):
    q, k, v, mask = inputs
    mask = mask.copy()
    mask[0, 2] = False
    value, gradient = jax.value_and_grad(lambda q: jnp.sum(attend(q, k, v, jnp.asarray(mask)) ** 2))(q * 1e4)
    assert jnp.isfinite(value)
    assert jnp.all(jnp.isfinite(gradient))
    np.testing.assert_allclose(attend(q, k, v, jnp.asarray(mask))[0, 2, 0], v[0, :, 0].mean(axis=0), atol=1e-6)


def test_bfloat16_is_close_and_stays_bfloat16(inputs):
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in inputs[:3])
    out = attend(q, k, v, inputs[3])
    assert out.dtype == jnp.bfloat16
    exact = _naive(*(np.float64(x) for x in (q, k, v)), inputs[3])
    np.testing.assert_allclose(np.float32(out), exact, atol=0.03)


def test_cache_is_written_at_a_traced_place():
    cache = {name: jnp.zeros((2, B, S, K, H)) for name in ("key", "value")}
    k, v = jnp.ones((B, 2, K, H)), 2 * jnp.ones((B, 2, K, H))
    written = jax.jit(write_cache)(cache, 1, 3, k, v)
    expected = np.zeros((2, B, S, K, H))
    expected[1, :, 3:5] = 1
    np.testing.assert_array_equal(written["key"], expected)
    np.testing.assert_array_equal(written["value"], 2 * expected)


def _attention(**options) -> Attention:
    common = dict(head_dim=H, key_width=8, output_scale=1.0, width_axis="embed", key_axis="user", norm_eps=1e-3)
    return Attention(8, **options, **common, dtype="float32", param_dtype="float32", rngs=nnx.Rngs(0))


def test_biases_and_head_norms_come_before_the_rotation(inputs):
    """Attention with all its options is `attend` of queries and keys made by hand."""
    mask = inputs[3]
    rng = np.random.default_rng(1)
    x, y = (rng.normal(size=(B, length, 8)).astype(np.float32) for length in (T, S))
    attention = _attention(
        num_heads=N, num_kv_heads=K, qk_norm="rms_plus_one", qkv_bias=True, output_bias=True, query_scale=0.7
    )
    values = {}
    for path, variable in nnx.to_flat_state(nnx.state(attention, nnx.Param)):
        values["/".join(path)] = rng.normal(size=variable.shape).astype(np.float32)
        variable[...] = jnp.asarray(values["/".join(path)])

    def heads(x, target, letters, length):
        projected = np.einsum(f"btd,d{letters}->bt{letters}", x, values[f"{target}_D{letters.upper()}"])
        projected = projected + values[f"{target}_bias_{letters.upper()}"]
        if target == "v":
            return projected
        normed = projected / np.sqrt(np.mean(projected**2, axis=-1, keepdims=True) + 1e-3)
        angles = rotary_angles(jnp.broadcast_to(jnp.arange(length), (B, length)), H, 10.0)
        return rotate(normed * (1 + values[f"{target}_norm/scale_D"]), angles)

    q, k, v = heads(x, "q", "nh", T), heads(y, "k", "kh", S), heads(y, "v", "kh", S)
    expected = np.einsum("btnh,nhd->btd", _naive(q, k, v, mask, scale=0.7), values["o_NHD"]) + values["o_bias_D"]
    angles = [rotary_angles(jnp.broadcast_to(jnp.arange(length), (B, length)), H, 10.0) for length in (T, S)]
    found = attention(x, *attention.keys_values(y, angles[1]), mask, angles[0])
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_key_value_heads_must_divide_heads():
    with pytest.raises(ValueError, match=r"num_heads \(4\) must be a multiple of num_kv_heads \(3\)"):
        _attention(num_heads=4, num_kv_heads=3)


# Queries, slots, scores at a time, rows of the mask, cap: blocks that divide the queries and not, of one query too.
BLOCKS = [(8, 8, 16, 8, None), (7, 5, 20, 7, 1.5), (9, 12, 5, 1, None), (1, 9, 5, 1, None)]


@pytest.mark.parametrize(("queries", "slots", "block", "mask_rows", "cap"), BLOCKS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_in_blocks_of_queries_it_is_the_same(monkeypatch, queries, slots, block, mask_rows, cap, dtype):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(B, *shape)), dtype) for shape in [(queries, N, H), *[(slots, K, H)] * 2])
    mask = rng.random((B, mask_rows, slots)) < 0.6
    mask[0, 0] = False
    weight = jnp.asarray(rng.normal(size=q.shape), jnp.float32)

    def value_and_gradients():
        loss = lambda q, k, v: jnp.sum(weight * attend(q, k, v, jnp.asarray(mask), cap=cap))  # noqa: E731
        return jax.tree.leaves(jax.value_and_grad(loss, argnums=(0, 1, 2))(q, k, v))

    at_once = value_and_gradients()
    monkeypatch.setattr(attention, "AT_ONCE", 1)
    monkeypatch.setattr(attention, "_BLOCK", block)
    tolerance = 1e-5 if dtype == jnp.float32 else 0.05
    for got, expected in zip(value_and_gradients(), at_once, strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(np.float32(got), np.float32(expected), rtol=tolerance, atol=tolerance)


def test_of_many_slots_only_some_queries_have_scores_at_a_time(monkeypatch):
    monkeypatch.setattr(attention, "AT_ONCE", 2**16)
    monkeypatch.setattr(attention, "_BLOCK", 2**14)
    length = 300
    q, k = jnp.ones((1, length, 2, 4)), jnp.ones((1, length, 1, 4))
    mask = jnp.ones((1, 1, length), bool)
    gradient = jax.grad(lambda q, k: jnp.sum(attend(q, k, k, mask)), argnums=(0, 1))
    program = jax.jit(gradient).lower(q, k).compile()
    shapes = re.findall(r"f32\[([\d,]+)\]", program.as_text())
    sizes = [np.prod([int(size) for size in shape.split(",")]) for shape in shapes]
    assert max(sizes) <= 2 * attention._BLOCK < 2 * length * length
