"""Ranks in blocks against the dense formula, and that no block is larger than it has to be."""

import dataclasses
import math
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from user_llm.evaluation import baselines, neighbours, ranks, users
from user_llm.evaluation.evaluator import rank_by_scores
from user_llm.evaluation.ranks import TOP, best, rank_labels
from user_llm.evaluation.scores import ItemScores
from user_llm.evaluation.users import encoder_scores
from user_llm.models.event_embedding import FeatureEmbeddings
from user_llm.parallel.mesh import make_mesh


def naive(scores, label, excluded=()):
    """The label's rank and the best items: sorts those that may be answered, the label behind its ties."""
    items = [item for item in range(1, len(scores)) if item == label or item not in excluded]
    pessimistic = sorted(items, key=lambda item: (-scores[item], item == label))
    top = [item for item in sorted(items, key=lambda item: -scores[item]) if scores[item] > -math.inf]
    return pessimistic.index(label) + 1, (top + [0] * TOP)[:TOP]


def in_blocks(values):
    """Scores that go on behind the last item, where they are the best of all."""
    behind = np.full((len(values), 64), np.inf, np.float32)
    xp = jnp if isinstance(values, jax.Array) else np
    longer = xp.concatenate([values, behind.astype(values.dtype)], axis=1)
    return ItemScores(values.shape[1], lambda first, count: longer[:, first : first + count])


SCORE = st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 0.5, 2.0])


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("size", [1, 4, 7, 12, 50])
@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.lists(SCORE, min_size=23, max_size=23),
            st.integers(1, 23),
            st.lists(st.integers(0, 23), min_size=4, max_size=4),
        ),
        min_size=3,
        max_size=3,
    ),
    padding=st.sampled_from([-math.inf, 0.0, math.inf]),
)
def test_ranks_and_best_items_in_blocks_are_those_of_a_sort(on_device, size, rows, padding):
    scores = np.array([[padding, *row] for row, _, _ in rows], np.float32)
    labels = np.array([label for _, label, _ in rows])
    excluded = np.array([items for _, _, items in rows], np.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "BLOCK", size)
        for closed in (None, excluded):
            found = rank_labels(in_blocks(jnp.asarray(scores) if on_device else scores), labels, closed)
            expected = [
                naive(row.tolist(), label, () if closed is None else shut)
                for row, label, shut in zip(scores, labels, excluded.tolist(), strict=True)
            ]
            np.testing.assert_array_equal(found.ranks, [rank for rank, _ in expected])
            np.testing.assert_array_equal(found.items, [top for _, top in expected])
            assert not np.any(found.unordered)


@pytest.mark.parametrize("size", [2, 50])
def test_fewer_items_than_are_kept(size, monkeypatch):
    monkeypatch.setattr(ranks, "BLOCK", size)
    scores = np.array([[9.0, 1.0, 3.0, -np.inf, 2.0]], np.float32)
    for values in (scores, jnp.asarray(scores)):
        found = rank_labels(in_blocks(values), np.array([3]), np.array([[2]]))
        assert np.asarray(found.items).tolist() == [[4, 1, 0, 0, 0, 0, 0, 0, 0, 0]]
        assert np.asarray(found.ranks).tolist() == [3]


def test_a_constant_score_earns_the_last_rank():
    np.testing.assert_array_equal(rank_labels(ItemScores.dense(np.zeros((2, 8))), np.array([1, 7])).ranks, [7, 7])


def test_float64_is_compared_as_it_is():
    scores = np.array([[0.0, 1.0, 1.0 + 1e-12, 0.5]])
    assert rank_labels(ItemScores.dense(scores), np.array([2])).ranks.tolist() == [1]
    assert rank_labels(ItemScores.dense(scores), np.array([1])).ranks.tolist() == [2]


def test_ranking_leaves_the_scores_as_they_are():
    scores = np.arange(8.0).reshape(1, 8)
    rank_labels(ItemScores.dense(scores), np.array([2]), np.array([[4, 5]]))
    np.testing.assert_array_equal(scores, np.arange(8.0).reshape(1, 8))


@pytest.mark.parametrize("size", [3, 50])
def test_a_score_that_is_no_number_is_refused_with_its_row(size, windows, monkeypatch):
    monkeypatch.setattr(ranks, "BLOCK", size)
    scores = np.zeros((len(windows), 13), np.float32)
    scores[1, 11] = np.nan
    for values in (scores, jnp.asarray(scores)):
        with pytest.raises(ValueError, match="1 of 11 rows of scores hold NaN, the first in row 1"):
            rank_by_scores(
                lambda batch, of=values: in_blocks(of[batch["user"]]), windows, batch_size=11, exclude_seen=False
            )


@pytest.mark.parametrize("labels", [[0, 1], [1, 4]])
def test_a_label_outside_of_the_catalogue_is_refused(labels):
    with pytest.raises(ValueError, match="labels must be item ids from 1 to 3"):
        rank_labels(ItemScores.dense(np.zeros((2, 4))), np.array(labels))


