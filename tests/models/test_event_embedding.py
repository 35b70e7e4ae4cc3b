"""The mean over an item's categories, against plain NumPy, and what it costs where there are thousands."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from user_llm.models.event_embedding import FeatureEmbeddings

ITEMS, CATEGORIES, C, U = 50, 5_000, 4, 16
SETS = np.random.default_rng(0).integers(1, CATEGORIES + 1, (ITEMS + 1, C)) * (
    np.arange(C) < np.arange(ITEMS + 1)[:, None] % 5
)
EVENTS = np.random.default_rng(1).integers(0, ITEMS + 1, (32, 20))


@functools.cache
def embedding() -> FeatureEmbeddings:
    return FeatureEmbeddings(
        ("category",),
        U,
        item_categories=SETS,
        num_categories=CATEGORIES,
        num_ratings=5,
        dtype="float32",
        param_dtype="float32",
        rngs=nnx.Rngs(0),
    )


@functools.cache
def compiled():
    """(events [B, S], cotangent [B, S, U]) -> the embeddings and the gradient of the table."""

    def run(module, events, cotangent):
        loss = lambda module: (jnp.sum((y := module.embed("category", {"item": events})) * cotangent), y)  # noqa: E731
        gradient, y = jax.grad(loss, has_aux=True, allow_int=True)(module)
        return y, gradient.category_VU[...]

    return jax.jit(run).lower(embedding(), EVENTS, np.zeros((*EVENTS.shape, U), np.float32)).compile()


def test_it_is_the_mean_over_the_set_and_zero_without_one():
    cotangent = np.random.default_rng(2).normal(size=(*EVENTS.shape, U)).astype(np.float32)
    embeddings, gradient = compiled()(embedding(), EVENTS, cotangent)
    table = np.float64(embedding().table("category")[...])
    expected_gradient, sizes = np.zeros_like(table), set()
    for at in np.ndindex(*EVENTS.shape):
        ids = [category for category in SETS[EVENTS[at]] if category]
        sizes.add(len(ids))
        np.testing.assert_allclose(embeddings[at], table[ids].mean(axis=0) if ids else 0, atol=1e-7)
        for category in ids:
            expected_gradient[category] += cotangent[at] / len(ids)
    assert sizes == {0, 1, 2, 3, 4}
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)


def test_thousands_of_categories_take_no_more_memory_than_the_table():
    """Membership of all events would be 640 rows of 5,001 numbers, 12.8 MB; the table is 0.3."""
    table, vectors = 4 * (CATEGORIES + 1) * U, 4 * EVENTS.size * U
    assert compiled().memory_analysis().temp_size_in_bytes <= 2 * table + 6 * vectors
