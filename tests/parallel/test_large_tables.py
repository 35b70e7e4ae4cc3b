"""Large tables, cut by their rows over `fsdp` and `tensor`: a step is that of one device, and none holds a table."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import Partial

from user_llm.checkpoints.transfer import initialise
from user_llm.evaluation import ranks
from user_llm.evaluation.users import encoder_scores
from user_llm.models import parameters, sharding
from user_llm.models.autoregressive_encoder import AutoregressiveEncoder, EncoderConfig
from user_llm.models.model import Model
from user_llm.models.table_rows import add_rows, put_rows, take_rows
from user_llm.parallel import mesh as meshes
from user_llm.parallel.rules import partition_spec
from user_llm.schema import training
from user_llm.training import loop
from user_llm.training.negatives import Negatives
from user_llm.training.objectives import autoregressive_objective
from user_llm.training.optimizer import make_optimizer
from user_llm.training.trainable import EVERYTHING

LARGE, ROWS, U, B, S = 1000, 1024, 16, 16, 5  # `ROWS` of the table, as many as no other array has
PRIME = 1009  # items and the padding, in a table of `ROWS`
NAMED = {
    "data": dict(data=8, fsdp=1, tensor=1),
    "fsdp": dict(data=1, fsdp=8, tensor=1),
    "tensor": dict(data=1, fsdp=1, tensor=8),
    "all": dict(data=2, fsdp=2, tensor=2),
}
SPARES = ("fsdp", "all")


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch):
    monkeypatch.setattr(sharding, "LARGE", LARGE)


def build(rngs, rows=ROWS):
    config = EncoderConfig(max_length=S, features=("item", "rating"), num_layers=1, width=U, num_heads=2, hidden=24)
    sizes = dict(item_categories=np.zeros((rows, 1), np.int32), num_categories=1, num_ratings=5)
    return AutoregressiveEncoder(config, **sizes, rngs=rngs)


def batch(rows):
    generator = np.random.default_rng(0)
    item = generator.integers(1, rows, (B, S + 1)).astype(np.int32)
    rating = generator.integers(1, 6, (B, S + 1)).astype(np.int32)
    item[:3, :2] = rating[:3, :2] = 0
    given = {"item": item, "rating": rating}
    histories = {f"history/{name}": x[:, :-1] for name, x in given.items()}
    return {**histories, **{f"label/{name}": x[:, -1] for name, x in given.items()}}


@functools.cache
def step(softmax, sizes, rows=ROWS, padded=True):
    """Of two steps: the loss of each, and in the end parameters and what the optimizer holds; and the program.

    `softmax`: full, without the items that are "dropped", or sampled with tables that move row by row.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "LARGE", LARGE if padded else rows)
        return _step(softmax, sizes, rows)


def _step(softmax, sizes, rows):
    mesh = meshes.one_device() if sizes is None else meshes.make_mesh(NAMED[sizes])
    draw, dropped = None, None
    if softmax == "dropped":
        dropped = ~np.isin(np.arange(rows), batch(rows)["history/item"]) & (np.arange(rows) % 3 == 0)
        dropped &= ~np.isin(np.arange(rows), batch(rows)["label/item"])
    if softmax == "sampled":
        negatives = Negatives.by_popularity(np.arange(rows - 1))
        draw = Partial(functools.partial(Negatives.draw, count=32), negatives)
    tables = "rowwise" if softmax == "sampled" else "adam"
    config = training(batch_size=B, steps=10, warmup_fraction=0.0, tables=tables)
    of_rows = functools.partial(build, rows=rows)
    graphdef, values, buffers = initialise(of_rows, 0, mesh)
    values = {path: 3 * value for path, value in values.items()}  # gradients far above what rounding does
    axes = parameters.logical_axes(parameters.abstract(of_rows))
    objective = meshes.put_whole(autoregressive_objective(16, dropped, draw), mesh)
    model = Model(graphdef, values, buffers, mesh)
    run = loop.TrainingRun("encoder", config, model, axes, EVERYTHING, objective, batches=None)
    optimizer = make_optimizer(config, axes)
    state = loop.replicate_scalars({"parameters": values, **loop.fresh_state(optimizer, values)}, mesh)
    given = {}, buffers, meshes.put_batch(batch(rows), mesh), objective
    program, losses = loop.make_train_step(run, optimizer, seed=0).lower(state, *given).compile(), []
    for _ in range(2):
        state, metrics = program(state, *given)
        losses.append(float(metrics["loss"][0]))
    return losses, jax.tree.map(np.asarray, (state["parameters"], state["optimizer"])), program.as_text()


def largest(program):
    """The numbers in the largest array of a compiled program."""
    return max(math.prod(map(int, shape.split(","))) for shape in re.findall(r"\w+\[([\d,]+)\]", program))


