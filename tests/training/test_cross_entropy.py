"""The chunked loss against the dense one, written out in float64: equal at awkward sizes, and never dense."""

import json
import math
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from user_llm.parallel.mesh import BATCH, make_mesh
from user_llm.training.cross_entropy import chunked_cross_entropy, logits_bytes, soft_cross_entropy
from user_llm.training.softmax_rows import RowChunks


def make_inputs(rows_shape, classes, width, *, dtype=jnp.float32, first_class=1, seed=0):
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.normal(size=(*rows_shape, width)), dtype)
    table = jnp.asarray(rng.normal(size=(classes, width)), dtype)
    targets = jnp.asarray(rng.integers(first_class, classes, rows_shape), jnp.int32)
    weights = jnp.asarray(rng.uniform(0.5, 2.0, rows_shape) * (rng.random(rows_shape) < 0.7), jnp.float32)
    return hidden, table, targets, weights


def dense_reference(hidden, table, targets, weights, first_class):
    """Loss sum and its gradients in float64: softmax minus one-hot, written out."""
    rows = np.asarray(hidden, np.float64).reshape(-1, hidden.shape[-1])
    table = np.asarray(table, np.float64)
    targets, weights = np.asarray(targets).reshape(-1), np.asarray(weights, np.float64).reshape(-1)
    logits = rows @ table.T
    logits[:, :first_class] = -np.inf
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities = exponentials / exponentials.sum(-1, keepdims=True)
    at = np.arange(len(rows)), targets
    losses = logits.max(-1) + np.log(exponentials.sum(-1)) - logits[at]
    d_logits = probabilities * weights[:, None]
    d_logits[at] -= weights
    return (weights * losses).sum(), (d_logits @ table).reshape(hidden.shape), d_logits.T @ rows


@pytest.mark.parametrize(
    ("rows_shape", "classes", "chunk_rows", "first_class"),
    [
        ((6, 25), 300, 64, 1),  # 150 rows, chunks of 50: divides after looking for a nearby number of chunks
        ((4, 19), 26_744, 32, 1),  # MovieLens-20M's catalogue; 76 rows, no multiple of 32
        ((97,), 301, 32, 0),  # a prime number of rows can only be padded
        ((3, 2, 5), 17, 512, 3),  # fewer rows than a chunk, three excluded classes
        ((7,), 11, 1, 1),  # chunks of one row
    ],
)
def test_equals_dense_loss_and_gradients(rows_shape, classes, chunk_rows, first_class):
    hidden, table, targets, weights = make_inputs(rows_shape, classes, 16, first_class=first_class)

    def loss(hidden, table):
        return chunked_cross_entropy(hidden, table, targets, weights, chunk_rows=chunk_rows, first_class=first_class)

    (loss_sum, weight_sum), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(hidden, table)
    expected, *expected_gradients = dense_reference(hidden, table, targets, weights, first_class)
    np.testing.assert_allclose(loss_sum, expected, rtol=1e-5)
    np.testing.assert_allclose(weight_sum, weights.sum(), rtol=1e-6)
    np.testing.assert_allclose(loss(hidden, table)[0], expected, rtol=1e-5)  # the road without gradients
    for got, want in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())


def test_cotangent_scales_both_gradients():
    hidden, table, targets, weights = make_inputs((40,), 50, 8)

    def mean(hidden, table):
        total, weight = chunked_cross_entropy(hidden, table, targets, weights, chunk_rows=16, first_class=1)
        return total / weight

    def dense(hidden, table):
        logits = (hidden @ table.T).at[:, 0].set(-jnp.inf)
        losses = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, targets[:, None], 1)[:, 0]
        return jnp.sum(weights * losses) / jnp.sum(weights)

    got = jax.grad(mean, argnums=(0, 1))(hidden, table)
    want = jax.grad(dense, argnums=(0, 1))(hidden, table)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("biased", [False, True])
