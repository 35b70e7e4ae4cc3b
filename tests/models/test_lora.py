"""LoRA: nothing at first, then exactly a low-rank change of the weights it names."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from user_llm.models import parameters
from user_llm.models.language_model import LanguageModel, LanguageModelConfig, causal_mask
from user_llm.models.layers import MLP, PROJECTIONS
from user_llm.models.lora import LoraConfig, add_lora, merge_lora

BASE = LanguageModelConfig(
    vocab_size=20, num_layers=2, width=12, num_heads=4, num_kv_heads=2, head_dim=4, hidden=10, tie_embeddings=False
)
EVERYTHING = LoraConfig(rank=3, alpha=6.0, targets=tuple(PROJECTIONS))
LAYOUTS = pytest.mark.parametrize("scan_layers", [False, True])
TOKENS = np.random.default_rng(0).integers(0, 20, (2, 5))


@jax.jit
def _logits(model):
    positions = jnp.broadcast_to(jnp.arange(5), TOKENS.shape)
    hidden, _ = model(TOKENS, positions, causal_mask(jnp.ones(TOKENS.shape, bool)))
    return model.logits(hidden)


def _model(config: LanguageModelConfig, values: parameters.Parameters) -> LanguageModel:
    graphdef, _, buffers = parameters.split(parameters.abstract(lambda rngs: LanguageModel(config, rngs=rngs)))
    return parameters.merge(graphdef, values, buffers)


def _initial(config: LanguageModelConfig) -> parameters.Parameters:
    """Random weights and A, B zero. NumPy's, to spare compilations."""
    rng = np.random.default_rng(0)
    shapes = parameters.split(parameters.abstract(lambda rngs: LanguageModel(config, rngs=rngs)))[1]
    values = {path: rng.normal(size=shape.shape) / np.sqrt(shape.shape[0]) for path, shape in shapes.items()}
    return {path: jnp.asarray(v * ("/b_R" not in path), jnp.float32) for path, v in values.items()}


def _adapters(values: parameters.Parameters) -> parameters.Parameters:
    return {path: value for path, value in values.items() if "/lora/" in path}


def _trained(values: parameters.Parameters) -> parameters.Parameters:
    """`values` with an adapter B that is no longer zero."""
    rng = np.random.default_rng(1)
    return {
        path: jnp.asarray(rng.normal(size=value.shape), value.dtype) if "/b_R" in path else value
        for path, value in values.items()
    }


def test_adapters_start_with_a_random_a_and_b_zero():
    sizes = dict(output_scale=1.0, width_axis="embed", hidden_axis="mlp", dtype="float32", param_dtype="float32")
    rngs = nnx.Rngs(0)
    mlp = MLP(64, 8, activation="silu", gated=False, **sizes, rngs=rngs)
    add_lora(LoraConfig(rank=16, targets=("up",)), mlp, rngs=rngs)
    assert list(mlp.lora) == ["up"]
    assert float(jnp.std(mlp.lora["up"].a_DR[...])) == pytest.approx(1 / 8, rel=0.1)
    assert not jnp.any(mlp.lora["up"].b_RF[...])


@LAYOUTS
def test_adapters_with_b_zero_change_no_bit_and_trained_ones_merge_into_the_weights(scan_layers):
    config = dataclasses.replace(BASE, scan_layers=scan_layers, lora=EVERYTHING)
    base_config = dataclasses.replace(config, lora=None)
    initial = _initial(config)
    base = {path: value for path, value in initial.items() if path not in _adapters(initial)}
    expected = _logits(_model(base_config, base))
    np.testing.assert_array_equal(_logits(_model(config, initial)), expected)

    trained = _trained(initial)
    found = _logits(_model(config, trained))
    assert np.max(np.abs(found - expected)) > 0.1
    merged = merge_lora(trained, EVERYTHING)
    assert merged.keys() == base.keys()
    np.testing.assert_allclose(_logits(_model(base_config, merged)), found, atol=1e-4)