@pytest.mark.parametrize("sizes", NAMED)
@pytest.mark.parametrize("softmax", ["full", "sampled"])
def test_a_step_over_a_mesh_is_that_of_one_device(softmax, sizes):
    (losses, state, _), (expected, one, _) = step(softmax, sizes), step(softmax, None)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert losses[0] != losses[1]
    for found, value in zip(jax.tree.leaves(state), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", NAMED)
@pytest.mark.parametrize("softmax", ["full", "sampled"])
def test_no_device_holds_as_much_as_the_table(softmax, sizes):
    most = largest(step(softmax, sizes)[2])
    assert (most < ROWS * U) == (sizes != "data")
    if sizes in SPARES:
        assert most <= ROWS * U // 2


def test_scores_of_all_and_of_some_items_are_those_of_one_device():
    scores = []
    for mesh in (meshes.one_device(), meshes.make_mesh(NAMED["all"])):
        model = Model(*initialise(build, 0, mesh), mesh)
        asked = jax.device_put(
            np.random.default_rng(0).normal(size=(B, U)).astype(np.float32), NamedSharding(mesh, meshes.BATCH)
        )
        answers = np.arange(ROWS)[::-3]

        @jax.jit
        def run(model, asked, answers=answers):
            return model.module().item_logits(asked), model.module().item_logits(asked, answers)

        scores.append(run(model, asked))
        np.testing.assert_allclose(scores[-1][1], scores[-1][0][:, answers], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores[0][0], scores[1][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [None, *SPARES])
@pytest.mark.parametrize("softmax", ["full", "dropped", "sampled"])
def test_steps_know_nothing_of_the_rows_behind_the_items(softmax, sizes):
    (losses, state, program), (expected, without, _) = step(softmax, sizes, PRIME), step(softmax, None, PRIME, False)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    padded = 0
    for found, value in zip(jax.tree.leaves(state), jax.tree.leaves(without), strict=True):
        if np.shape(value)[:1] == (PRIME,):
            assert len(found) == ROWS
            assert not found[PRIME:].any()
            found, padded = found[:PRIME], padded + 1
        np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5)
    assert padded == (2 if softmax == "sampled" else 3)  # the table and its moments
    if sizes is not None:
        assert largest(program) <= ROWS * U // 2


@pytest.mark.parametrize("sizes", [None, *SPARES])
def test_ranks_know_nothing_of_the_rows_behind_the_items(sizes, monkeypatch):
    mesh = meshes.one_device() if sizes is None else meshes.make_mesh(NAMED[sizes])
    monkeypatch.setattr(ranks, "BLOCK", 500)
    found = []
    for place, large in ((meshes.one_device(), PRIME), (mesh, LARGE)):
        monkeypatch.setattr(sharding, "LARGE", large)
        scores = encoder_scores(Model(*initialise(functools.partial(build, rows=PRIME), 0, place), place))(batch(PRIME))
        found.append((np.asarray(scores.all()), ranks.rank_labels(scores, batch(PRIME)["label/item"])))
    (without, expected), (scores, ranking) = found
    assert scores.shape == (B, PRIME)
    np.testing.assert_allclose(scores, without, rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, ranking, expected)


def test_large_tables_alone_are_cut_by_their_rows(caplog):
    mesh, small = meshes.make_mesh(NAMED["fsdp"]), LARGE - LARGE % 8
    for rows, axes, spec in [
        (ROWS, ("items", "user"), PartitionSpec(("fsdp", "tensor"), None)),
        (ROWS, ("items", None), PartitionSpec(("fsdp", "tensor"), None)),
        (ROWS, ("embed", "vocab"), PartitionSpec("fsdp", "tensor")),
        (small, ("items", "user"), PartitionSpec("tensor", "fsdp")),
        (ROWS + 1, ("items", "user"), PartitionSpec("tensor", "fsdp")),
    ]:
        assert partition_spec("x", (rows, U), axes, mesh) == spec, (rows, axes)
    # That no table of items has, unless fsdp times tensor has a factor of 3, say.
    assert caplog.messages == ["x: its 1025 rows are no multiple of fsdp times tensor (8): each device gathers them"]
    without = meshes.make_mesh(NAMED["tensor"])
    assert partition_spec("x", (ROWS, U), ("items", "user"), without) == PartitionSpec("tensor", "fsdp")


@pytest.mark.parametrize(
    ("classes", "rows"), [(1, 1), (LARGE, LARGE), (LARGE + 1, 1024), (1024, 1024), (1025, 1536), (10**7, 10_000_384)]
)
def test_rows_of_large_tables_are_so_many_that_meshes_divide_them(classes, rows):
    assert sharding.padded_rows(classes) == rows


@pytest.mark.parametrize("shape", [(8, 3), (13,)])
@pytest.mark.parametrize("sizes", ["fsdp", "all"])
def test_rows_are_read_and_added_where_they_lie(sizes, shape):
    mesh, generator = meshes.make_mesh(NAMED[sizes]), np.random.default_rng(0)
    table = generator.normal(size=(ROWS, U)).astype(np.float32)
    ids = generator.integers(0, 40, shape) * 25  # some of them twice
    given = generator.normal(size=(*shape, U)).astype(np.float32)
    placed = jax.device_put(table, NamedSharding(mesh, PartitionSpec(("fsdp", "tensor"))))

    @jax.jit
    def run(table, ids, given):
        rows, pull = jax.vjp(lambda table: take_rows(table, ids), table)
        once = jnp.unique(ids, size=50, fill_value=10 * ROWS)
        put = put_rows(table, once, 2.0 * once[:, None] + jnp.arange(U))
        return rows, pull(given)[0], add_rows(table, ids.ravel(), given.reshape(-1, U)), put

    rows, gradient, added, put = run(placed, ids, given)
    expected = np.zeros_like(table)
    np.add.at(expected, ids, given)
    np.testing.assert_array_equal(rows, table[ids])
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(added, table + expected, rtol=1e-5, atol=1e-6)
    of_ids = np.isin(np.arange(ROWS), ids)[:, None]
    np.testing.assert_array_equal(put, np.where(of_ids, 2 * np.arange(ROWS)[:, None] + np.arange(U), table))
    outside = np.where(ids == ids.flat[0], ROWS, ids)
    np.testing.assert_array_equal(np.isnan(run(placed, outside, given)[0][..., 0]), outside == ROWS)
    assert gradient.sharding.is_equivalent_to(placed.sharding, 2)
    assert jnp.shape(added) == table.shape
