"""What BERT4Rec and the dual encoder minimise, against plain loops over dense softmaxes in float64."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from user_llm.models.bert4rec import Bert4Rec
from user_llm.models.dual_encoder import DualEncoder, DualEncoderConfig
from user_llm.models.user_encoder import EncoderConfig
from user_llm.training.objectives import _log_sampling_probability, dual_encoder_objective, masked_objective

ITEMS, S, CHUNK = 11, 6, 5  # items and slots of conftest.py; a chunk that divides nothing here
CATEGORIES = np.array([[0, 0]] + [[1 + i % 4, (i % 3 == 0) * (1 + (i + 1) % 4)] for i in range(ITEMS)])
CATEGORIES[[4, 9]] = 0
SIZES = dict(item_categories=CATEGORIES, num_categories=4, num_ratings=5)
DIMS = dict(max_length=S, num_layers=1, width=8, num_heads=2, hidden=12)


@pytest.fixture(scope="module")
def windows(batch):
    """Only what an encoder reads."""
    return {name: ids for name, ids in batch.items() if name.startswith(("history/", "label/"))}


@pytest.fixture(scope="module")
def bert4rec(lively):
    return lively(lambda rngs: Bert4Rec(EncoderConfig(**DIMS), **SIZES, rngs=rngs))


@pytest.fixture(scope="module")
def dual_encoder(lively):
    return lively(
        lambda rngs: DualEncoder(DualEncoderConfig(**DIMS, features=("item", "category")), **SIZES, rngs=rngs)
    )


def run(objective, model, batch, key=None):
    return jax.tree.map(float, jax.jit(objective)(model, batch, key))


def negative_log_softmax(logits):
    return np.log(np.exp(logits).sum()) - logits


class Recorder:
    """A model that notes what it is asked, and whose embedding of a slot is one-hot in the slot's number."""

    def __init__(self, *features):
        self.config, self.num_answers = SimpleNamespace(features=features), ITEMS + 1

    def __call__(self, events, mask, *, masked, key):
        self.events, self.mask, self.masked, self.key = events, np.asarray(mask), np.asarray(masked), key
        return jnp.broadcast_to(jnp.eye(S), (*mask.shape, S))

    def feature_hidden(self, embeddings, feature):
        self.read = np.asarray(embeddings.argmax(axis=-1))
        return embeddings

    def feature_table(self, feature):
        return jnp.zeros((ITEMS + 1, S))


@pytest.mark.parametrize("rate", [0.01, 0.3, 1.0])
def test_a_share_of_the_events_is_masked_and_asked_for(windows, rate):
    model, objective = Recorder("item"), masked_objective(CHUNK, rate)
    _, weight, _ = objective(model, windows, jax.random.key(3))
    events = np.concatenate([windows["history/item"], windows["label/item"][:, None]], axis=1)[:, 1:]
    np.testing.assert_array_equal(model.events["item"], events)
    np.testing.assert_array_equal(model.mask, events > 0)
    assert not (model.masked & ~model.mask).any()
    counts = [max(1, round(rate * n)) for n in (events > 0).sum(axis=1)]
    np.testing.assert_array_equal(model.masked.sum(axis=1), counts)
    assert weight == sum(counts)
    assert model.read.shape == (16, max(1, round(rate * S)))  # only those go through the softmax
    for row, count in enumerate(counts):
        np.testing.assert_array_equal(np.sort(model.read[row, :count]), np.flatnonzero(model.masked[row]))


def test_what_is_masked_is_drawn_from_the_key(windows):
    def masked(seed):
        model = Recorder()
        masked_objective(CHUNK, 0.3)(model, windows, jax.random.key(seed))
        return model.masked

    np.testing.assert_array_equal(masked(0), masked(0))
    assert (masked(0) != masked(1)).any()
    wide = {name: np.ones((3000, *ids.shape[1:]), np.int32) for name, ids in windows.items()}
    model = Recorder()
    masked_objective(512, 0.3)(model, wide, jax.random.key(0))
    np.testing.assert_allclose(model.masked.mean(axis=0), 2 / S, atol=0.04)  # no slot is preferred


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5])
def test_a_rate_that_is_no_share_is_named(rate):
    with pytest.raises(ValueError, match=f"mask_rate is the share of events to mask.*got {rate}"):
        masked_objective(CHUNK, rate)


