"""Initial parameters: pretrained ones to the bit, random ones as a plain build draws and rounds them, on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from user_llm.checkpoints.transfer import initialise, with_prefix
from user_llm.models import parameters
from user_llm.models.autoregressive_encoder import AutoregressiveEncoder, EncoderConfig
from user_llm.parallel.mesh import make_mesh, one_device
from user_llm.parallel.rules import parameter_shardings

SEED = 5
CATEGORIES = np.arange(16)[:, None] % 4
TABLE, NORM = "embedding/item_VU", "final_norm/scale_D"


def build(rngs):
    config = EncoderConfig(max_length=6, num_layers=1, width=16, num_heads=2, hidden=32)
    return AutoregressiveEncoder(config, item_categories=CATEGORIES, num_categories=3, num_ratings=5, rngs=rngs)


@pytest.fixture(scope="module")
def plain():
    """(parameters, buffers) of the module as its constructor makes it."""
    return jax.device_get(jax.jit(lambda: parameters.split(build(nnx.Rngs(SEED)))[1:])())


@pytest.fixture(scope="module")
def pretrained():
    """Some of the parameters, from elsewhere."""
    generator = np.random.default_rng(0)
    return {
        TABLE: jnp.asarray(generator.normal(size=(16, 16)), jnp.float32),
        NORM: jnp.asarray(generator.normal(size=16), jnp.float32),
    }


MESHES = {"one": one_device, "eight": lambda: make_mesh({"data": 2, "fsdp": 2, "tensor": 2})}


@pytest.mark.parametrize("name", MESHES)
def test_pretrained_values_land_and_the_rest_is_a_plain_build(name, plain, pretrained):
    mesh = MESHES[name]()
    graphdef, values, buffers = initialise(build, SEED, mesh, pretrained)
    assert list(values) == list(plain[0])
    for path, value in values.items():
        # Of what eight devices draw, the programs of `conftest.py` round the last bit in their own way.
        tolerance = 3e-7 if name == "eight" and path not in pretrained else 0
        np.testing.assert_allclose(value, pretrained.get(path, plain[0][path]), rtol=tolerance, err_msg=path)
    assert not np.array_equal(plain[0][TABLE], pretrained[TABLE])
    np.testing.assert_array_equal(buffers["embedding/item_categories"], CATEGORIES)
    model = parameters.abstract(build)
    wanted = parameter_shardings(parameters.split(model)[1], parameters.logical_axes(model), mesh)
    assert {path: value.sharding for path, value in values.items()} == wanted
    merged = parameters.merge(graphdef, values, buffers)
    assert merged.embedding.item_VU.shape == (16, 16)


def test_another_seed_draws_other_values(plain):
    _, values, _ = initialise(build, SEED + 1, one_device())
    same = {path for path, value in values.items() if np.array_equal(value, plain[0][path])}
    assert same == {path for path in values if path.endswith(("scale_D", "projection_EU", "head_UU"))}  # identities


def test_a_pretrained_tensor_takes_the_models_dtype(pretrained):
    half = {TABLE: pretrained[TABLE].astype(jnp.bfloat16)}
    _, values, _ = initialise(build, SEED, one_device(), half)
    assert values[TABLE].dtype == jnp.float32
    np.testing.assert_array_equal(values[TABLE], half[TABLE].astype(jnp.float32))


@pytest.mark.parametrize("name", MESHES)
def test_the_callers_arrays_outlive_a_donation(name, pretrained):
    """Training donates its parameters; those of the stage before may be used again."""
    mesh = MESHES[name]()
    given = initialise(build, SEED, mesh, pretrained)[1]  # lie already where the copies will
    before = jax.tree.map(np.array, given)
    _, values, _ = initialise(build, SEED, mesh, given)
    jax.block_until_ready(jax.jit(lambda x: jax.tree.map(lambda v: v + 1, x), donate_argnums=0)(values))
    assert all(value.is_deleted() for value in values.values())
    for path, value in given.items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)


def test_a_tensor_without_a_place_is_named(pretrained):
    with pytest.raises(ValueError, match=r"encoder/final_norm/scale_D \(16,\) has no place in this model"):
        initialise(build, SEED, one_device(), with_prefix("encoder", {NORM: pretrained[NORM]}))


def test_a_tensor_of_another_shape_is_named(pretrained):
    with pytest.raises(ValueError, match=r"embedding/item_VU has shape \(15, 16\), the model expects \(16, 16\)"):
        initialise(build, SEED, one_device(), {TABLE: pretrained[TABLE][:15]})


def test_a_component_goes_under_its_name(pretrained):
    assert with_prefix("encoder", pretrained).keys() == {f"encoder/{TABLE}", f"encoder/{NORM}"}
    assert with_prefix("encoder", pretrained)[f"encoder/{TABLE}"] is pretrained[TABLE]
