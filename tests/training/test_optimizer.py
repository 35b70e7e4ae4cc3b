"""The optimizer against AdamW written out in NumPy, its schedule against the formula (paper appendix C)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from user_llm.models import parameters
from user_llm.parallel.mesh import make_mesh
from user_llm.schema import training
from user_llm.training.loop import replicate_scalars
from user_llm.training.optimizer import Pace, learning_rate_schedule, make_optimizer


def formula(step, *, peak, warmup, steps):
    if step < warmup:
        return peak * step / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


@pytest.mark.parametrize(("fraction", "warmup"), [(0.1, 20), (0.0, 0), (0.5, 100)])
def test_the_schedule_warms_up_and_falls_to_zero(fraction, warmup):
    schedule = learning_rate_schedule(training(steps=200, learning_rate=0.3, warmup_fraction=fraction))
    for step in (0, 1, warmup // 2, warmup, warmup + 1, 150, 199, 200):
        assert float(schedule(step)) == pytest.approx(formula(step, peak=0.3, warmup=warmup, steps=200), abs=1e-7), step
    assert float(schedule(warmup)) == pytest.approx(0.3)
    assert float(schedule(200)) == 0
    assert float(schedule(0)) == (0 if warmup else pytest.approx(0.3))


@pytest.mark.parametrize(("steps", "fraction"), [(1, 0.1), (1, 1.0), (10, 1.0)])
def test_a_schedule_may_be_all_warm_up_or_one_step(steps, fraction):
    schedule = learning_rate_schedule(training(steps=steps, learning_rate=0.3, warmup_fraction=fraction))
    rates = [float(schedule(step)) for step in range(steps)]
    warmup = round(steps * fraction)
    assert rates == pytest.approx([0.3 * step / warmup if warmup else 0.3 for step in range(steps)])


AXES = {"w": ("embed", "mlp"), "norm": ("norm",), "layers/0/q_bias_NH": ("heads", "head_dim")}


def numpy_adamw(values, gradients, *, clip_norm, weight_decay, rates, rowwise=(), decays=("w",)):
    """Decoupled decay of the matrices `decays` (Loshchilov & Hutter 2019) after clipping by the global norm.

    Of the tables `rowwise` a row has one second moment, and no first.
    """
    values = {path: value.astype(np.float64) for path, value in values.items()}
    first, second = ({path: np.zeros_like(value) for path, value in values.items()} for _ in range(2))
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        norm = math.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradient.values()))
        scale = clip_norm / norm if clip_norm and norm > clip_norm else 1.0
        for path, value in values.items():
            g = gradient[path] * scale
            first[path] = 0.9 * first[path] + 0.1 * g
            square = g**2
            if path in rowwise:
                square = np.array([[sum(row**2) / len(row)] * len(row) for row in g])
                first[path] = g * (1 - 0.9**step)
            second[path] = 0.98 * second[path] + 0.02 * square
            direction = first[path] / (1 - 0.9**step) / (np.sqrt(second[path] / (1 - 0.98**step)) + 1e-8)
            values[path] = value - rate * (direction + weight_decay * (value if path in decays else 0))
    return values


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_updates_are_those_of_adamw(clip_norm):
    generator = np.random.default_rng(0)
    shapes = dict(zip(AXES, [(3, 4), (4,), (2, 3)], strict=True))
    values = {path: generator.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    # Norms far above the clip, about it and far below: clipping tells in Adam only where they differ.
    gradients = [
        {path: (size * generator.normal(size=value.shape)).astype(np.float32) for path, value in values.items()}
        for size in (10.0, 0.3, 0.01, 3.0)
    ]
    config = training(steps=4, learning_rate=0.1, warmup_fraction=0.25, weight_decay=0.2, clip_norm=clip_norm)
    rates = [formula(step, peak=0.1, warmup=1, steps=4) for step in range(4)]
    expected = numpy_adamw(values, gradients, clip_norm=clip_norm, weight_decay=0.2, rates=rates)
    optimizer = make_optimizer(config, AXES)
    state = optimizer.init(values)
    for gradient in gradients:
        updates, state = jax.jit(optimizer.update)(gradient, state, values)
        values = jax.tree.map(jnp.add, values, updates)
    for path, value in expected.items():
        np.testing.assert_allclose(values[path], value, rtol=1e-4, atol=1e-6, err_msg=path)


def test_rows_of_tables_have_one_moment_each_and_all_else_moves_as_before():
    generator = np.random.default_rng(2)
    axes = {**AXES, "item_VU": ("items", "user"), "tokens": ("vocab", "embed"), "layers/0/position_SU": (None, "user")}
    shapes = dict(zip(axes, [(3, 4), (4,), (2, 3), (5, 4), (6, 2), (3, 4)], strict=True))
    values = {path: generator.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    gradients = [
        {path: generator.normal(size=shape).astype(np.float32) for path, shape in shapes.items()} for _ in range(5)
    ]
    for step, gradient in enumerate(gradients):  # most rows of a table have none in most steps
        gradient["item_VU"][np.arange(5) % 3 != step % 3] = 0
    options, tables = dict(weight_decay=0.2, clip_norm=1.0), ("item_VU", "tokens")
    config = training(steps=5, learning_rate=0.1, warmup_fraction=0.0, tables="rowwise", **options)
    rates = [formula(step, peak=0.1, warmup=0, steps=5) for step in range(5)]
    expected = numpy_adamw(
        values, gradients, rates=rates, rowwise=tables, decays=("w", *tables, "layers/0/position_SU"), **options
    )
    optimizer = make_optimizer(config, axes)
    state = optimizer.init(values)
    adam = make_optimizer(training(steps=5), axes).init(values)
    spared = 2 * (5 * 4 + 6 * 2) - (5 + 6)  # two floats a number become one a row
    kept, all_moments = (sum(leaf.size for leaf in jax.tree.leaves(x) if leaf.ndim) for x in (state, adam))
    assert kept == all_moments - spared
    for gradient in gradients:
        updates, state = jax.jit(optimizer.update)(gradient, state, values)
        values = jax.tree.map(jnp.add, values, updates)
    for path, value in expected.items():
        np.testing.assert_allclose(values[path], value, rtol=1e-4, atol=1e-6, err_msg=path)


def test_what_a_table_s_rows_keep_lies_where_they_do():
    mesh = make_mesh(dict(data=2, fsdp=2, tensor=2))
    table = jax.device_put(jnp.ones((6, 4)), NamedSharding(mesh, PartitionSpec("tensor", "fsdp")))
    values, axes = {"item_VU": table}, {"item_VU": ("items", "user")}
    optimizer = make_optimizer(training(tables="rowwise"), axes)
    state = replicate_scalars(optimizer.init(values), mesh)
    (squares,) = (leaf for leaf in jax.tree.leaves(state) if leaf.shape == (6,))
    assert {shard.data.shape for shard in squares.addressable_shards} == {(3,)}
    _, state = jax.jit(optimizer.update)(values, state, values)
    (squares,) = (leaf for leaf in jax.tree.leaves(state) if leaf.shape == (6,))
    assert {shard.data.shape for shard in squares.addressable_shards} == {(3,)}
    np.testing.assert_allclose(squares, 0.02 * np.ones(6) / 24, rtol=1e-5)  # clipped to a norm of 1


def test_a_component_moves_by_its_share_and_from_its_step_on():
    generator = np.random.default_rng(1)
    values = {path: generator.normal(size=shape).astype(np.float32) for path, shape in
              zip(AXES, [(3, 4), (4,), (2, 3)], strict=True)}  # fmt: skip
    config = training(steps=4, learning_rate=0.1, warmup_fraction=0.0, weight_decay=0.2)
    plain = make_optimizer(config, AXES)
    paced = make_optimizer(config, AXES, {"layers/": Pace(0.25, 0.5), "w": Pace(0.5)})
    states = [jax.jit(optimizer.init)(values) for optimizer in (plain, paced)]
    for step in range(4):
        gradient = {path: generator.normal(size=value.shape).astype(np.float32) for path, value in values.items()}
        (expected, states[0]), (found, states[1]) = (
            jax.jit(optimizer.update)(gradient, state, values)
            for optimizer, state in zip((plain, paced), states, strict=True)
        )
        shares = {"norm": 1.0, "w": 0.5, "layers/0/q_bias_NH": 0.25 if step >= 2 else 0.0}
        for path, share in shares.items():
            np.testing.assert_allclose(found[path], share * expected[path], rtol=1e-6, err_msg=path)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_decay_shrinks_matrices_and_leaves_norms_and_gates(build_user_llm, scan_layers):
    """Without gradients the decay alone moves anything."""
    model = parameters.abstract(lambda rngs: build_user_llm(rngs, scan_layers=scan_layers))
    values = {path: jnp.ones(shape.shape) for path, shape in parameters.split(model)[1].items()}
    config = training(learning_rate=0.5, warmup_fraction=0.0, weight_decay=0.1)
    optimizer = make_optimizer(config, parameters.logical_axes(model))
    zeros = jax.tree.map(jnp.zeros_like, values)
    updates, _ = jax.jit(optimizer.update)(zeros, jax.jit(optimizer.init)(values), values)
    spared = {path for path in values if path.endswith(("scale_D", "_gate_D"))}
    assert {path.split("/")[0] for path in spared} == {"encoder", "connector", "language_model"}
    for path, update in updates.items():
        np.testing.assert_allclose(update, 0 if path in spared else -0.05, rtol=1e-6, err_msg=path)
