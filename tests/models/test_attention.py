"""Attention against loops over single queries, written without looking at it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from user_llm.models.attention import Attention, attend, write_cache

B, T, S, N, K, H = 2, 5, 7, 6, 3, 4


@pytest.fixture(scope="module")
def inputs() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=shape).astype(np.float32) for shape in [(B, T, N, H), (B, S, K, H), (B, S, K, H)])
    mask = rng.random((B, T, S)) < 0.6
    mask[..., 0] = True
    return q, k, v, mask


def _naive(q, k, v, mask):
    """Query head n reads key head n // (N / K)."""
    out = np.zeros((B, T, N, H))
    for b in range(B):
        for t in range(T):
            for n in range(N):
                slots = np.flatnonzero(mask[b, t % mask.shape[1]])
                scores = k[b, slots, n // (N // K)] @ q[b, t, n] / np.sqrt(H)
                weights = np.exp(scores - scores.max())
                out[b, t, n] = weights / weights.sum() @ v[b, slots, n // (N // K)]
    return out


def test_equals_loops_over_queries_with_grouped_heads(inputs):
    q, k, v, mask = inputs
    np.testing.assert_allclose(attend(q, k, v, mask), _naive(q, k, v, mask), atol=1e-5)


def test_one_mask_row_serves_all_queries(inputs):
    q, k, v, mask = inputs
    np.testing.assert_allclose(attend(q, k, v, mask[:, :1]), _naive(q, k, v, mask[:, :1]), atol=1e-5)


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


def test_key_value_heads_must_divide_heads():
    sizes = dict(head_dim=4, key_width=8, output_scale=1.0, width_axis="embed", key_axis="user")
    with pytest.raises(ValueError, match=r"num_heads \(4\) must be a multiple of num_kv_heads \(3\)"):
        Attention(8, num_heads=4, num_kv_heads=3, **sizes, dtype="float32", param_dtype="float32", rngs=nnx.Rngs(0))