def test_soft_cap_and_class_bias_equal_the_dense_loss(softcap, biased):
    """Logits well beyond the cap; classes from 20 on are dropped, and only rows of no weight are of such a class."""
    hidden, table, targets, weights = make_inputs((37,), 29, 8)
    bias = np.linspace(-3, 3, 29).astype(np.float32)
    bias[20:] = -np.inf
    targets = jnp.where(weights > 0, 1 + targets % 19, 20 + targets % 9)
    bias = jnp.asarray(bias) if biased else None

    def chunked(hidden, table):
        options = dict(chunk_rows=8, first_class=1, class_bias=bias, softcap=softcap)
        return chunked_cross_entropy(hidden, table, targets, weights, **options)[0]

    def dense(hidden, table):
        logits = hidden @ table.T
        logits = logits if softcap is None else softcap * jnp.tanh(logits / softcap)
        logits = (logits if bias is None else logits + bias).at[:, 0].set(-jnp.inf)
        chosen = jnp.take_along_axis(logits, targets[:, None], 1)[:, 0]
        return jnp.sum(weights * jnp.where(weights > 0, jax.nn.logsumexp(logits, -1) - chosen, 0))

    want, gradients = jax.value_and_grad(dense, argnums=(0, 1))(hidden, table)
    got, chunked_gradients = jax.value_and_grad(chunked, argnums=(0, 1))(hidden, table)
    assert float(got) == pytest.approx(float(want), rel=1e-5)
    assert float(chunked(hidden, table)) == pytest.approx(float(want), rel=1e-5)
    for a, b in zip(chunked_gradients, gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("first_class", [0, 1])
def test_rows_of_the_table_behind_the_classes_are_none(first_class, biased):
    hidden, table, targets, weights = make_inputs((6, 5), 40, 8, first_class=first_class)
    bias = jnp.where(jnp.arange(40) % 7 == 3, -jnp.inf, 0.0) if biased else None
    weights = weights if bias is None else weights * (bias[targets] == 0)

    def loss(hidden, table):
        options = dict(first_class=first_class, num_classes=40, class_bias=bias, chunk_rows=10)
        return chunked_cross_entropy(hidden, table, targets, weights, **options)[0]

    longer = jnp.concatenate([table, jnp.full((9, 8), 5.0)])
    found, (d_hidden, d_table) = jax.value_and_grad(loss, (0, 1))(hidden, longer)
    expected, (wanted_hidden, wanted_table) = jax.value_and_grad(loss, (0, 1))(hidden, table)
    np.testing.assert_allclose([found, loss(hidden, longer)], expected, rtol=1e-6)
    np.testing.assert_allclose(d_hidden, wanted_hidden, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(d_table[:40], wanted_table, rtol=1e-5, atol=1e-6)
    assert not d_table[40:].any()


def test_rows_that_are_left_out_may_name_any_class():
    hidden, table, targets, weights = make_inputs((12,), 30, 8)
    weights = jnp.where(jnp.arange(12) < 6, 1.0, 0.0)
    outside = jnp.where(jnp.arange(12) < 6, targets, jnp.array([-1, 30, 1000] * 4))
    loss = lambda h, t, y: chunked_cross_entropy(h, t, y, weights, chunk_rows=5, first_class=1)[0]  # noqa: E731
    found, expected = (jax.value_and_grad(loss, argnums=(0, 1))(hidden, table, ids) for ids in (outside, targets))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_zero_weights_and_large_logits_stay_finite():
    hidden, table, targets, _ = make_inputs((12,), 30, 8)
    hidden = hidden * 1e4
    loss = lambda h, w: chunked_cross_entropy(h, table, targets, w, chunk_rows=5, first_class=1)  # noqa: E731
    (loss_sum, weight_sum), gradient = jax.value_and_grad(loss, has_aux=True)(hidden, jnp.zeros(12))
    assert (float(loss_sum), float(weight_sum)) == (0.0, 0.0)
    assert not np.any(gradient)
    expected, expected_gradient, _ = dense_reference(hidden, table, targets, np.ones(12), 1)
    (loss_sum, _), gradient = jax.value_and_grad(loss, has_aux=True)(hidden, jnp.ones(12))
    np.testing.assert_allclose(loss_sum, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-4)


@pytest.mark.parametrize(("rows", "chunk_rows"), [(60, 10), (61, 10), (60, 60)])
@pytest.mark.parametrize("live", [0, 1, 20, 21, 60])
def test_only_chunks_with_a_weight_are_computed(rows, chunk_rows, live):
    """Wherever the rows are that have one."""
    hidden, table, targets, weights = make_inputs((rows,), 30, 8)
    weights = jnp.asarray(np.random.default_rng(live).permutation(np.arange(rows) < live) * np.linspace(1, 2, rows))
    chunks = RowChunks(weights, chunk_rows, classes=30)
    split = chunks.split(weights)
    assert int(chunks.used) == np.any(np.asarray(split) > 0, axis=1).sum() == -(-live // split.shape[1])
    np.testing.assert_array_equal(chunks.join(chunks.split(hidden)), hidden)
    expected, *expected_gradients = dense_reference(hidden, table, targets, weights, 1)
    loss = lambda h, t: chunked_cross_entropy(h, t, targets, weights, chunk_rows=chunk_rows, first_class=1)[0]  # noqa: E731
    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(hidden, table)
    for got, want in zip((value, *gradients), (expected, *expected_gradients), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())


def test_bfloat16_operands_keep_float32_sums():
    hidden, table, targets, weights = make_inputs((200,), 500, 16, dtype=jnp.bfloat16)
    expected, expected_hidden, expected_table = dense_reference(hidden, table, targets, weights, 1)
    for table_dtype in (jnp.bfloat16, jnp.float32):  # parameters may be kept wider than the arithmetic
        (loss_sum, _), (d_hidden, d_table) = jax.value_and_grad(
            lambda h, t: chunked_cross_entropy(h, t, targets, weights, chunk_rows=64, first_class=1),
            argnums=(0, 1),
            has_aux=True,
        )(hidden, table.astype(table_dtype))
        assert (loss_sum.dtype, d_hidden.dtype, d_table.dtype) == (jnp.float32, jnp.bfloat16, table_dtype)
        np.testing.assert_allclose(loss_sum, expected, rtol=1e-4)  # bf16 sums would be off by 1e-2
        np.testing.assert_allclose(np.float32(d_hidden), expected_hidden, atol=0.02 * expected_hidden.max())
        np.testing.assert_allclose(np.float32(d_table), expected_table, atol=0.02 * expected_table.max())


def sizes_in_compiled(function, *arguments):
    """Number of elements of every array the compiled program names, loops and fusions included."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return [math.prod(map(int, shape.split(","))) for shape in re.findall(r"\w\[(\d[\d,]*)\]", text)]


def test_logits_of_all_rows_never_exist():
    hidden, table, targets, weights = make_inputs((16, 40), 1000, 8)
    chunked = lambda h, t: chunked_cross_entropy(h, t, targets, weights, chunk_rows=64, first_class=1)[0]  # noqa: E731
    dense = lambda h, t: jnp.sum(weights * jax.nn.logsumexp(h @ t.T, -1))  # noqa: E731
    for transform in (lambda f: f, partial(jax.grad, argnums=(0, 1))):
        assert max(sizes_in_compiled(transform(chunked), hidden, table)) == 64 * 1000
    assert max(sizes_in_compiled(jax.grad(dense), hidden, table)) == 16 * 40 * 1000  # the check sees


def test_evaluation_computes_no_gradients():
    hidden, table, targets, weights = make_inputs((64,), 100, 8)
    loss = lambda h, t: chunked_cross_entropy(h, t, targets, weights, chunk_rows=16)[0]  # noqa: E731
    assert str(jax.make_jaxpr(loss)(hidden, table)).count("dot_general") == 1
    assert str(jax.make_jaxpr(jax.grad(loss))(hidden, table)).count("dot_general") == 3


MESH_PROGRAM = """
import json, sys
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from test_cross_entropy import chunked_cross_entropy, make_inputs, sizes_in_compiled

arguments = make_inputs((16, 60), 300, 8)
loss = lambda h, t, y, w: chunked_cross_entropy(h, t, y, w, chunk_rows=140, first_class=1)[0]
step = jax.value_and_grad(loss, argnums=(0, 1))
results = {}
for name, shape in {"one": (1, 1), "data": (8, 1), "both": (2, 4)}.items():
    devices = jax.devices()[: shape[0] * shape[1]]
    mesh = jax.make_mesh(shape, ("data", "tensor"), axis_types=(AxisType.Auto,) * 2, devices=devices)
    specs = P("data"), P("tensor"), P("data"), P("data")
    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arguments, specs)]
    value, gradients = jax.jit(step)(*placed)
    results[name] = {
        "loss": float(value),
        "gradients": [np.asarray(g).ravel().tolist() for g in gradients],
        "largest": max(sizes_in_compiled(step, *placed)),
    }
json.dump(results, sys.stdout)
"""


def test_sharded_batch_and_table_give_the_same_and_keep_chunks_sharded():
    """960 rows are 7 chunks of 138 with padding, which 8 devices would have to move; 8 of 120 are taken."""
    environment = dict(
        os.environ,
        JAX_PLATFORMS="cpu",
        XLA_FLAGS="--xla_force_host_platform_device_count=8",
        PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])]),
    )
    command = [sys.executable, "-c", MESH_PROGRAM]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    results = json.loads(process.stdout)
    one = results["one"]
    assert one["largest"] == 120 * 300
    assert logits_bytes(960, 300, chunk_rows=140) == 8 * 120 * 300  # logits and exponentials, of 4 bytes each
    for name, devices in (("data", 8), ("both", 8)):
        np.testing.assert_allclose(results[name]["loss"], one["loss"], rtol=1e-6)
        for got, want in zip(results[name]["gradients"], one["gradients"], strict=True):
            np.testing.assert_allclose(got, want, atol=1e-5)
        assert results[name]["largest"] == 120 * 300 // devices


def compiled_over(sizes, spec, *, rows, classes, width, chunk_rows):
    """The partitioned program of loss and gradients: [(shapes, operation, is it inside of a loop, its name)]."""
    mesh = make_mesh(sizes)
    batch, table = NamedSharding(mesh, BATCH), NamedSharding(mesh, spec)
    shape = lambda dims, cut, dtype="float32": jax.ShapeDtypeStruct(dims, dtype, sharding=cut)  # noqa: E731
    loss = partial(chunked_cross_entropy, chunk_rows=chunk_rows, first_class=1)
    run = jax.jit(
        jax.value_and_grad(lambda *args: loss(*args)[0], argnums=(0, 1)), out_shardings=(None, (batch, table))
    )
    arguments = shape((rows, width), batch), shape((classes, width), table), shape((rows,), batch, "int32")
    text = run.lower(*arguments, shape((rows,), batch)).compile().as_text()
    operations = []
    for line in text.splitlines():
        if found := re.search(r"= (.*?) ([a-z-]+?)(?:-start)?\(", line):
            name = re.search(r'op_name="([^"]*)"', line)
            name = name[1] if name else ""
            shapes = [tuple(map(int, dims.split(","))) for dims in re.findall(r"\[([\d,]+)\]", found[1])]
            operations.append((shapes, found[2], "while/body" in name, name))
    assert any(operation == "all-reduce" for _, operation, _, _ in operations)
    return operations


@pytest.mark.parametrize(
    ("sizes", "spec"),
    [
        (dict(data=2, fsdp=1, tensor=4), PartitionSpec("tensor")),
        (dict(data=2, fsdp=2, tensor=2), PartitionSpec("tensor", "fsdp")),
    ],
)
def test_classes_cut_over_the_mesh_stay_so_and_a_chunk_sends_rows_alone(sizes, spec):
    """No device holds all classes; in the loop over chunks maxima, sums and gradients of rows cross it, no table."""
    classes, width, chunk_rows = 4096, 48, 128
    operations = compiled_over(sizes, spec, rows=512, classes=classes, width=width, chunk_rows=chunk_rows)
    sent = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
    for shapes, operation, in_loop, name in operations:
        assert not any(classes in shape for shape in shapes), (shapes, name)
        if operation in sent and in_loop and "scatter" not in name:  # the targets' own part is added once
            assert not any(classes // sizes["tensor"] in shape for shape in shapes), (shapes, name)


def test_soft_cross_entropy_equals_dense_loss_and_gradients_in_bounded_memory():
    """Sets of none to four of 5,000 classes, as the categories of Google Local; the logits alone would be 13 MB."""
    rows_shape, classes, width, chunk_rows = (32, 20), 5_001, 8, 64
    hidden, table, _, weights = make_inputs(rows_shape, classes, width)
    rng = np.random.default_rng(1)
    sets = rng.integers(1, classes, (*rows_shape, 4)) * (np.arange(4) < rng.integers(0, 5, rows_shape)[..., None])
    sets = jnp.asarray(sets, jnp.int32)

    def loss(hidden, table):
        return soft_cross_entropy(hidden, table, sets, weights, chunk_rows=chunk_rows)

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)).lower(hidden, table).compile()
    (loss_sum, weight_sum), gradients = run(hidden, table)
    rows, tables = 4 * weights.size * width, 4 * table.size
    bound = logits_bytes(weights.size, classes, chunk_rows) + 4 * tables + 8 * rows
    assert bound < 4 * weights.size * classes / 3  # a third of the logits of all rows
    assert run.memory_analysis().temp_size_in_bytes <= bound

    # A row with a set of n is n rows of one target and the n-th part of the weight.
    expected, expected_gradients = 0.0, [np.zeros(hidden.shape), np.zeros(table.shape)]
    size = np.maximum((sets > 0).sum(-1), 1)
    for column in range(4):
        parts = np.where(sets[..., column] > 0, weights / size, 0)
        value, *more = dense_reference(hidden, table, np.maximum(sets[..., column], 1), parts, 1)
        expected += value
        expected_gradients = [total + part for total, part in zip(expected_gradients, more, strict=True)]
    np.testing.assert_allclose(loss_sum, expected, rtol=1e-5)
    known = np.asarray(sets > 0).any(-1)
    np.testing.assert_allclose(weight_sum, weights[known].sum(), rtol=1e-6)
    assert weight_sum < weights.sum()  # a row without a class does not count
    for got, want in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": jnp.zeros((5, 3))}, r"table must be \[V, 4\]"),
        ({"targets": jnp.zeros((3,), jnp.int32)}, r"targets must be one a row of hidden: \(2,\)"),
        ({"targets": jnp.zeros((2,))}, "integer class ids"),
        ({"weights": jnp.zeros((2, 1))}, r"weights must be one a row of hidden: \(2,\)"),
        ({"chunk_rows": 0}, "chunk_rows must be at least 1, got 0"),
        ({"first_class": 5}, "first_class must be a class, 0 to 4, got 5"),
        ({"first_class": 3, "num_classes": 3}, "first_class must be a class, 0 to 2, got 3"),
        ({"num_classes": 6}, "num_classes must be 1 to 5, the rows of the table, got 6"),
        ({"class_bias": jnp.zeros((4,))}, r"class_bias must be one a class: \(5,\), got \(4,\)"),
        ({"softcap": 0.0}, "softcap must be positive, got 0.0; None leaves"),
    ],
)
def test_misfitting_arguments_are_named(change, message):
    arguments = {
        "hidden": jnp.zeros((2, 4)),
        "table": jnp.zeros((5, 4)),
        "targets": jnp.zeros((2,), jnp.int32),
        "weights": jnp.zeros((2,)),
    }
    with pytest.raises(ValueError, match=message):
        chunked_cross_entropy(**{**arguments, **change})
