"""BERT4Rec: it sees both ways, never what is masked, and asks for the next event by masking it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from user_llm.models.bert4rec import Bert4Rec
from user_llm.models.user_encoder import EncoderConfig

ITEM_CATEGORIES = np.array([[0, 0], [1, 0], [2, 3], [3, 2], [0, 0], [3, 1]])  # those of conftest.py
FULL = {"item": jnp.array([[2, 5, 3, 1, 2, 5, 4]]), "rating": jnp.array([[1, 2, 3, 4, 5, 1, 2]])}
EVERYWHERE = jnp.ones((1, 7), bool)


@pytest.fixture(scope="module")
def encoder(make_trained) -> Bert4Rec:
    config = EncoderConfig(max_length=7, num_layers=1, width=8, num_heads=2, hidden=12)
    sizes = dict(item_categories=ITEM_CATEGORIES, num_categories=3, num_ratings=5)
    return make_trained(lambda rngs: Bert4Rec(config, **sizes, rngs=rngs))


@jax.jit
def encode(encoder, history, mask, masked):
    return encoder(history, mask, masked=masked)


@jax.jit
def rank(encoder, history, mask):
    return encoder.query_logits(encoder.query(history, mask))


def test_every_event_sees_all_others(encoder):
    before = encode(encoder, FULL, EVERYWHERE, None)
    for slot in (0, 6):
        changed = {**FULL, "item": FULL["item"].at[0, slot].set(3)}
        assert jnp.all(jnp.any(before != encode(encoder, changed, EVERYWHERE, None), axis=-1))


def test_a_masked_event_hides_all_its_features(encoder):
    masked = jnp.arange(7)[None] == 4
    before = encode(encoder, FULL, EVERYWHERE, masked)
    assert jnp.all(jnp.any(before != encode(encoder, FULL, EVERYWHERE, None), axis=-1))
    other = {"item": FULL["item"].at[0, 4].set(3), "rating": FULL["rating"].at[0, 4].set(1)}
    np.testing.assert_array_equal(before, encode(encoder, other, EVERYWHERE, masked))


def test_the_next_item_is_a_masked_event_behind_the_newest(encoder):
    """Written out: the events a slot earlier, the oldest dropped where there is no room, a mask at the end."""
    later = {name: jnp.concatenate([ids[:, 1:], ids[:, :1] * 0 + 1], axis=1) for name, ids in FULL.items()}
    embeddings = encode(encoder, later, EVERYWHERE, jnp.arange(7)[None] == 6)
    table, head = (np.asarray(x[...]) for x in (encoder.embedding.item_VU, encoder.item_head_UU))
    expected = np.asarray(embeddings)[0, -1] @ head @ table.T
    logits = rank(encoder, FULL, EVERYWHERE)[0]
    np.testing.assert_allclose(logits[1:], expected[1:], atol=1e-5)
    oldest = {name: ids.at[0, 0].set(3) for name, ids in FULL.items()}
    np.testing.assert_array_equal(rank(encoder, oldest, EVERYWHERE)[0], logits)
    newest = {name: ids.at[0, 6].set(3) for name, ids in FULL.items()}
    assert jnp.any(rank(encoder, newest, EVERYWHERE)[0] != logits)


def test_a_history_with_room_keeps_its_oldest_event(encoder):
    mask = jnp.arange(7)[None] > 0
    history = {name: jnp.where(mask, ids, 0) for name, ids in FULL.items()}
    before = rank(encoder, history, mask)
    oldest = {name: ids.at[0, 1].set(3) for name, ids in history.items()}
    assert jnp.any(rank(encoder, oldest, mask) != before)
    without_padding = {name: ids[:, 1:] for name, ids in history.items()}
    np.testing.assert_allclose(rank(encoder, without_padding, mask[:, 1:]), before, atol=1e-5)
