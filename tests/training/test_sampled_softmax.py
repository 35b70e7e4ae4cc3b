"""The sampled softmax against the full one, a naive loop, and expectations over draws; its step knows no catalogue."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from user_llm.encoders import ENCODERS
from user_llm.models import parameters
from user_llm.models.autoregressive_encoder import AutoregressiveEncoder, EncoderConfig
from user_llm.models.bert4rec import Bert4Rec
from user_llm.parallel.mesh import BATCH, make_mesh
from user_llm.schema import get_config
from user_llm.training.cross_entropy import chunked_cross_entropy
from user_llm.training.negatives import Negatives
from user_llm.training.objectives import autoregressive_objective, masked_objective
from user_llm.training.sampled_softmax import sampled_cross_entropy

ITEMS, U = 11, 4
UNIFORM = np.full(ITEMS, -np.log(ITEMS), np.float32)


@pytest.fixture(scope="module")
def inputs():
    """hidden [3, 5, U], table [I + 1, U], targets and weights [3, 5], some of which are 0."""
    generator = np.random.default_rng(0)
    hidden, table = generator.normal(size=(3, 5, U)), generator.normal(size=(ITEMS + 1, U))
    targets = generator.integers(1, ITEMS + 1, (3, 5))
    weights = generator.uniform(0.5, 2.0, (3, 5)) * (generator.random((3, 5)) < 0.8)
    return *(jnp.asarray(x, jnp.float32) for x in (hidden, table)), jnp.asarray(targets), jnp.float32(weights)


def sampled(inputs, negatives, log_probabilities, chunk_rows=4):
    _, _, targets, weights = inputs

    def loss(hidden, table):
        rows = table[targets], table[negatives], targets, negatives, log_probabilities
        return sampled_cross_entropy(hidden, *rows, weights, chunk_rows=chunk_rows)[0]

    return loss


def full(inputs):
    _, _, targets, weights = inputs
    return lambda hidden, table: chunked_cross_entropy(hidden, table, targets, weights, first_class=1)[0]


@pytest.mark.parametrize("chunk_rows", [1, 4, 100])
def test_all_items_drawn_once_are_the_full_softmax(inputs, chunk_rows):
    negatives = jnp.asarray(np.random.default_rng(1).permutation(ITEMS) + 1)
    found, expected = (
        jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*inputs[:2])
        for loss in (sampled(inputs, negatives, UNIFORM, chunk_rows), full(inputs))
    )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    without = jax.jit(sampled(inputs, negatives, UNIFORM, chunk_rows))(*inputs[:2])
    np.testing.assert_allclose(without, expected[0], rtol=1e-5)


def test_the_loss_and_its_gradients_are_those_of_the_formula(inputs):
    """Negatives come several times, and some are the targets."""
    hidden, table, targets, weights = inputs
    negatives = np.array([3, 3, 7, 1, 9, 3, int(targets[0, 0])])
    log_probabilities = np.float32([-1.0, -1.0, -0.5, -3.0, -2.0, -1.0, -1.5])

    def formula(hidden, table):
        total = 0.0
        for place in np.ndindex(3, 5):
            h, target = hidden[place], int(targets[place])
            partition = jnp.exp(h @ table[target])
            for negative, log_probability in zip(negatives.tolist(), log_probabilities, strict=True):
                if negative != target:
                    partition += jnp.exp(h @ table[negative]) / (len(negatives) * np.exp(log_probability))
            total += weights[place] * (jnp.log(partition) - h @ table[target])
        return total

    expected = jax.value_and_grad(formula, argnums=(0, 1))(hidden, table)
    loss = sampled(inputs, jnp.asarray(negatives), log_probabilities)
    found = jax.value_and_grad(lambda *args: 3.0 * loss(*args), argnums=(0, 1))(hidden, table)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, 3 * other, rtol=1e-4, atol=1e-5)


def test_a_row_whose_negatives_are_all_its_target_has_no_loss(inputs):
    hidden, table, _, _ = inputs
    rows = table[jnp.array([5])], table[jnp.array([5, 5])], jnp.array([5]), jnp.array([5, 5]), jnp.zeros(2)
    loss = lambda h: sampled_cross_entropy(h, *rows, jnp.ones(1), chunk_rows=1)[0]  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(hidden[0, :1])
    assert float(value) == 0
    assert not np.any(gradient)


def test_gradients_are_the_full_ones_in_expectation(inputs):
    """Over 100 draws of 4,096 negatives, which are far from uniform, within standard errors."""
    hidden, table, _, _ = inputs
    counts = np.append(0, np.random.default_rng(3).permutation(10.0 ** np.linspace(0, 3, ITEMS)).astype(int))
    negatives = Negatives.by_popularity(counts)

    def drawn(key):
        return jax.grad(sampled(inputs, *negatives.draw(key, 4096), 100), argnums=(0, 1))(hidden, table)

    many = jax.jit(lambda keys: jax.lax.map(drawn, keys))(jax.random.split(jax.random.key(0), 100))
    expected = jax.grad(full(inputs), argnums=(0, 1))(hidden, table)
    for found, truth in zip(many, expected, strict=True):
        found, truth = np.asarray(found, np.float64), np.asarray(truth, np.float64)
        error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
        assert (np.abs(found.mean(axis=0) - truth) <= 4.5 * error + 1e-5).all()
        assert error.max() < 0.01 * np.abs(truth).max()  # else the line above says nothing


def test_over_a_mesh_it_is_that_of_one_device(inputs):
    negatives = jnp.array([3, 3, 7, 1, 9, 11])
    log_probabilities = UNIFORM[:6]
    hidden, table, targets, weights = inputs
    wide = [jnp.tile(x, (8, *(1,) * (x.ndim - 1))) for x in (hidden, targets, weights)]
    mesh = make_mesh(dict(data=2, fsdp=2, tensor=2))
    rows, cut = NamedSharding(mesh, BATCH), NamedSharding(mesh, PartitionSpec("tensor", "fsdp"))

    @jax.jit
    def gradients(hidden, table, targets, weights):
        loss = sampled((hidden, table, targets, weights), negatives, log_probabilities, 8)
        return jax.value_and_grad(loss, argnums=(0, 1))(hidden, table)

    expected = gradients(wide[0], table, *wide[1:])
    spread = [jax.device_put(x, rows) for x in wide]
    found = gradients(spread[0], jax.device_put(table, cut), *spread[1:])
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_encoder_kinds_draw_as_many_as_the_config_says_and_no_dropped_item():
    config = get_config().encoder
    counts, dropped = np.arange(21), np.arange(21) % 2 == 0
    for kind in ("autoregressive", "hstu", "bert4rec"):
        assert ENCODERS[kind].samples
        assert ENCODERS[kind].draw(config, lambda: counts, dropped) is None
    with config.unlocked():
        config.softmax, config.negatives = "sampled", 500
    items, log_probabilities = ENCODERS["autoregressive"].draw(config, lambda: counts, dropped)(jax.random.key(0))
    assert items.shape == log_probabilities.shape == (500,)
    assert set(items.tolist()) <= set(range(1, 21, 2))
    assert len(set(items.tolist())) > 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(chunk_rows=0), "chunk_rows must be at least 1"),
        (dict(targets=jnp.ones(3, int)), "must be one a row of hidden"),
        (dict(negatives=jnp.ones(3, int)), r"negatives \[K\], their rows \[K, 4\]"),
    ],
)
def test_shapes_that_do_not_fit_are_named(inputs, change, words):
    hidden, table, targets, weights = inputs
    given = dict(
        hidden=hidden,
        target_rows=table[targets],
        negative_rows=table[jnp.array([1, 2])],
        targets=targets,
        negatives=jnp.array([1, 2]),
        log_probabilities=jnp.zeros(2),
        weights=weights,
        chunk_rows=4,
    )
    with pytest.raises(ValueError, match=words):
        sampled_cross_entropy(**{**given, **change})


KINDS = {
    "autoregressive": (AutoregressiveEncoder, lambda draw: autoregressive_objective(5, None, draw)),
    "bert4rec": (Bert4Rec, lambda draw: masked_objective(5, 0.3, None, draw)),
}


def build(encoder, items=ITEMS):
    def of(rngs: nnx.Rngs):
        config = EncoderConfig(max_length=6, features=("item", "rating"), num_layers=1, width=8, num_heads=2, hidden=12)
        sizes = dict(item_categories=np.zeros((items + 1, 1), np.int32), num_categories=1, num_ratings=5)
        return encoder(config, **sizes, rngs=rngs)

    return of


@pytest.mark.parametrize("kind", KINDS)
def test_the_objectives_draw_from_their_key_and_without_one_always_the_same(kind, lively, batch):
    encoder, make = KINDS[kind]
    windows = {name: ids for name, ids in batch.items() if name.startswith(("history/", "label/"))}
    keys = []

    def draw(key):
        keys.append(jax.random.key_data(key))
        return jnp.arange(1, ITEMS + 1), UNIFORM

    model, drawn, whole = lively(build(encoder)), make(draw), make(None)
    found, expected = (objective(model, windows, None) for objective in (drawn, whole))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    for key in (None, jax.random.key(1), jax.random.key(1), jax.random.key(2)):
        drawn(model, windows, key)
    same = [np.array_equal(one, other) for one, other in itertools.pairwise(keys)]
    assert same == [True, False, True, False]


def shapes(jaxpr):
    """The primitive and the shapes of each operation of a program."""
    for equation in jaxpr.eqns:
        found = [variable.aval.shape for variable in (*equation.invars, *equation.outvars)]
        yield equation.primitive.name, found
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from shapes(inner)


def test_nothing_but_rows_of_the_table_is_read_or_written(batch):
    """In a step's gradient there is no product with the table, and no logits of all items."""
    items = 100_000
    graphdef, values, buffers = parameters.split(parameters.abstract(build(AutoregressiveEncoder, items)))
    windows = {name: ids for name, ids in batch.items() if name.startswith(("history/", "label/"))}
    negatives = Negatives.by_popularity(np.ones(items + 1, np.int64))

    def loss(values, buffers, draw):
        model = parameters.merge(graphdef, values, buffers)
        return autoregressive_objective(5, None, draw)(model, windows, jax.random.key(0))[0]

    def programs(draw):
        return list(shapes(jax.make_jaxpr(jax.grad(loss), static_argnums=2)(values, buffers, draw).jaxpr))

    def wide(name, found):
        return any(items + 1 in shape for shape in found) and name == "dot_general"

    assert any(wide(*operation) for operation in programs(None))
    # Zeros for the gradient, sums over what reads the table, and what calls other operations.
    harmless = {"gather", "scatter-add", "broadcast_in_dim", "add_any", "jit", "pjit", "custom_vjp_call"}
    for name, found in programs(lambda key: negatives.draw(key, 64)):
        if any(items + 1 in shape for shape in found):
            assert name in harmless, (name, found)
            assert all(shape == (items + 1, 8) for shape in found if items + 1 in shape), (name, found)
