"""The dual encoder: features apart until they are fused, two towers, labels of two kinds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from user_llm.models import parameters
from user_llm.models.dual_encoder import DualEncoder, DualEncoderConfig

ITEM_CATEGORIES = np.array([[0, 0], [1, 0], [2, 3], [3, 2], [0, 0], [3, 1]])  # those of conftest.py
DIMS = dict(max_length=7, num_layers=1, width=8, num_heads=2, hidden=12)


def build(**options):
    sizes = dict(item_categories=ITEM_CATEGORIES, num_categories=3, num_ratings=5)
    return lambda rngs: DualEncoder(DualEncoderConfig(**DIMS, **options), **sizes, rngs=rngs)


@pytest.fixture(scope="module")
def encoder(make_trained) -> DualEncoder:
    return make_trained(build(num_outputs=3))


@pytest.fixture(scope="module")
def of_categories(make_trained) -> DualEncoder:
    return make_trained(build(label="category", features=("item",), fusion_layers=2))


@pytest.fixture(scope="module")
def mask(history):
    return history["item"] > 0


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_only_the_user_tower_makes_embeddings(encoder, history, mask):
    graphdef, values, buffers = parameters.split(encoder)
    others = [path for path in values if not path.startswith("user_tower/")]
    towers = {path.split("/")[0] for path in others}
    assert towers == {"label_tower", "user_head_UU", "log_scale"}
    other = parameters.merge(graphdef, {**values, **{path: values[path] * 2 + 1 for path in others}}, buffers)
    encode = jax.jit(lambda encoder: encoder(history, mask))
    embeddings = encode(encoder)
    assert embeddings.shape == (3, 3, 8)
    np.testing.assert_array_equal(embeddings, encode(other))


def test_each_feature_is_encoded_apart_from_the_others(encoder, history, mask):
    """Until fusion: with its own Transformer off, another feature's changes reach nobody else."""
    graphdef, values, buffers = parameters.split(encoder)
    encode = jax.jit(lambda values, history: parameters.merge(graphdef, values, buffers)(history, mask))
    other = {**history, "rating": jnp.where(mask, 1 + history["rating"] % 5, 0)}
    assert jnp.any(encode(values, history) != encode(values, other))
    silent = "user_tower/rating_encoder/final_norm/scale_D"
    deaf = {**values, silent: values[silent] * 0}
    np.testing.assert_array_equal(encode(deaf, history), encode(deaf, other))


def test_items_are_ranked_by_the_cosine_of_the_towers(encoder, history, mask):
    embeddings, logits = jax.jit(
        lambda encoder: (encoder(history, mask), encoder.query_logits(encoder.query(history, mask)))
    )(encoder)
    tower = encoder.label_tower
    tables = {feature: np.asarray(tower.table(feature)) for feature in ("item", "category")}
    sets = [[c for c in row if c] for row in ITEM_CATEGORIES]
    means = np.array([tables["category"][ids].mean(axis=0) if ids else np.zeros(8) for ids in sets])
    labels = unit(np.concatenate([tables["item"], means], axis=1) @ np.asarray(tower.projection_EU))
    users = unit(np.asarray(embeddings)[:2].reshape(2, 24) @ np.asarray(encoder.user_head_UU))
    expected = np.exp(float(encoder.log_scale[...])) * users @ labels.T
    np.testing.assert_allclose(logits[:2, 1:], expected[:, 1:], rtol=1e-4)
    np.testing.assert_array_equal(logits[2, 1:], 0)  # nothing is known of the third user


def test_labels_may_be_categories(of_categories, history, mask):
    logits = jax.jit(lambda encoder: encoder.query_logits(encoder.query(history, mask)))(of_categories)
    users = jax.jit(lambda encoder: encoder.query(history, mask))(of_categories)
    tower = of_categories.label_tower
    labels = unit(np.asarray(tower.table("category")) @ np.asarray(tower.projection_EU))
    assert (logits.shape, logits.dtype) == ((3, 4), jnp.float32)
    assert jnp.all(logits[:, 0] == -jnp.inf)
    np.testing.assert_allclose(logits[:, 1:], np.asarray(users) @ labels[1:].T, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "rating"}, "label 'rating' of the dual encoder: expected one of"),
        ({"num_outputs": 0}, "num_outputs of the dual encoder must be at least 1, got 0"),
        ({"fusion_layers": 0}, "fusion_layers of the dual encoder must be at least 1, got 0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DualEncoderConfig(**DIMS, **options)
