"""What every encoder promises, whichever kind it is: integration and evaluation never ask."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from user_llm.models import parameters, sharding
from user_llm.models.autoregressive_encoder import AutoregressiveEncoder
from user_llm.models.bert4rec import Bert4Rec
from user_llm.models.dual_encoder import DualEncoder, DualEncoderConfig
from user_llm.models.hstu import HSTU
from user_llm.models.user_encoder import EncoderConfig

ITEM_CATEGORIES = np.array([[0, 0], [1, 0], [2, 3], [3, 2], [0, 0], [3, 1]])  # those of conftest.py
DIMS = dict(max_length=7, num_layers=1, width=8, num_heads=2, hidden=12)
KINDS = {
    "autoregressive": (AutoregressiveEncoder, EncoderConfig(**DIMS)),
    "hstu": (HSTU, EncoderConfig(**DIMS)),
    "items by name": (AutoregressiveEncoder, EncoderConfig(**DIMS, features=("item",), item_text=True)),
    "items alone": (AutoregressiveEncoder, EncoderConfig(**DIMS, features=("item",))),
    "bert4rec": (Bert4Rec, EncoderConfig(**DIMS)),
    "dual_encoder": (DualEncoder, DualEncoderConfig(**DIMS, num_outputs=2)),
}
HEADS = {"item_head_UU", "category_head_UU", "rating_head_UU"}
PRETRAINING = {
    "autoregressive": HEADS,
    "hstu": HEADS,
    "items by name": set(),
    "items alone": set(),
    "bert4rec": HEADS | {"mask_U"},
    "dual_encoder": {"label_tower", "user_head_UU", "log_scale"},
}


def build(kind, **changes):
    encoder, config = KINDS[kind]
    sizes = dict(item_categories=ITEM_CATEGORIES, num_categories=3, num_ratings=5)
    return lambda rngs: encoder(dataclasses.replace(config, **changes), **sizes, rngs=rngs)


@jax.jit
def run(encoder, history, mask, key=None):
    return (
        encoder(history, mask, key=key),
        encoder.output_mask(mask),
        encoder.query_logits(encoder.query(history, mask)),
    )


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def encoder(kind, make_trained) -> nnx.Module:
    return make_trained(build(kind))


@pytest.fixture(scope="module")
def output(encoder, history):
    return run(encoder, history, history["item"] > 0)


def test_the_output_mask_says_where_embeddings_are(encoder, output):
    embeddings, mask, _ = output
    assert embeddings.shape == (*mask.shape, encoder.config.width)
    assert mask.dtype == bool
    np.testing.assert_array_equal(jnp.any(embeddings != 0, axis=-1), mask)
    np.testing.assert_array_equal(mask.any(axis=1), [True, True, False])  # the third user has no event


def test_next_items_are_ranked_without_the_padding(output):
    logits = output[2]
    assert (logits.shape, logits.dtype) == ((3, 6), jnp.float32)
    assert jnp.all(logits[:, 0] == -jnp.inf)
    assert jnp.all(jnp.isfinite(logits[:, 1:]))


def test_rows_behind_the_items_are_never_read(kind, encoder, output, history, monkeypatch):
    monkeypatch.setattr(sharding, "LARGE", len(ITEM_CATEGORIES) - 1)
    graphdef, shapes, buffers = parameters.split(parameters.abstract(build(kind)))
    _, values, given = parameters.split(encoder)
    drawn = parameters.split(build(kind)(nnx.Rngs(0)))[1]
    tables = {path for path in values if path.endswith(("item_VU", "item_text_IE"))}
    for path in tables:
        assert not drawn[path][len(ITEM_CATEGORIES) :].any()
        room = shapes[path].shape[0] - len(values[path])
        assert room == 512 - len(ITEM_CATEGORIES)
        values[path] = jnp.pad(values[path], ((0, room), (0, 0)), constant_values=100.0)
    assert tables
    assert buffers.keys() == given.keys()
    padded = parameters.merge(graphdef, values, given)
    for found, expected in zip(run(padded, history, history["item"] > 0), output, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    behind = {**history, "item": jnp.where(history["item"] > 0, len(ITEM_CATEGORIES), 0)}
    assert jnp.isnan(run(padded, behind, history["item"] > 0)[0][0, -1]).any()


def test_what_is_masked_changes_nothing(encoder, output, history):
    mask = history["item"] > 0
    dirty = {name: jnp.where(mask, ids, 3) for name, ids in history.items()}
    jax.tree.map(np.testing.assert_array_equal, run(encoder, dirty, mask), output)


def test_every_feature_and_the_order_are_seen(encoder, output, history):
    mask = history["item"] > 0
    swap = [0, 1, 2, 4, 3, 5, 6]
    changes = {
        "item": {**history, "item": history["item"].at[0, 4].set(5)},
        "order": {name: ids.at[0].set(ids[0, jnp.array(swap)]) for name, ids in history.items()},
    }
    if "rating" in encoder.config.features:
        changes["rating"] = {**history, "rating": history["rating"].at[0, 4].set(5)}
    for name, changed in changes.items():
        embeddings, _, logits = run(encoder, changed, mask)
        assert jnp.any(jnp.abs(embeddings[0] - output[0][0]) > 1e-3), name
        assert jnp.any(jnp.abs(logits[0, 1:] - output[2][0, 1:]) > 1e-3), name
        np.testing.assert_array_equal(embeddings[1:], output[0][1:])


def test_shorter_arrays_of_slots_give_the_same(encoder, output, history):
    """The newest event is in the last slot, however many slots there are."""
    short = {name: ids[:, 2:] for name, ids in history.items()}
    embeddings, mask, logits = run(encoder, short, short["item"] > 0)
    np.testing.assert_allclose(embeddings, output[0][:, -embeddings.shape[1] :], atol=1e-5)
    np.testing.assert_array_equal(mask, output[1][:, -mask.shape[1] :])
    np.testing.assert_allclose(logits, output[2], atol=1e-5)


def test_what_only_pretraining_needs_is_left_out(kind, encoder, output, history, make_trained):
    """No embedding depends on it."""

    def build_without(rngs):
        encoder = build(kind)(rngs)
        encoder.drop_pretraining()
        return encoder

    without = make_trained(build_without)
    left_out = parameters.split(encoder)[1].keys() - parameters.split(without)[1].keys()
    assert {path.split("/")[0] for path in left_out} == PRETRAINING[kind]
    embeddings = jax.jit(lambda encoder: encoder(history, history["item"] > 0))(without)
    np.testing.assert_allclose(embeddings, output[0], atol=1e-6)


def test_scanned_layers_are_the_same_model(kind, encoder, output, history, make_trained, with_parameters_of):
    scanned = with_parameters_of(encoder, make_trained(build(kind, scan_layers=True, remat=True)))
    for got, want in zip(run(scanned, history, history["item"] > 0), output, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_user_without_events_gives_finite_gradients(encoder, history):
    def loss(encoder):
        embeddings, _, logits = run(encoder, history, history["item"] > 0)
        return jnp.sum(embeddings**2) + jnp.sum(logits[:, 1:] ** 2)

    gradient = jax.jit(jax.grad(loss, allow_int=True))(encoder)
    for leaf in jax.tree.leaves(nnx.state(gradient, nnx.Param)):
        assert jnp.all(jnp.isfinite(leaf))


def test_dropout_needs_a_key_and_repeats_with_it(kind, make_trained, history, output):
    encoder, mask = make_trained(build(kind, dropout=0.5)), history["item"] > 0
    first, again, other = (run(encoder, history, mask, jax.random.key(seed))[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert jnp.any(first != other)
    np.testing.assert_array_equal(run(encoder, history, mask)[0], output[0])
