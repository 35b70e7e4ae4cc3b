"""Gradients of microbatches, against their sum in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from user_llm.models import parameters
from user_llm.models.model import Model
from user_llm.parallel.mesh import one_device
from user_llm.schema import training
from user_llm.training import loop
from user_llm.training.trainable import EVERYTHING


class Weights(nnx.Module):
    def __init__(self):
        self.w_D = nnx.Param(jnp.zeros(4, jnp.bfloat16))


def objective(model, batch, key):
    """Linear: the gradient of a row is the row."""
    del key
    loss, weight = jnp.sum(batch["x"] * model.w_D[...]).astype(jnp.float32), jnp.float32(len(batch["x"]))
    return loss, weight, {"loss": (loss, weight)}


def test_bfloat16_gradients_of_many_microbatches_are_their_float32_sum():
    """In bfloat16 a sum of ones ends at 256."""
    rows = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1.5, (512, 4)), jnp.bfloat16)
    graphdef, values, buffers = parameters.split(Weights())
    model = Model(graphdef, values, buffers, one_device())
    run = loop.TrainingRun("sum", training(batch_size=512, accumulate=512), model, {}, EVERYTHING, objective, None)
    optimizer = optax.sgd(1.0)  # from zero, the parameters after a step are minus the gradient
    state = {"parameters": values, **loop.fresh_state(optimizer, values)}
    state, metrics = loop.make_train_step(run, optimizer, seed=0)(state, {}, buffers, {"x": rows})
    gradient = -state["parameters"]["w_D"]
    assert gradient.dtype == jnp.bfloat16
    assert all(value.dtype == jnp.float32 for value in jax.tree.leaves(metrics["loss"]))
    np.testing.assert_allclose(np.float32(gradient), np.float32(rows).mean(axis=0), rtol=2**-8)
