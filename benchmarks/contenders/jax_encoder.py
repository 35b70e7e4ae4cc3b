"""Our encoder's training step, as the training loop compiles it, with the chunked loss or dense logits.

In bfloat16 too, where parameters, gradients and the optimizer stay float32.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.flops import encoder_step
from benchmarks.protocol import Work, serve
from benchmarks.workload import Workload
from user_llm.models import parameters
from user_llm.models.autoregressive_encoder import AutoregressiveEncoder, EncoderConfig
from user_llm.models.model import Model
from user_llm.parallel.mesh import one_device
from user_llm.schema import training
from user_llm.training.loop import TrainingRun, make_train_step
from user_llm.training.objectives import autoregressive_objective, history, next_event
from user_llm.training.optimizer import make_optimizer


def dense_objective(model, batch, key):
    """What `autoregressive_objective` computes, from logits [B, S, I]."""
    embeddings = model(*history(batch), key=key)
    logits = model.item_logits(embeddings)
    targets = next_event(batch, "item")[..., None]
    losses = jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, targets, axis=-1)[..., 0]
    loss, weight = losses.sum(), jnp.float32(losses.size)
    return loss, weight, {"loss": (loss, weight)}


def build_encoder(workload: Workload, dtype: str = "float32", rngs: nnx.Rngs | None = None) -> AutoregressiveEncoder:
    config = EncoderConfig(
        max_length=workload.history_length,
        features=("item",),
        num_layers=workload.num_layers,
        width=workload.width,
        num_heads=workload.num_heads,
        hidden=workload.hidden,
        dtype=dtype,
    )
    no_categories = np.zeros((workload.num_items + 1, 1), np.int32)
    sizes = dict(item_categories=no_categories, num_categories=1, num_ratings=1)
    return AutoregressiveEncoder(config, **sizes, rngs=rngs or nnx.Rngs(0))


def build_batch(sequences: np.ndarray) -> dict[str, np.ndarray]:
    items, label = sequences[:, :-1], sequences[:, -1]
    return {
        "history/item": items,
        "history/rating": np.ones_like(items),
        "label/item": label,
        "label/rating": np.ones_like(label),
    }


def setup(options: dict[str, Any]):
    workload = Workload(**options["workload"])
    dtype = options.get("dtype", "float32")
    encoder = build_encoder(workload, dtype)
    graphdef, tuned, buffers = parameters.split(encoder)
    accumulate = workload.batch_size // options["microbatch"] if options["microbatch"] else 1
    config = training(batch_size=workload.batch_size, accumulate=accumulate, clip_norm=0.0)
    run = TrainingRun(
        name="encoder",
        config=config,
        model=Model(graphdef, tuned, buffers, one_device()),
        axes=parameters.logical_axes(encoder),
        rules=(),
        objective=autoregressive_objective(512) if options["loss"] == "chunked" else dense_objective,
        batches=None,
    )
    optimizer = make_optimizer(config, run.axes)
    train_step = make_train_step(run, optimizer, seed=0)
    state = {
        "parameters": tuned,
        "optimizer": optimizer.init(tuned),
        "step": jnp.zeros((), jnp.int32),
        "first_bad_step": jnp.full((), -1, jnp.int32),
    }
    batch = jax.device_put(build_batch(workload.sequences()))

    def step() -> float:
        nonlocal state
        state, metrics = train_step(state, {}, buffers, batch)
        total, weight = metrics["loss"]
        return float(total / weight)

    return Work(step, {"dtype": dtype, "flops": encoder_step(workload)})


if __name__ == "__main__":
    serve(setup, ("jax", "jaxlib", "flax", "optax"))