def test_the_masked_loss_is_a_dense_softmax_at_masked_events(bert4rec, windows):
    """Without a key that is the label; a row that only fills the batch does not count."""
    rows = np.repeat(np.float32([1, 0]), [13, 3])
    loss, weight, metrics = run(masked_objective(CHUNK, 0.3), bert4rec, {**windows, "weight": rows})
    events = {
        name: np.concatenate([windows[f"history/{name}"], windows[f"label/{name}"][:, None]], axis=1)[:, 1:]
        for name in ("item", "rating")
    }
    last = np.broadcast_to(np.arange(S) == S - 1, events["item"].shape)
    embeddings = jax.jit(lambda model: model(events, events["item"] > 0, masked=last))(bert4rec)
    embeddings = np.asarray(embeddings, np.float64)[:, -1]
    for feature in ("item", "category", "rating"):
        table = np.asarray(bert4rec.feature_table(feature), np.float64)[1:]
        hidden = embeddings @ np.asarray(getattr(bert4rec, f"{feature}_head_UU")[...])
        total = 0.0
        for row in range(13):
            item = events["item"][row, -1]
            wanted = CATEGORIES[item] if feature == "category" else [events[feature][row, -1]]
            wanted = [target - 1 for target in wanted if target]
            total += np.mean(negative_log_softmax(table @ hidden[row])[wanted]) if wanted else 0.0
        assert metrics[f"loss/{feature}"][0] == pytest.approx(total, rel=1e-5), feature
    assert (weight, metrics["loss"]) == (13, (loss, 13))
    assert loss == pytest.approx(sum(metrics[f"loss/{name}"][0] for name in ("item", "category", "rating")), rel=1e-6)


@pytest.mark.parametrize("corrected", [False, True])
def test_the_label_competes_with_the_distinct_labels_of_the_batch(dual_encoder, windows, corrected):
    frequencies = np.arange(ITEMS + 1) ** 2.0
    weights = np.repeat(np.float32([1, 0]), [13, 3])
    labels = windows["label/item"][:13]
    assert len(np.unique(labels)) < 13
    assert set(windows["label/item"][13:]) - set(labels)  # a filler's label is nobody's negative
    objective = dual_encoder_objective(CHUNK, frequencies if corrected else None)
    loss, weight, metrics = run(objective, dual_encoder, {**windows, "weight": weights})
    history = {name: windows[f"history/{name}"] for name in ("item", "rating")}
    logits = jax.jit(lambda model: model.query_logits(model.query(history, history["item"] > 0)))(dual_encoder)
    logits = np.asarray(logits, np.float64)
    if corrected:
        logits[:, 1:] -= np.log(1 - (1 - frequencies[1:] / frequencies.sum()) ** 16)
    classes = np.unique(labels)
    expected = sum(
        negative_log_softmax(logits[row, classes])[np.flatnonzero(classes == label)[0]]
        for row, label in enumerate(labels)
    )
    assert loss == pytest.approx(expected, rel=1e-4)
    assert (weight, metrics) == (13, {"loss": (loss, 13)})


def test_the_correction_is_the_chance_to_be_in_a_batch():
    """All batches of three labels, one by one; class 0 never is one, and counts as seen once."""
    frequencies = np.array([0, 1, 2, 3])
    chance = np.zeros(4)
    for labels in itertools.product([1, 2, 3], repeat=3):
        chance[list(set(labels))] += np.prod(frequencies[list(labels)] / 6)
    chance[0] = chance[1]
    np.testing.assert_allclose(np.exp(_log_sampling_probability(frequencies, 3)), chance, rtol=1e-6)
    np.testing.assert_array_equal(_log_sampling_probability(np.array([0, 9]), 3)[1], 0)  # the only label: always there


@pytest.mark.parametrize("given", [False, True], ids=["the next item's", "given"])
def test_categories_compete_with_all_categories(lively, windows, given):
    config = DualEncoderConfig(**DIMS, features=("item",), label="category")
    model = lively(lambda rngs: DualEncoder(config, **SIZES, rngs=rngs))
    favorites = np.arange(16, dtype=np.int32) % (SIZES["num_categories"] + 1)  # 0: a user without one
    batch = {**windows, "label/category": favorites} if given else windows
    loss, weight, _ = run(dual_encoder_objective(CHUNK, None), model, batch)
    history = {name: windows[f"history/{name}"] for name in ("item", "rating")}
    logits = jax.jit(lambda model: model.query_logits(model.query(history, history["item"] > 0)))(model)
    wanted = favorites[:, None] if given else [CATEGORIES[item] for item in windows["label/item"]]
    wanted = [[c - 1 for c in row if c] for row in wanted]
    losses = [
        negative_log_softmax(row)[ids].mean() for row, ids in zip(np.float64(logits[:, 1:]), wanted, strict=True) if ids
    ]
    assert len(losses) < 16  # who has no category teaches nothing
    assert (loss, weight) == (pytest.approx(sum(losses), rel=1e-5), len(losses))


def test_similarities_of_all_pairs_never_exist(dual_encoder, windows):
    many = {name: np.tile(ids, (20,) + (1,) * (ids.ndim - 1)) for name, ids in windows.items()}

    def program(chunk_rows):
        loss = lambda model: dual_encoder_objective(chunk_rows, None)(model, many, None)[0]  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss, allow_int=True))(dual_encoder))

    assert "f32[320,320]" not in program(64)
    assert "f32[320,320]" in program(320)  # the check sees