@given(st.lists(SCORE, min_size=1, max_size=12), st.integers(1, 15))
def test_the_best_of_dense_scores_are_those_of_a_sort(row, count):
    ordered = sorted(range(len(row)), key=lambda item: -row[item])
    expected = [item if row[item] > -math.inf else 0 for item in ordered][: min(count, len(row))]
    assert best(np.array([row]), count).tolist() == [expected]


@pytest.mark.parametrize("size", [5, 13])
def test_an_encoder_ranks_in_blocks_as_at_once(encoder, windows, size, monkeypatch):
    options = dict(batch_size=4, exclude_seen=True)
    batch = windows.gather(np.arange(len(windows)))
    values = np.asarray(encoder_scores(encoder)(batch).all())
    expected = rank_by_scores(lambda batch: ItemScores.dense(values[batch["user"]]), windows, **options)
    monkeypatch.setattr(ranks, "BLOCK", size)
    found = rank_by_scores(encoder_scores(encoder), windows, **options)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_on_a_mesh_blocks_rank_as_on_one_device(encoder, windows, monkeypatch):
    options = dict(batch_size=4, exclude_seen=True)
    expected = rank_by_scores(encoder_scores(encoder), windows, **options)
    mesh = make_mesh(dict(data=2, fsdp=2, tensor=2))
    whole = NamedSharding(mesh, PartitionSpec())
    cut = {"embedding/item_VU": NamedSharding(mesh, PartitionSpec(None, "fsdp"))}
    several = dataclasses.replace(
        encoder,
        parameters={path: jax.device_put(value, cut.get(path, whole)) for path, value in encoder.parameters.items()},
        buffers=jax.device_put(encoder.buffers, whole),
        mesh=mesh,
    )
    monkeypatch.setattr(ranks, "BLOCK", 5)
    for one, other in zip(rank_by_scores(encoder_scores(several), windows, **options), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def sizes(jaxpr):
    """The sizes of all arrays that a program makes."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from sizes(inner)


def test_no_array_of_an_encoders_ranking_is_as_large_as_users_times_items(encoder, monkeypatch):
    """The programs are looked at, not run: of a catalogue of 30 blocks."""
    table, rows, size = encoder.parameters["embedding/item_VU"], 64, 1000
    assert table.shape[0] == 13
    many = jax.ShapeDtypeStruct((30 * size, table.shape[1]), table.dtype)
    large = encoder.with_parameters({**encoder.parameters, "embedding/item_VU": many})
    monkeypatch.setattr(FeatureEmbeddings, "num_classes", lambda self, feature: self.table(feature).shape[0])
    query, first = jax.ShapeDtypeStruct((rows, 8), jnp.float32), np.int32(0)
    block = jax.make_jaxpr(lambda *args: users._query_logits(*args, count=size))(large, query, first)
    assert max(sizes(block.jaxpr)) == rows * size
    values = jax.ShapeDtypeStruct((rows, size), jnp.float32)
    labels, excluded = np.zeros(rows, np.int32), np.zeros((rows, 50), np.int32)
    of_label = jnp.zeros(rows)
    found = jax.eval_shape(ranks._COMPILED[ranks._label_scores], None, values, first, labels)
    assert found.shape == (rows,)
    counted = jax.eval_shape(ranks._COMPILED[ranks._count], None, values, first, of_label, excluded, first)
    program = jax.make_jaxpr(ranks._COMPILED[ranks._count])(counted, values, first, of_label, excluded, first)
    assert max(sizes(program.jaxpr)) <= rows * (size + 1)  # not the whole catalogue's, and not a history of one-hots


@pytest.mark.parametrize("row", ["popularity", "category", "neighbours"])
def test_no_baseline_holds_users_times_items(row, monkeypatch):
    monkeypatch.setattr(ranks, "BLOCK", 1000)
    items, rows = 100_000, 64
    generator = np.random.default_rng(0)
    counts = generator.integers(0, 9, items + 1)
    at = generator.integers(1, items + 1, (2, 5000))
    matrix = sparse.coo_array((np.ones(5000, np.float32), at), shape=(items + 1, items + 1)).tocsr()
    scores = {
        "popularity": lambda: baselines.popularity_scores(counts),
        "category": lambda: baselines.category_popularity_scores(counts, generator.integers(0, 9, (items + 1, 2))),
        "neighbours": lambda: neighbours.neighbour_scores(matrix, counts, decay=0.5),
    }[row]()
    batch = {"history/item": generator.integers(1, items + 1, (rows, 20))}
    labels = generator.integers(1, items + 1, rows)
    tracemalloc.start()
    try:
        rank_labels(scores(batch), labels, batch["history/item"])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < rows * items  # an eighth, or a quarter, of all scores; about ten blocks
