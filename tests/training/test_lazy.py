"""Lazy moves of tables against a dense step from the same state: rows that are met, rows that are not, and memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh
from jax.tree_util import Partial

from user_llm.models import parameters, sharding
from user_llm.models.autoregressive_encoder import AutoregressiveEncoder
from user_llm.models.bert4rec import Bert4Rec
from user_llm.models.model import Model
from user_llm.models.table_rows import TableRows, take_rows
from user_llm.models.user_encoder import EncoderConfig
from user_llm.parallel.mesh import one_device
from user_llm.schema import training
from user_llm.training import loop
from user_llm.training.lazy import gathers, met_rows
from user_llm.training.negatives import Negatives
from user_llm.training.objectives import ItemObjective, autoregressive_objective, masked_objective
from user_llm.training.optimizer import make_optimizer
from user_llm.training.trainable import EVERYTHING, trainable

V, B, S, K, SEED = 200, 8, 5, 16, 3
TABLE = "embedding/item_VU"
ALL = ("item", "category", "rating")


def build(rngs, kind=AutoregressiveEncoder, rows=V, **options):
    config = EncoderConfig(max_length=S, num_layers=1, width=8, num_heads=2, hidden=8, **options)
    categories = np.arange(rows)[:, None] % 4
    return kind(config, item_categories=categories, num_categories=3, num_ratings=5, rngs=rngs)


def batches(count):
    generator = np.random.default_rng(0)
    for _ in range(count):
        item, rating = (generator.integers(1, most, (B, S + 1)).astype(np.int32) for most in (30, 6))
        item[:2, :2] = rating[:2, :2] = 0
        given = {"item": item, "rating": rating}
        history = {f"history/{name}": x[:, :-1] for name, x in given.items()}
        yield {**history, **{f"label/{name}": x[:, -1] for name, x in given.items()}}


def draw(rows=V):
    return Partial(functools.partial(Negatives.draw, count=K), Negatives.by_popularity(np.arange(rows)))


def sampled(kind=AutoregressiveEncoder, given=None):
    given = draw() if given is None else given
    return masked_objective(16, 0.4, draw=given) if kind is Bert4Rec else autoregressive_objective(16, draw=given)


def whole_step(objective):
    """The same objective, of which nobody knows which rows it reads."""
    return lambda model, batch, key: objective(model, batch, key)


def begin(objective, *, accumulate=1, **options):
    """A compiled step, the state before it, and what takes both and a batch to the next state and metrics."""
    config = training(batch_size=B, accumulate=accumulate, steps=10, warmup_fraction=0.0, weight_decay=0.3)
    config.clip_norm, config.tables = 0.1, "rowwise"
    model = build(nnx.Rngs(0), **options)
    graphdef, values, buffers = parameters.split(model)
    axes = parameters.logical_axes(model)
    run = loop.TrainingRun("encoder", config, Model(graphdef, {}, {}, one_device()), axes, EVERYTHING, objective, None)
    values = {path: 3 * value for path, value in values.items()}  # gradients far above what rounding does
    given = [path for path, trains in trainable(values, EVERYTHING).items() if not trains]
    frozen = {path: jax.random.normal(jax.random.key(1), values.pop(path).shape) for path in given}
    optimizer = make_optimizer(config, {path: axes[path] for path in values})
    state = {"parameters": values, **loop.fresh_state(optimizer, values)}
    as_argument = [objective] if isinstance(objective, ItemObjective) else []
    step = loop.make_train_step(run, optimizer, SEED)
    program = step.lower(state, frozen, buffers, next(batches(1)), *as_argument).compile()
    return program, state, lambda state, batch: program(state, frozen, buffers, batch, *as_argument)


def ids_of(batch, step, accumulate, rows):
    """What a step reads: the items of its batch, and what each microbatch draws."""
    key = jax.random.fold_in(jax.random.key(SEED), step)
    keys = [jax.random.split(jax.random.fold_in(key, index))[1] for index in range(accumulate)]
    drawn = [np.asarray(draw(rows)(key)[0]) for key in keys]
    return np.unique(np.concatenate([batch["history/item"].ravel(), batch["label/item"], *drawn]))


@pytest.mark.parametrize(
    ("options", "accumulate"),
    [
        (dict(features=("item",)), 2),
        (dict(features=ALL, item_text=True), 1),
        (dict(features=("item",), kind=Bert4Rec), 1),
        (dict(features=("item",), rows=50), 1),  # fewer than a step reads, some of them twice
    ],
)
def test_rows_that_are_met_move_as_in_a_dense_step_and_all_others_keep_their_bits(options, accumulate):
    rows = options.get("rows", V)
    objective = sampled(options.get("kind"), draw(rows))
    _, state, lazy = begin(objective, accumulate=accumulate, **options)
    _, _, dense = begin(whole_step(objective), accumulate=accumulate, **options)
    for index, batch in enumerate(batches(3)):
        assert len(np.unique(batch["history/item"])) < batch["history/item"].size  # the gradient of some is a sum
        before = jax.tree.map(np.array, state)
        expected, metrics = dense(jax.tree.map(jnp.copy, state), batch)
        state, found = lazy(state, batch)
        assert float(metrics["gradient_norm"][0]) > 0.1  # is clipped
        for name, value in metrics.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
        ids = ids_of(batch, index, accumulate, rows)
        others = np.setdiff1d(np.arange(rows), ids)
        assert len(others) > 5
        for (path, old), new, of_dense in zip(
            jax.tree.leaves_with_path(before), *map(jax.tree.leaves, (state, expected)), strict=True
        ):
            is_table = getattr(path[-1], "key", "") == TABLE
            met = ids if is_table else ...
            np.testing.assert_allclose(new[met], of_dense[met], rtol=1e-4, atol=1e-6, err_msg=str(path))
            if is_table:
                np.testing.assert_array_equal(new[others], old[others])
                assert (np.asarray(new[ids]) != old[ids]).any()


def test_a_step_in_two_microbatches_is_that_of_the_whole_batch():
    fixed = Partial(lambda items, key: (items, jnp.zeros(len(items))), jnp.arange(50, 60))  # whatever the microbatch
    after = []
    for accumulate in (1, 2):
        objective = sampled(given=fixed)
        _, state, step = begin(objective, accumulate=accumulate, features=("item",))
        after.append(step(state, next(batches(1)))[0])
    for one, two in zip(*map(jax.tree.leaves, after), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6)


def test_what_a_step_takes_besides_its_state_does_not_grow_with_the_table():
    def memory(rows, objective):
        analysis = begin(objective, rows=rows, features=("item",))[0].memory_analysis()
        assert analysis.alias_size_in_bytes > 4 * 8 * rows  # the table is given away
        return analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes

    small, large = (memory(rows, sampled(given=draw(rows))) for rows in (1000, 50_000))
    assert large == small
    assert memory(50_000, whole_step(sampled(given=draw(50_000)))) > small + 4 * 8 * 49_000  # the check sees


def test_an_item_that_does_not_exist_is_no_number_and_no_other_row():
    objective = sampled()
    _, state, step = begin(objective, features=("item",))
    batch = next(batches(1))
    batch["history/item"] = np.where(np.arange(S) == 3, 10_000, batch["history/item"]).astype(np.int32)
    assert int(step(state, batch)[0]["first_bad_step"]) == 0


def test_tables_are_lazy_where_they_move_row_by_row_and_some_rows_are_read():
    axes = {TABLE: ("items", "user"), "tokens": ("vocab", "embed"), "embedding/category_VU": (None, "user")}
    tuned, keys = {path: jnp.zeros((V, 8)) for path in axes}, jax.random.split(jax.random.key(0), 2)
    batch = next(batches(1))

    def paths(tables, objective, tuned=tuned):
        return met_rows(training(tables=tables), axes, tuned, objective, batch, keys, one_device()).paths

    assert paths("rowwise", sampled()) == (TABLE,)
    assert paths("adam", sampled()) == ()
    assert paths("rowwise", autoregressive_objective(16)) == ()
    assert paths("rowwise", sampled(), {"tokens": tuned["tokens"]}) == ()


def test_rows_stand_in_for_their_table():
    table = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    rows = TableRows(jnp.asarray([1, 4, 7, 99]), jnp.asarray(table[[1, 4, 7, 0]]))
    found = take_rows(rows, jnp.asarray([[7, 1], [4, 5], [0, 8], [1000, -3]]))
    np.testing.assert_array_equal(found[:2].reshape(4, 3)[:3], table[[7, 1, 4]])
    assert np.isnan(np.asarray(found).reshape(8, 3)[3:]).all()


def test_rows_are_gathered_where_they_are_fewer_than_any_device_has():
    mesh = AbstractMesh((2, 4, 2), ("data", "fsdp", "tensor"))
    large = 8 * sharding.LARGE
    assert gathers(large // 8 - 1, large, mesh)
    assert not gathers(large // 8, large, mesh)
    assert gathers(large // 8, large + 1, mesh)  # is not cut by its rows
    assert gathers(99, 100, mesh)
    assert not gathers(100, 100, mesh)
