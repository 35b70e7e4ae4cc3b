"""The autoregressive encoder: causal, categories as a set, softmax tied; test_user_encoder.py has what all promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from user_llm.models.autoregressive_encoder import AutoregressiveEncoder, EncoderConfig
from user_llm.models.event_embedding import EventEmbedding
from user_llm.models.parameters import abstract

ITEM_CATEGORIES = np.array([[0, 0], [1, 0], [2, 3], [3, 2], [0, 0], [3, 1]])  # those of conftest.py


@pytest.fixture(scope="module")
def encoder(make_trained) -> AutoregressiveEncoder:
    config = EncoderConfig(max_length=7, num_layers=2, width=8, num_heads=2, hidden=16)
    sizes = dict(item_categories=ITEM_CATEGORIES, num_categories=3, num_ratings=5)
    return make_trained(lambda rngs: AutoregressiveEncoder(config, **sizes, rngs=rngs))


@jax.jit
def _encode(encoder, item, rating, mask):
    return encoder({"item": item, "rating": rating}, mask)


def test_later_events_change_no_earlier_embedding(encoder, history):
    item, rating, mask = history["item"], history["rating"], history["item"] > 0
    before = _encode(encoder, item, rating, mask)
    after = _encode(encoder, item.at[0, 5].set(1), rating.at[0, 5].set(3), mask)
    np.testing.assert_array_equal(before[0, :5], after[0, :5])
    assert jnp.all(jnp.any(before[0, 5:] != after[0, 5:], axis=-1))


def test_categories_are_a_set_embedded_as_their_mean(encoder):
    embedded = encoder.embedding._categories(jnp.array([[1, 2, 3, 4, 0]]))[0]
    table = np.asarray(encoder.feature_table("category"))
    np.testing.assert_allclose(embedded[0], table[1], atol=1e-6)
    np.testing.assert_allclose(embedded[1], (table[2] + table[3]) / 2, atol=1e-6)
    np.testing.assert_allclose(embedded[1], embedded[2], atol=1e-6)  # item 3 lists the same two the other way
    assert jnp.all(embedded[3:] == 0)


def test_item_logits_are_tied_and_never_the_padding_item(encoder):
    embeddings = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8)), jnp.float32)
    logits = encoder.item_logits(embeddings)
    assert logits.shape == (2, 6)
    assert logits.dtype == jnp.float32
    assert jnp.all(logits[:, 0] == -jnp.inf)
    table = encoder.feature_table("item")
    assert table is encoder.embedding.item_VU[...]
    expected = encoder.feature_hidden(embeddings, "item") @ table.T
    np.testing.assert_allclose(logits[:, 1:], expected[:, 1:], atol=1e-5)


def test_items_are_read_and_ranked_by_their_names_too(make_trained):
    config = EncoderConfig(max_length=7, features=("item",), num_layers=1, width=8, num_heads=2, item_text=True)
    sizes = dict(item_categories=ITEM_CATEGORIES, num_categories=3, num_ratings=5)
    encoder = make_trained(lambda rngs: AutoregressiveEncoder(config, **sizes, rngs=rngs))
    own, names, mapped = (
        np.asarray(getattr(encoder.embedding, name)[...]) for name in ("item_VU", "item_text_IE", "text_EU")
    )
    vectors = own + names @ mapped
    np.testing.assert_allclose(encoder.feature_table("item"), vectors, atol=1e-5)
    items = jnp.array([[5, 1, 3]])
    np.testing.assert_allclose(encoder.embedding.embed("item", {"item": items})[0], vectors[[5, 1, 3]], atol=1e-5)
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8)), jnp.float32)
    np.testing.assert_allclose(encoder.item_logits(hidden)[:, 1:], (hidden @ vectors.T)[:, 1:], atol=1e-4)


def test_features_can_be_left_out():
    def build(rngs):
        config = EncoderConfig(max_length=4, features=("item", "rating"), num_layers=1)
        sizes = dict(item_categories=np.zeros((9, 2), int), num_categories=3, num_ratings=5)
        return AutoregressiveEncoder(config, **sizes, rngs=rngs)

    encoder = abstract(build)
    assert encoder.embedding.table("rating").shape == (6, 128)
    with pytest.raises(ValueError, match="no feature 'category'"):
        encoder.feature_hidden(jnp.zeros((1, 128)), "category")


def test_bad_sizes_are_named(encoder, history):
    wide = {name: jnp.pad(ids, ((0, 0), (1, 0))) for name, ids in history.items()}
    with pytest.raises(ValueError, match="History of 8 slots; this encoder was built for at most 7"):
        encoder(wide, wide["item"] > 0)
    with pytest.raises(ValueError, match="width 10 must be a multiple of num_heads 4"):
        _ = EncoderConfig(max_length=4, width=10, num_heads=4).stack
    common = dict(num_categories=2, num_ratings=5, dtype="float32", param_dtype="float32", rngs=nnx.Rngs(0))
    for features, message in ((("item", "review"), "expected one or more of"), (("rating",), "'item' must be one")):
        with pytest.raises(ValueError, match=message):
            EventEmbedding(features, 8, item_categories=np.zeros((4, 1), int), **common)
    with pytest.raises(ValueError, match="item_categories holds 3; num_categories is 2"):
        EventEmbedding(("item", "category"), 8, item_categories=np.full((4, 1), 3), **common)
