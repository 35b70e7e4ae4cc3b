"""A square matrix product by JAX, alone: the most that a training step could get out of the machine."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.protocol import serve


def setup(options: dict[str, Any]):
    shape = options["size"], options["size"]
    a, b = (jnp.asarray(np.random.default_rng(seed).standard_normal(shape), options["dtype"]) for seed in (0, 1))
    product = jax.jit(jnp.matmul)
    return lambda: float(product(a, b)[0, 0])


if __name__ == "__main__":
    serve(setup, ("jax", "jaxlib"))
