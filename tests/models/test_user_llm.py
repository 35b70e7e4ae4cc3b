"""Contextualisation: nothing at first, users afterwards, and the same in one pass or token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from user_llm.models import parameters
from user_llm.models.cross_attention import CrossAttention, CrossAttentionConfig
from user_llm.models.language_model import causal_mask
from user_llm.models.user_llm import UserLLM


@jax.jit
def _logits(model, history, tokens):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    context = model.encode(history, history["item"] > 0)
    hidden, _ = model(tokens, positions, causal_mask(tokens > 0), context=context)
    return model.logits(hidden)


@jax.jit
def _logits_alone(language_model, tokens):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = language_model(tokens, positions, causal_mask(tokens > 0))
    return language_model.logits(hidden)


def _with_gates(model, value):
    graphdef, values, buffers = parameters.split(model)
    values = {path: v * 0 + value if path.endswith("_gate_D") else v for path, v in values.items()}
    return parameters.merge(graphdef, values, buffers)


@pytest.mark.parametrize(
    "layout", [dict(), dict(scan_layers=True), dict(every=1, perceiver=True, dtype="bfloat16")], ids=str
)
def test_gates_at_zero_are_the_language_model_to_the_bit(make_user_llm, history, tokens, layout):
    model = _with_gates(make_user_llm(**layout), 0)
    alone = _logits_alone(model.language_model, tokens)
    np.testing.assert_array_equal(_logits(model, history, tokens), alone)
    assert jnp.any(_logits(_with_gates(model, 0.5), history, tokens) != alone)


def test_gates_start_at_zero_and_alone_have_gradients_then(build_user_llm, history, tokens):
    graphdef, _, _ = parameters.split(parameters.abstract(build_user_llm))
    values, buffers = jax.jit(lambda: parameters.split(build_user_llm(nnx.Rngs(0)))[1:])()

    def loss(values):
        return jnp.mean(_logits(parameters.merge(graphdef, values, buffers), history, tokens) ** 2)

    gradient = jax.jit(jax.grad(loss))(values)
    gates = {path for path in values if path.endswith("_gate_D")}
    assert len(gates) == 2
    for path in values:
        if path.startswith(("connector", "encoder")):
            assert bool(jnp.any(gradient[path] != 0)) == (path in gates), path
            assert bool(jnp.any(values[path] != 0)) == (path not in gates), path


@pytest.mark.parametrize("perceiver", [False, True])
def test_each_user_gets_their_own_history_and_padding_says_nothing(make_user_llm, history, tokens, perceiver):
    user_llm = make_user_llm(perceiver=perceiver)
    logits = _logits(user_llm, history, tokens)
    other = {name: ids[jnp.array([0, 2, 1])] for name, ids in history.items()}
    shuffled = _logits(user_llm, other, tokens)
    np.testing.assert_allclose(logits[0], shuffled[0], atol=1e-6)
    assert jnp.all(jnp.any(jnp.abs(logits[1:] - shuffled[1:]) > 1e-3, axis=(1, 2)))
    shorter = {name: ids[:, 2:] for name, ids in history.items()}
    np.testing.assert_allclose(_logits(user_llm, shorter, tokens), logits, atol=1e-5)


@pytest.mark.parametrize("soft_prompt", [None, 2])
@pytest.mark.parametrize("newest", [1, 3])
def test_of_the_embeddings_the_newest_may_be_all_that_is_read(make_user_llm, history, tokens, newest, soft_prompt):
    """The same as all of them where the others are hidden; a shorter history than that is whole."""
    user_llm = make_user_llm(soft_prompt=soft_prompt)
    mask = history["item"] > 0

    @jax.jit
    def hidden(model):
        context = model.context(*model.embed(history, mask))
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return model(tokens, positions, causal_mask(tokens > 0), context=context)[0]

    @jax.jit
    def others_hidden(model):
        shown = mask & (jnp.arange(mask.shape[1]) >= mask.shape[1] - newest)
        context = model.context(model.encoder(history, mask), shown)
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return model(tokens, positions, causal_mask(tokens > 0), context=context)[0]

    wanted = others_hidden(user_llm)
    all_read = hidden(user_llm)
    user_llm.newest = newest
    np.testing.assert_allclose(hidden(user_llm), wanted, atol=1e-5)
    assert np.abs(np.asarray(all_read) - wanted).max() > 1e-3


def test_a_user_without_events_has_nothing_to_attend_to(user_llm, tokens):
    """Whatever is in their masked slots, their text is what the blocks' MLPs alone make of it."""
    mask = jnp.array([[False, True], [False, False], [True, True]])

    @jax.jit
    def run(model, embeddings):
        context = model.connector.context(embeddings, mask)
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return model(tokens, positions, causal_mask(tokens > 0), context=context)[0]

    ones = run(user_llm, jnp.ones((3, 2, 8)))
    others = run(user_llm, jnp.where(mask[..., None], 1.0, 7.0) * jnp.ones((3, 2, 8)))
    np.testing.assert_array_equal(others, ones)
    zeros = run(user_llm, jnp.zeros((3, 2, 8)))
    np.testing.assert_array_equal(zeros[1], ones[1])
    assert jnp.all(jnp.any(zeros != ones, axis=(1, 2)) == jnp.array([True, False, True]))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_decoding_with_a_context_equals_one_pass(
    make_user_llm, user_llm, with_parameters_of, history, tokens, scan_layers
):
    model = with_parameters_of(user_llm, make_user_llm(scan_layers=scan_layers))
    context = jax.jit(lambda model: model.encode(history, history["item"] > 0))(model)
    assert context.key.shape == (1, 3, 7, 2, 4)
    batch, length = tokens.shape
    cache = model.init_cache(batch, length, context)

    @jax.jit
    def step(model, token, at, cache):
        mask = jnp.broadcast_to(jnp.arange(length) <= at, (batch, 1, length))
        positions = jnp.full((batch, 1), at)
        hidden, cache = model(token[:, None], positions, mask, context=context, cache=cache, offset=at)
        return model.logits(hidden)[:, 0], cache

    expected = _logits(user_llm, history, tokens)
    for at in range(length):
        logits, cache = step(model, tokens[:, at], at, cache)
        np.testing.assert_allclose(logits, expected[:, at], atol=1e-5)


