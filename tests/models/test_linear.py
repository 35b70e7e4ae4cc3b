"""The linear map against NumPy's einsum and JAX's own gradient of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from user_llm.models.linear import linear

SHAPES = [
    ((3, 4, 5), (5, 6), 1, "abi,io->abo"),
    ((3, 4, 5), (5, 2, 3), 1, "abi,ino->abno"),
    ((3, 4, 2, 5), (2, 5, 6), 2, "abni,nio->abo"),
    ((5,), (5, 6), 1, "i,io->o"),
]


@pytest.mark.parametrize(("vectors", "weights", "inputs", "subscripts"), SHAPES)
def test_value_and_gradients_are_those_of_an_einsum(vectors, weights, inputs, subscripts):
    generator = np.random.default_rng(0)
    x, weight = (generator.normal(size=shape).astype(np.float32) for shape in (vectors, weights))
    np.testing.assert_allclose(linear(x, weight, inputs), np.einsum(subscripts, x, weight), rtol=1e-5, atol=1e-5)

    def gradients(function):
        return jax.grad(lambda x, weight: jnp.sum(jnp.sin(function(x, weight))), argnums=(0, 1))(x, weight)

    ours = gradients(lambda x, weight: linear(x, weight, inputs))
    for got, expected in zip(ours, gradients(lambda *pair: jnp.einsum(subscripts, *pair)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_no_gradient_is_turned():
    """What XLA would do to the activations for it takes a quarter of a training step on a CPU."""

    def program(function):
        gradient = jax.grad(lambda x, weight: jnp.sum(function(x, weight) ** 2), argnums=(0, 1))
        return str(jax.make_jaxpr(gradient)(jnp.ones((3, 4, 5)), jnp.ones((5, 6))))

    assert "transpose[" in program(lambda x, weight: x @ weight)  # the check sees
    assert "transpose[" not in program(linear)


def test_gradients_have_the_types_of_their_arguments():
    x, weight = jnp.ones((3, 4), jnp.bfloat16), jnp.ones((4, 2), jnp.bfloat16)
    gradients = jax.grad(lambda x, weight: jnp.sum(linear(x, weight)).astype(jnp.float32), argnums=(0, 1))(x, weight)
    assert [gradient.dtype for gradient in gradients] == [jnp.bfloat16, jnp.bfloat16]
