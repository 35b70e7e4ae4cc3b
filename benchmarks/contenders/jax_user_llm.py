"""A training step of ours of a stage with a language model, or its beams, as a run computes them, of any config."""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.llm_workload import TASK, config_of, step_of
from benchmarks.protocol import Work, serve
from user_llm.evaluation.evaluator import Subset
from user_llm.experiment.experiment import Experiment
from user_llm.experiment.prepare import prepare
from user_llm.experiment.stages import STAGES
from user_llm.models.model import Model
from user_llm.parallel.mesh import one_device, put_batch
from user_llm.tasks import TASKS
from user_llm.training.loop import fresh_state, make_train_step, replicate_scalars
from user_llm.training.optimizer import make_optimizer
from user_llm.training.trainable import trainable

BEAMS = 10


def prepared(overrides: Mapping[str, Any], stage: str, workdir: Path) -> tuple[Experiment, Model]:
    """An experiment of the overrides, and the model that the stage starts with."""
    experiment = Experiment(config_of(overrides), workdir, one_device())
    prepare(experiment)
    return experiment, STAGES[stage].initial(experiment, {})


def training(experiment: Experiment, stage: str, model: Model, overrides: Mapping[str, Any]) -> Work:
    """A round is a step of the stage's training, the reading of its batch included; its value is the loss."""
    run = STAGES[stage].training_run(experiment, model)
    trains = trainable(model.parameters, run.rules)
    tuned = {path: value for path, value in model.parameters.items() if trains[path]}
    frozen = {path: value for path, value in model.parameters.items() if not trains[path]}
    optimizer = make_optimizer(run.config, {path: run.axes[path] for path in tuned})
    state = replicate_scalars({"parameters": tuned, **fresh_state(optimizer, tuned)}, model.mesh)
    train_step = make_train_step(run, optimizer, experiment.config.seed)
    reader = run.batches.iterator(threads=1, prefetch=2)

    def step() -> float:
        nonlocal state
        state, metrics = train_step(state, frozen, model.buffers, put_batch(next(reader), model.mesh))
        total, weight = metrics["loss"]
        return float(total / weight)

    table = next(value for path, value in model.parameters.items() if path.endswith("embedding_VD"))
    first_layer = overrides.get("integration.first_layer", 0)
    needed = step_of(
        experiment.config,
        dataclasses.asdict(experiment.assembly.language_model_config),
        run.batches.whole_batch(0),
        vocabulary=table.shape[0],  # a trimmed one has fewer rows
        first_layer=first_layer,
        stored=first_layer > 0 and overrides.get("integration.stored_gib") != 0,
    )
    facts = {"dtype": experiment.config.compute.dtype, "flops": needed.flops(), "examples": needed.batch_size}
    return Work(step, {**facts, "tokens": needed.tokens, "vocabulary": needed.vocabulary})


def searching(experiment: Experiment, model: Model, users: int) -> Work:
    """A round is a search for `users`; the facts have their titles. Its value is the mean score of the best."""
    batch = Subset.evenly(experiment.source(TASK, "test"), users).gather(np.arange(users))
    ask: Callable = TASKS[TASK].asker(experiment, with_open_gates(model), BEAMS)

    def search() -> float:
        return float(np.mean([answers[0].score for answers in ask(batch)]))

    return Work(search, {"titles": [[answer.text for answer in answers] for answers in ask(batch)]})


def with_open_gates(model: Model) -> Model:
    """The model with gates by chance: at zero, as they start, all users would be the same to it."""
    rng, values = np.random.default_rng(0), dict(model.parameters)
    for path in sorted(values):
        if path.endswith("gate_D") and path.startswith("connector/"):
            values[path] = jnp.asarray(0.1 * rng.standard_normal(values[path].shape), values[path].dtype)
    return model.with_parameters(values)


def setup(options: dict[str, Any]) -> Work:
    """`options`: overrides (of the config), stage, a folder for its workdir, users of a search (none: train)."""
    stage, overrides = options["stage"], options["overrides"]
    experiment, model = prepared(overrides, stage, Path(tempfile.mkdtemp(dir=options["folder"])))
    if users := options.get("users"):
        return searching(experiment, model, users)
    return training(experiment, stage, model, overrides)


if __name__ == "__main__":
    serve(setup, ("jax", "jaxlib", "flax", "optax"))
