"""Scanned = unrolled, remat = none: the layout of a stack changes memory and time, no number."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from user_llm.models import parameters
from user_llm.models.language_model import causal_mask
from user_llm.models.lora import LoraConfig

# Layers that differ from each other, whichever way the layout tells them apart.
LOCAL = dict(
    post_norms=True,
    qk_norm=True,
    sliding_window=3,
    local_layers=(True, False, True),
    local_rope_theta=50.0,
    lora=LoraConfig(rank=2),
)


def _run(model, history, tokens, *, key=None):
    """Logits through encoder, connector and language model."""
    context = model.encode(history, history["item"] > 0, key=key)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = model(tokens, positions, causal_mask(tokens > 0), context=context)
    return model.logits(hidden)


@pytest.mark.parametrize(
    ("every", "first", "family"),
    [(1, 0, {}), (2, 0, {}), (2, 0, LOCAL), (1, 1, LOCAL), (2, 1, {})],
    ids=["every", "second", "local", "from the second", "one before the last two"],
)
def test_scanned_equals_unrolled(make_user_llm, with_parameters_of, history, tokens, every, first, family):
    options = dict(every=every, first_layer=first, family=family)
    unrolled = make_user_llm(**options)
    scanned = with_parameters_of(unrolled, make_user_llm(**options, scan_layers=True))
    assert scanned.connector.num_blocks == (3 - first) // every
    run = jax.jit(_run)
    np.testing.assert_allclose(run(scanned, history, tokens), run(unrolled, history, tokens), atol=1e-5)


def test_gradients_and_dropout_are_equal_in_every_layout(
    make_user_llm, with_parameters_of, stack_layers, history, tokens
):
    user_llm = make_user_llm(family=LOCAL)

    def gradients(**layout) -> tuple[float, dict]:
        model = with_parameters_of(user_llm, make_user_llm(dropout=0.3, family=LOCAL, **layout))
        graphdef, values, buffers = parameters.split(model)

        def loss(values):
            model = parameters.merge(graphdef, values, buffers)
            return jnp.mean(_run(model, history, tokens, key=jax.random.key(5)) ** 2)

        loss, gradient = jax.jit(jax.value_and_grad(loss))(values)
        return float(loss), gradient if layout.get("scan_layers") else stack_layers(gradient)

    expected_loss, expected = gradients()
    for layout in (dict(remat=True), dict(scan_layers=True, remat=True)):
        loss, found = gradients(**layout)
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert found.keys() == expected.keys()
        for path, gradient in expected.items():
            np.testing.assert_allclose(found[path], gradient, atol=1e-5, err_msg=f"{layout} {path}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(local_layers=(True, False), sliding_window=4), "local_layers has 2 entries; num_layers is 3"),
        (dict(local_layers=(True,) * 3), "sliding_window and local_layers belong together"),
        (dict(sliding_window=4), "sliding_window and local_layers belong together"),
        (dict(local_rope_theta=50.0), r"local_rope_theta \(50.0\) needs local_layers"),
    ],
)
def test_windows_without_their_layers_are_an_error(user_llm, options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(user_llm.language_model.config.stack, **options)
