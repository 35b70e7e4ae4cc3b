"""Vectors of items' names: what they promise, and that they are computed once."""

from types import SimpleNamespace

import numpy as np
import pytest

from user_llm.errors import UserError
from user_llm.experiment import item_text
from user_llm.experiment.item_text import name_vectors
from user_llm.experiment.stages import encoder
from user_llm.models import sharding
from user_llm.models.event_embedding import TEXT_WIDTH


@pytest.fixture(scope="module")
def words():
    """A vocabulary of 300 words, and an embedding of each."""
    return {f"w{place}": place for place in range(300)}, np.random.default_rng(0).normal(size=(300, 160))


def vectors_of(texts, words):
    ids, table = words
    return name_vectors(["", *texts], lambda texts: [[ids[word] for word in text.split()] for text in texts], table)


def test_directions_have_variance_one_and_nothing_in_common(words):
    generator = np.random.default_rng(1)
    texts = [" ".join(f"w{place}" for place in generator.integers(0, 300, 6)) for _ in range(2000)]
    vectors = vectors_of(texts, words)
    assert (vectors.shape, vectors.dtype) == ((2001, TEXT_WIDTH), np.float32)
    assert (vectors[0] == 0).all()
    np.testing.assert_allclose(np.cov(vectors[1:].T, bias=True), np.eye(TEXT_WIDTH), atol=1e-3)


def test_alike_are_names_that_share_rare_words(words):
    generator = np.random.default_rng(2)
    texts = [f"w0 w1 w{2 + place // 2} w{generator.integers(2, 300)}" for place in range(596)]
    vectors = vectors_of(texts, words)[1:]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = np.sum(vectors[::2] * vectors[1::2], axis=1)  # of two that share a rare word
    others = np.sum(vectors[::2] * np.roll(vectors[1::2], 1, axis=0), axis=1)  # that share w0 and w1, as all do
    assert pairs.mean() > 0.2
    assert abs(others.mean()) < 0.05
    same = vectors_of([texts[0], *texts], words)
    np.testing.assert_array_equal(same[1], same[2])


def test_few_items_have_few_directions(words):
    vectors = vectors_of(["w1", "w2", "w3 w4"], words)
    assert np.isfinite(vectors).all()
    assert (np.abs(vectors).max(axis=0) > 1e-3).sum() == 2  # three points, centred
    assert (vectors_of(["w1", "w1"], words) == 0).all()


def test_a_padded_table_has_zeros_behind_the_items(words, monkeypatch):
    vectors = vectors_of(["w1", "w2", "w3 w4"], words)
    monkeypatch.setattr(sharding, "LARGE", len(vectors) - 1)
    monkeypatch.setattr(encoder, "item_text", lambda experiment, finished: vectors)
    reading = SimpleNamespace(config=SimpleNamespace(encoder=SimpleNamespace(item_text=True)))
    _, given = encoder.EncoderStage().pretrained(reading, {})
    (padded,) = given.values()
    np.testing.assert_array_equal(padded[: len(vectors)], vectors)
    assert padded.shape == (512, TEXT_WIDTH)
    assert not padded[len(vectors) :].any()


def test_they_are_computed_once_and_damage_is_named(tmp_path, monkeypatch):
    made = []
    experiment = type(
        "Run", (), {"workdir": tmp_path, "catalogue": None, "vocabulary": type("V", (), {"encode_batch": None})}
    )
    monkeypatch.setattr(item_text, "_texts", lambda catalogue: ["", "a"])
    monkeypatch.setattr(item_text, "_table", lambda experiment, finished: made.append(1))
    monkeypatch.setattr(item_text, "name_vectors", lambda *args: np.ones((2, TEXT_WIDTH), np.float32))
    first, again = (item_text.item_text(experiment, {}) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert len(made) == 1
    with (tmp_path / item_text.FOLDER / "table.npy").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"oops")
    with pytest.raises(
        UserError, match=r"table.npy has changed at bytes .*: delete .*item_text, and it is computed anew"
    ):
        item_text.item_text(experiment, {})
