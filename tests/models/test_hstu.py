"""HSTU against loops over events; test_user_encoder.py has what all encoders promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from user_llm.data.packing import Packed
from user_llm.models.event_times import BUCKETS, bucket, following, since_previous
from user_llm.models.hstu import HSTU
from user_llm.models.user_encoder import EncoderConfig, Packing

S, U, HEADS = 7, 8, 2
SIZES = dict(item_categories=np.zeros((9, 1), np.int32), num_categories=1, num_ratings=5)
ITEM = np.array([[0, 0, 3, 1, 4, 1, 5], [2, 7, 1, 8, 2, 8, 1]])
AGO = np.array([[0, 0, 86_400 * 900, 7200, 7200, 60, 5], [10**9, 10**8, 10**7, 10**6, 10**5, 10**5, 0]])


@pytest.fixture(scope="module", params=["", "past", "asked"])
def encoder(request, make_trained):
    config = EncoderConfig(S, ("item",), num_layers=2, width=U, num_heads=HEADS, hidden=12, time=request.param)
    return make_trained(lambda rngs: HSTU(config, **SIZES, rngs=rngs))


@jax.jit
def run(encoder, history):
    return encoder(history, history["item"] > 0)


def silu(x):
    return x / (1 + np.exp(-x))


def normed(x, norm):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * np.asarray(norm.scale_D[...], np.float64)


def span(seconds):
    return min(int(2 * np.log2(1 + max(seconds, 0))), BUCKETS - 1)


def naive(encoder, item, ago):
    """One history, event by event."""
    weights = lambda value: np.asarray(value[...], np.float64)  # noqa: E731
    time, real = encoder.config.time, np.flatnonzero(item)
    x = normed(weights(encoder.embedding.item_VU)[item], encoder.embedding.norm) + weights(encoder.position_SU)
    later = [*ago[1:], 0]
    for s in real:
        if time:
            x[s] += weights(encoder.since_TU)[span(ago[s - 1] - ago[s] if s - 1 in real else 0)]
        if time == "asked":
            x[s] += weights(encoder.until_TU)[span(ago[s] - later[s])]
    for layer in encoder.layers:
        maps = silu(np.einsum("SD,DPNH->PSNH", normed(x, layer.norm), weights(layer.uvqk_DPNH)))
        u, v, q, k = maps
        mixed = np.zeros((S, HEADS, U // HEADS))
        for s in real:
            now = later[s] if time == "asked" else ago[s]
            for other in real[real <= s]:
                bias = weights(layer.distance_S)[s - other]
                if time:
                    bias += weights(layer.time_T)[span(ago[other] - now)]
                for head in range(HEADS):
                    mixed[s, head] += silu(q[s, head] @ k[other, head] + bias) / S * v[other, head]
        gated = normed(mixed.reshape(S, U), layer.mixed_norm).reshape(mixed.shape) * u
        x = x + np.einsum("SNH,NHD->SD", gated, weights(layer.o_NHD))
    return np.where(item[:, None] > 0, normed(x, encoder.final_norm), 0)


def test_embeddings_are_those_of_loops_over_events(encoder):
    found = run(encoder, {"item": jnp.asarray(ITEM), "ago": jnp.asarray(AGO)})
    for row in range(2):
        np.testing.assert_allclose(found[row], naive(encoder, ITEM[row], AGO[row]), atol=1e-5)


def test_the_time_of_the_asked_event_shows_only_where_it_is_read(encoder):
    """All times move away from it: nothing between the events changes."""
    moved = run(encoder, {"item": jnp.asarray(ITEM), "ago": jnp.asarray(AGO + 10**6)})
    same = jnp.allclose(moved, run(encoder, {"item": jnp.asarray(ITEM), "ago": jnp.asarray(AGO)}), atol=1e-5)
    assert same == (encoder.config.time != "asked")


def test_histories_that_share_rows_have_the_same_embeddings(encoder):
    names = ("item", "ago")
    labels = {f"label/{name}": np.zeros(2, np.int32) for name in names}
    batch = {"history/item": ITEM, "history/ago": AGO, **labels}
    packed = Packed(None, rows=2).pack(batch)

    @jax.jit
    def run_packed(encoder):
        history = {name: packed[f"history/{name}"] for name in names}
        packing = Packing(packed["history/user"], packed["history/age"])
        return encoder(history, history["item"] > 0, packing=packing)

    found, expected = np.asarray(run_packed(encoder)), run(encoder, {"item": ITEM, "ago": AGO})
    for user in range(2):
        mine = found[packed["history/user"] == user + 1]
        np.testing.assert_allclose(mine, expected[user][ITEM[user] > 0], atol=1e-5)


def test_spans_of_time():
    assert bucket(jnp.array([-5, 0, 1, 3, 2**31 - 1])).tolist() == [0, 0, 2, 4, 61]
    ago, user = jnp.array([[9, 4, 4, 7, 2]]), jnp.array([[1, 1, 1, 2, 2]])
    assert following(ago, None).tolist() == [[4, 4, 7, 2, 0]]
    assert following(ago, user).tolist() == [[4, 4, 0, 2, 0]]
    assert since_previous(ago, ago > 0, user).tolist() == [[0, 5, 0, 0, 5]]
    assert since_previous(ago, jnp.array([[False, True, True, True, True]]), None).tolist() == [[0, 0, 0, -3, 5]]
