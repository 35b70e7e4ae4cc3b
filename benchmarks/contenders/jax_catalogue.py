"""Our encoder's training step over a large catalogue: which softmax, and how the table moves."""

import functools
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from benchmarks.contenders.jax_encoder import build_batch, build_encoder
from benchmarks.protocol import Unavailable, Work, available_bytes, serve
from benchmarks.workload import Workload
from user_llm.checkpoints.transfer import initialise
from user_llm.models import parameters
from user_llm.models.model import Model
from user_llm.parallel.mesh import one_device, put_whole
from user_llm.schema import get_config
from user_llm.training.loop import TrainingRun, fresh_state, make_train_step
from user_llm.training.negatives import Negatives
from user_llm.training.objectives import autoregressive_objective
from user_llm.training.optimizer import make_optimizer
from user_llm.training.trainable import EVERYTHING


def setup(options: dict[str, Any]) -> Work:
    """`softmax` and `tables` are values of the config's keys; `bytes` among the facts is XLA's count of the step."""
    workload, defaults = Workload(**options["workload"]), get_config()
    config, mesh = defaults.training.encoder, one_device()
    with config.unlocked():
        config.batch_size, config.tables = workload.batch_size, options["tables"]
    draw = None
    if options["softmax"] == "sampled":
        negatives = Negatives.by_popularity(np.arange(workload.num_items + 1) % 1000)
        draw = Partial(functools.partial(Negatives.draw, count=defaults.encoder.negatives), negatives)
    objective = put_whole(autoregressive_objective(defaults.encoder.chunk_rows, draw=draw), mesh)
    build = functools.partial(build_encoder, workload, "float32")
    abstract = parameters.abstract(build)
    axes, (graphdef, shapes, _) = parameters.logical_axes(abstract), parameters.split(abstract)
    run = TrainingRun("encoder", config, Model(graphdef, {}, {}, mesh), axes, EVERYTHING, objective, batches=None)
    optimizer = make_optimizer(config, axes)
    batch = jax.device_put(build_batch(workload.sequences()))
    planned = {"parameters": shapes, **jax.eval_shape(lambda values: fresh_state(optimizer, values), shapes)}
    program = make_train_step(run, optimizer, seed=0).lower(planned, {}, {}, batch, objective).compile()
    memory: Any = program.memory_analysis()
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes + made
    if 1.2 * needed > available_bytes():  # an allocator leaves gaps
        raise Unavailable(f"a step takes {needed / 1e9:.1f} GB, and {available_bytes() / 1e9:.1f} GB are free")
    _, tuned, buffers = initialise(build, 0, mesh)
    state = {"parameters": tuned, **fresh_state(optimizer, tuned)}
    del tuned  # a step gives its state away

    def step() -> float:
        nonlocal state
        state, metrics = program(state, {}, buffers, batch, objective)
        total, weight = metrics["loss"]
        return float(total / weight)

    return Work(step, {"bytes": needed})


if __name__ == "__main__":
    serve(setup, ("jax", "jaxlib", "flax", "optax"))
