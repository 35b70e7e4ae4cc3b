"""Norm, rotary positions, dropout and lookup against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from user_llm.models.layers import MLP, RMSNorm, dropout, lookup, parameter, rotary_angles, rotate


def test_rms_norm_is_its_formula_and_works_in_float32():
    norm = RMSNorm(6, epsilon=1e-5, param_dtype="float32", rngs=nnx.Rngs(0))
    norm.scale_D[...] = jnp.arange(1.0, 7.0)
    x = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * np.arange(1.0, 7.0)
    np.testing.assert_allclose(norm(x), expected, rtol=1e-5)
    # Squares of 1e30 overflow nothing in bf16 alone, but would lose every digit of a sum of 6 without float32.
    low = jnp.asarray(x, jnp.bfloat16)
    assert norm(low).dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(norm(low)), np.float32(norm(np.float32(low))), rtol=2**-8)


def test_rotary_attention_scores_depend_on_distance_alone():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

    def score(query_at: int, key_at: int) -> float:
        at = [rotary_angles(jnp.array([[position]]), 8, 10000.0) for position in (query_at, key_at)]
        return float(jnp.sum(rotate(q, at[0]) * rotate(k, at[1])))

    assert score(5, 2) == pytest.approx(score(105, 102), abs=1e-4)
    assert score(0, 0) == pytest.approx(float(jnp.sum(q * k)), abs=1e-5)
    assert abs(score(5, 2) - score(2, 5)) > 1e-2


def test_dropout_keeps_the_mean_and_needs_a_key():
    x = jnp.ones((400, 400))
    y = dropout(x, 0.25, jax.random.key(0))
    assert float(jnp.mean(y == 0)) == pytest.approx(0.25, abs=0.01)
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    np.testing.assert_array_equal(y, dropout(x, 0.25, jax.random.key(0)))
    assert jnp.any(y != dropout(x, 0.25, jax.random.key(1)))
    assert dropout(x, 0.25, None) is x


def test_an_id_outside_a_table_shows_as_nan():
    table = nnx.Param(jnp.ones((3, 2)))
    assert jnp.all(jnp.isnan(lookup(table, jnp.array([3]), "float32")))
    assert jnp.all(lookup(table, jnp.array([2]), "float32") == 1)


@pytest.mark.parametrize("gated", [False, True])
def test_mlp_is_its_formula(gated):
    mlp = MLP(
        4,
        6,
        activation="silu" if gated else "relu",
        gated=gated,
        output_scale=1.0,
        width_axis="embed",
        hidden_axis="mlp",
        dtype="float32",
        param_dtype="float32",
        rngs=nnx.Rngs(0),
    )
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    up, down = np.asarray(mlp.up_DF[...]), np.asarray(mlp.down_FD[...])
    if gated:
        gate = x @ np.asarray(mlp.gate_DF[...])
        hidden = gate / (1 + np.exp(-gate)) * (x @ up)
    else:
        hidden = np.maximum(x @ up, 0)
    np.testing.assert_allclose(mlp(x), hidden @ down, rtol=1e-4, atol=1e-6)


def test_parameter_refuses_a_wrong_number_of_axis_names():
    with pytest.raises(ValueError, match=r"2 dimensions .* but 1 axis names"):
        parameter(nnx.Rngs(0), jax.nn.initializers.ones, (2, 3), ("embed",), "float32")
