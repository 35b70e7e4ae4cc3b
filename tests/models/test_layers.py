"""Norms, MLP, rotary positions, dropout and lookup against their definitions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from user_llm.models.layers import (
    ACTIVATIONS,
    MLP,
    RMSNorm,
    RopeScaling,
    dropout,
    lookup,
    make_norm,
    parameter,
    rotary_angles,
    rotate,
)


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


def test_gemmas_norm_multiplies_by_one_plus_its_scale():
    norm = make_norm("rms_plus_one", 6, epsilon=1e-5, param_dtype="float32", rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    plain = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(norm(x), plain, rtol=1e-5)  # starts as the plain norm
    norm.scale_D[...] = jnp.arange(6.0)
    np.testing.assert_allclose(norm(x), plain * np.arange(1.0, 7.0), rtol=1e-5)


def test_layer_norm_is_its_formula():
    norm = make_norm("layer", 6, epsilon=1e-2, param_dtype="float32", rngs=nnx.Rngs(0))
    norm.scale_D[...], norm.bias_D[...] = jnp.arange(1.0, 7.0), jnp.arange(6.0)
    x = 5 + np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-2)
    np.testing.assert_allclose(norm(x), expected * np.arange(1.0, 7.0) + np.arange(6.0), rtol=1e-4, atol=1e-5)
    assert norm(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


def test_an_unknown_norm_or_activation_is_named():
    with pytest.raises(ValueError, match="norm is 'batch'; known: rms, rms_plus_one, layer"):
        make_norm("batch", 6, epsilon=1e-5, param_dtype="float32", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="activation is 'mish'; known: silu, relu, gelu, gelu_tanh"):
        _mlp(activation="mish", gated=False)


def test_the_two_gelus_are_their_formulas():
    x = np.linspace(-3, 3, 13).astype(np.float32)
    exact = [v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in x]
    approximate = [v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) / 2 for v in x]
    np.testing.assert_allclose(ACTIVATIONS["gelu"](x), exact, atol=1e-6)
    np.testing.assert_allclose(ACTIVATIONS["gelu_tanh"](x), approximate, atol=1e-6)
    assert np.max(np.abs(np.subtract(exact, approximate))) > 1e-4


def _frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """Radians a token, read off the angles of position 1."""
    cosine, sine = rotary_angles(jnp.array([[1]]), head_dim, theta, scaling)
    return np.arctan2(sine, cosine)[0, 0, 0]


def test_linear_scaling_is_a_slower_walk_through_the_positions():
    scaled = rotary_angles(jnp.array([[0, 4, 40]]), 8, 100.0, RopeScaling("linear", 4.0))
    for got, expected in zip(scaled, rotary_angles(jnp.array([[0, 1, 10]]), 8, 100.0), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_llama3_scaling_keeps_high_frequencies_and_divides_low_ones():
    """Wavelength by wavelength, against the two lengths that part the three kinds."""
    plain = _frequencies(64, 500000.0)
    found = _frequencies(64, 500000.0, RopeScaling("llama3", 8.0, 1.0, 4.0, 8192))
    kinds = set()
    for frequency, got in zip(np.float64(plain), found, strict=True):
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4:
            kind, expected = "kept", frequency
        elif wavelength > 8192 / 1:
            kind, expected = "divided", frequency / 8
        else:
            share = (8192 / wavelength - 1) / (4 - 1)
            kind, expected = "between", (1 - share) * frequency / 8 + share * frequency
        kinds.add(kind)
        assert got == pytest.approx(expected, rel=1e-5)
    assert kinds == {"kept", "divided", "between"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(kind="yarn", factor=2.0), "kind is 'yarn'; known: linear, llama3"),
        (dict(kind="linear", factor=0.0), "factor must be above 0"),
        (dict(kind="llama3", factor=8.0, low_frequency_factor=4.0), r"low_frequency_factor \(4.0\) must be below"),
    ],
)
def test_a_wrong_rope_scaling_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        RopeScaling(**wrong)


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


def _mlp(**options) -> MLP:
    common = dict(output_scale=1.0, width_axis="embed", hidden_axis="mlp", dtype="float32", param_dtype="float32")
    return MLP(4, 6, **options, **common, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_mlp_is_its_formula(gated, bias):
    mlp = _mlp(activation="silu" if gated else "relu", gated=gated, bias=bias)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 4)).astype(np.float32)
    biases = {"gate_bias_F": np.zeros(6), "up_bias_F": np.zeros(6), "down_bias_D": np.zeros(4)}
    if bias:
        biases = {name: rng.normal(size=value.shape) for name, value in biases.items()}
        for name, value in biases.items():
            if gated or name != "gate_bias_F":
                getattr(mlp, name)[...] = jnp.asarray(value, jnp.float32)
    up, down = np.asarray(mlp.up_DF[...]), np.asarray(mlp.down_FD[...])
    hidden = x @ up + biases["up_bias_F"]
    if gated:
        gate = x @ np.asarray(mlp.gate_DF[...]) + biases["gate_bias_F"]
        hidden = gate / (1 + np.exp(-gate)) * hidden
    else:
        hidden = np.maximum(hidden, 0)
    np.testing.assert_allclose(mlp(x), hidden @ down + biases["down_bias_D"], rtol=1e-4, atol=1e-6)


def test_parameter_refuses_a_wrong_number_of_axis_names():
    with pytest.raises(ValueError, match=r"2 dimensions .* but 1 axis names"):
        parameter(nnx.Rngs(0), jax.nn.initializers.ones, (2, 3), ("embed",), "float32")
