"""The Perceiver against plain NumPy, and what never reaches its latents."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from user_llm.models import parameters
from user_llm.models.perceiver import Perceiver, PerceiverConfig

WIDTH = 8
MASK = np.array([[0, 1, 1, 1, 1], [0, 0, 0, 1, 0], [0] * 5, [1] * 5], bool)


def shapes_of(**numerics) -> Perceiver:
    config = PerceiverConfig(num_layers=2, num_latents=3, num_heads=2, hidden=12, **numerics)
    return parameters.abstract(lambda rngs: Perceiver(config, WIDTH, rngs=rngs))


@pytest.fixture(scope="module")
def perceiver() -> Perceiver:
    """Any values training could have given. NumPy's, to spare compilations."""
    graphdef, shapes, buffers = parameters.split(shapes_of())
    generator = np.random.default_rng(1)
    values = {path: generator.normal(size=shape.shape) / np.sqrt(shape.shape[0]) for path, shape in shapes.items()}
    values = {path: 1 + value if path.endswith("scale_D") else value for path, value in values.items()}
    return parameters.merge(graphdef, {path: jnp.asarray(v, jnp.float32) for path, v in values.items()}, buffers)


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(*MASK.shape, WIDTH)).astype(np.float32)


def norm(x, scale):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6) * scale


def naive(values, embeddings):
    """One user's latents, head by head and latent by latent, in float64; only the events there are."""
    values = {path: np.asarray(value, np.float64) for path, value in values.items()}
    x = values["latents_LU"]
    for layer in range(2):
        of = {path.removeprefix(f"layers/{layer}/"): value for path, value in values.items()}
        normed, attended = norm(x, of["attention_norm/scale_D"]), np.zeros_like(x)
        for latent in range(len(x)):
            for head in range(2):
                query = normed[latent] @ of["attention/q_DNH"][:, head]
                scores = embeddings @ of["attention/k_DKH"][:, head] @ query / math.sqrt(len(query))
                weights = np.exp(scores) / np.exp(scores).sum()
                attended[latent] += (
                    weights @ (embeddings @ of["attention/v_DKH"][:, head]) @ of["attention/o_NHD"][head]
                )
        x = x + attended
        hidden = norm(x, of["mlp_norm/scale_D"]) @ of["mlp/up_DF"]
        hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
        x = x + hidden @ of["mlp/down_FD"]
    return norm(x, values["final_norm/scale_D"])


def test_latents_are_those_of_plain_numpy_over_the_events_there_are(perceiver, embeddings):
    latents, mask = jax.jit(lambda *args: perceiver(*args))(embeddings, MASK)
    np.testing.assert_array_equal(mask, MASK.any(axis=1)[:, None] * np.ones((1, 3), bool))
    values = parameters.split(perceiver)[1]
    for row, known in enumerate(MASK):
        expected = naive(values, embeddings[row, known].astype(np.float64)) if known.any() else 0
        np.testing.assert_allclose(latents[row], np.broadcast_to(expected, (3, WIDTH)), atol=1e-5)


def test_masked_events_never_reach_a_latent(perceiver, embeddings):
    run = jax.jit(lambda embeddings: perceiver(embeddings, MASK)[0])
    noise = np.where(MASK[..., None], embeddings, 1e6 * (1 + embeddings))
    np.testing.assert_array_equal(run(noise), run(embeddings))
    reached = jax.jit(jax.grad(lambda embeddings: jnp.sum(run(embeddings) ** 3)))(embeddings)
    np.testing.assert_array_equal(np.any(reached != 0, axis=-1), MASK)


def test_every_layout_gives_the_same_latents_and_gradients(perceiver, embeddings, with_parameters_of, stack_layers):
    def run(model):
        graphdef, values, buffers = parameters.split(model)

        def loss(values):
            latents, mask = parameters.merge(graphdef, values, buffers)(embeddings, MASK)
            return jnp.sum(latents**3 * mask[..., None]), latents

        return jax.jit(jax.grad(loss, has_aux=True))(values)

    expected, expected_latents = run(perceiver)
    for layout in (dict(remat=True), dict(scan_layers=True, remat=True)):
        gradient, latents = run(with_parameters_of(perceiver, shapes_of(**layout)))
        np.testing.assert_allclose(latents, expected_latents, atol=1e-5)
        stacked = stack_layers(expected) if layout.get("scan_layers") else expected
        assert gradient.keys() == stacked.keys()
        for path in gradient:
            np.testing.assert_allclose(gradient[path], stacked[path], atol=1e-4, err_msg=f"{layout} {path}")


def test_a_long_history_becomes_the_papers_sixteen_latents():
    model = parameters.abstract(lambda rngs: Perceiver(PerceiverConfig(), 128, rngs=rngs))
    events = jax.ShapeDtypeStruct((2, 200, 128), jnp.float32), jax.ShapeDtypeStruct((2, 200), bool)
    latents, mask = nnx.eval_shape(lambda model, *events: model(*events), model, *events)
    assert latents.shape == (2, 16, 128)
    assert mask.shape == (2, 16)
    assert len(model.layers) == 6


def test_heads_that_do_not_fit_the_encoder_are_refused():
    with pytest.raises(ValueError, match="Encoder width 9 must be a multiple of the Perceiver's num_heads 2"):
        Perceiver(PerceiverConfig(num_heads=2), 9, rngs=nnx.Rngs(0))