def test_without_an_encoder_it_is_the_language_model_alone(user_llm, history, tokens):
    model = UserLLM(None, None, None, user_llm.language_model)
    assert model.encode(history, history["item"] > 0) is None
    np.testing.assert_array_equal(_logits(model, history, tokens), _logits_alone(user_llm.language_model, tokens))
    assert all(path.startswith("language_model/") for path in parameters.split(model)[1])


def test_a_perceiver_hands_its_latents_to_the_connector(make_user_llm, history):
    model = make_user_llm(perceiver=True)
    context = jax.jit(lambda model: model.encode(history, history["item"] > 0))(model)
    assert context.key.shape == (1, 3, 3, 2, 4)
    np.testing.assert_array_equal(context.mask, [[True] * 3, [True] * 3, [False] * 3])


@pytest.mark.parametrize("given", [("encoder",), ("connector",), ("perceiver",), ("encoder", "perceiver")], ids=str)
def test_parts_that_need_one_another_come_together(make_user_llm, given):
    whole = make_user_llm(perceiver=True)
    parts = {name: getattr(whole, name) if name in given else None for name in ("encoder", "perceiver", "connector")}
    with pytest.raises(ValueError, match="alone: an encoder needs a connector"):
        UserLLM(**parts, language_model=whole.language_model)


@pytest.mark.parametrize("soft_prompt", [None, 2])
@pytest.mark.parametrize("scan_layers", [False, True])
def test_every_parameter_names_its_axes(build_user_llm, scan_layers, soft_prompt):
    known = {"layers", "vocab", "items", "embed", "user", "mlp", "user_mlp", "heads", "kv_heads", "head_dim"}
    known |= {"feature", "norm", None}
    options = dict(scan_layers=scan_layers, soft_prompt=soft_prompt, perceiver=True)
    model = parameters.abstract(lambda rngs: build_user_llm(rngs, **options))
    axes = parameters.logical_axes(model)
    shapes = parameters.split(model)[1]
    assert axes.keys() == shapes.keys()
    for path, names in axes.items():
        assert len(names) == len(shapes[path].shape), path
        assert set(names) <= known, path
        assert ("layers" in names) == (scan_layers and ("layers/" in path or "blocks/" in path)), path


def test_a_connector_that_cannot_fit_is_refused(user_llm):
    config = CrossAttentionConfig(every=4, num_heads=2, head_dim=4, hidden=16)
    with pytest.raises(ValueError, match="every 4 layers does not fit a language model of 3 layers"):
        CrossAttention(config, user_llm.language_model.config, 8, rngs=nnx.Rngs(0))