@LAYOUTS
def test_paths_and_axes_of_adapters_follow_their_weights(scan_layers):
    config = dataclasses.replace(BASE, scan_layers=scan_layers, lora=LoraConfig(rank=3, targets=("q", "o", "down")))
    model = parameters.abstract(lambda rngs: LanguageModel(config, rngs=rngs))
    shapes, axes = _adapters(parameters.split(model)[1]), parameters.logical_axes(model)
    layers = "layers" if scan_layers else "layers/1"
    expected = {
        f"{layers}/attention/lora/q/a_DR": ((12, 3), ("embed", None)),
        f"{layers}/attention/lora/q/b_RNH": ((3, 4, 4), (None, "heads", "head_dim")),
        f"{layers}/attention/lora/o/a_NHR": ((4, 4, 3), ("heads", "head_dim", None)),
        f"{layers}/attention/lora/o/b_RD": ((3, 12), (None, "embed")),
        f"{layers}/mlp/lora/down/a_FR": ((10, 3), ("mlp", None)),
        f"{layers}/mlp/lora/down/b_RD": ((3, 12), (None, "embed")),
    }
    leading = ((2,), ("layers",)) if scan_layers else ((), ())
    assert len(shapes) == (6 if scan_layers else 12)
    for path, (shape, names) in expected.items():
        assert shapes[path].shape == leading[0] + shape
        assert axes[path] == leading[1] + names


@pytest.fixture(scope="module")
def adapted() -> tuple[LanguageModel, parameters.Parameters]:
    config = dataclasses.replace(BASE, num_layers=1, lora=EVERYTHING)
    values = _trained(_initial(config))
    return _model(config, values), values


@pytest.mark.parametrize("target", list(PROJECTIONS))
def test_each_map_adds_the_product_of_the_paper(adapted, target):
    model, values = adapted
    part = "mlp" if target in ("gate", "up", "down") else "attention"
    inputs, outputs = PROJECTIONS[target]
    count = len(inputs)
    weight, a, b = (
        np.float64(values[f"layers/0/{part}/{name}"])
        for name in (
            f"{target}_{inputs}{outputs}",
            f"lora/{target}/a_{inputs}R",
            f"lora/{target}/b_R{outputs}",
        )
    )
    x = np.random.default_rng(2).normal(size=(2, 3, *weight.shape[:count])).astype(np.float32)
    expected = np.tensordot(x, weight, count) + 6.0 / 3 * np.tensordot(np.tensordot(x, a, count), b, 1)
    found = getattr(model.layers[0], part).project(target, x)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    merged = merge_lora({f"language_model/{path}": value for path, value in values.items()}, EVERYTHING)
    np.testing.assert_allclose(
        merged[f"language_model/layers/0/{part}/{target}_{inputs}{outputs}"],
        weight + 6.0 / 3 * np.tensordot(a, b, 1),
        atol=1e-5,
    )


def test_merged_weights_keep_their_dtype(adapted):
    values = {path: v if "/lora/" in path else v.astype(jnp.bfloat16) for path, v in adapted[1].items()}
    assert {value.dtype for value in merge_lora(values, EVERYTHING).values()} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ("removed", "config", "message"),
    [
        ("/lora/", EVERYTHING, "No LoRA adapter among the parameters"),
        ("up_DF", EVERYTHING, "lora/up/a_DR needs the parameter layers/0/mlp/up_DF"),
        ("lora/k/b_", EVERYTHING, "lora/k/a_DR needs the parameter layers/0/attention/lora/k/b_RKH"),
        (None, LoraConfig(rank=4), "has rank 3, the config 4"),
    ],
)
def test_merging_what_does_not_belong_together_is_an_error(adapted, removed, config, message):
    values = {path: value for path, value in adapted[1].items() if removed is None or removed not in path}
    with pytest.raises(ValueError, match=message):
        merge_lora(values, config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(rank=0), "lora.rank must be at least 1, got 0"),
        (dict(targets=()), "lora.targets is "),
        (dict(targets=("q", "query")), "name one or more of q, k, v, o, gate, up, down"),
    ],
)
def test_a_wrong_config_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**options)


def test_a_target_the_model_lacks_is_named():
    config = dataclasses.replace(BASE, gated=False, lora=LoraConfig(targets=("q", "gate")))
    with pytest.raises(ValueError, match=r"lora\.targets names 'gate', which this model does not have"):
        parameters.abstract(lambda rngs: LanguageModel(config, rngs=rngs))
