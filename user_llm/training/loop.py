"""The training loop of every stage. Read it top to bottom: it stands in the order things happen.

The loop knows no model by name: a `TrainingRun` brings parameters, an objective, batches and an evaluation.
The host never waits for the newest step: it dispatches a few ahead, and fetches metrics when it writes them.
"""

import collections
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from user_llm.checkpoints.damage import put_aside_damaged
from user_llm.checkpoints.manager import StageCheckpoints
from user_llm.errors import UserError
from user_llm.host import Host
from user_llm.models import parameters
from user_llm.models.model import Model
from user_llm.models.parameters import Parameters
from user_llm.parallel.mesh import put_batch
from user_llm.parallel.processes import Interrupt, Preempted, is_lead, lead_says
from user_llm.training.lazy import MetRows, met_rows
from user_llm.training.metric_writer import MetricWriter
from user_llm.training.objectives import Objective
from user_llm.training.optimizer import Pace, learning_rate_schedule, make_optimizer
from user_llm.training.progress import Progress
from user_llm.training.trainable import Rules, trainable

_logger = logging.getLogger(__name__)

_DISPATCH_AHEAD = 8  # steps; bounds memory


class TrainingDiverged(UserError, RuntimeError):
    """The loss or the gradient stopped being a number."""


class Batches(Protocol):
    """A stream of batches that is a function of the step (`data.pipeline.TrainBatches`)."""

    def iterator(self, start_step: int = 0, *, threads: int, prefetch: int) -> Iterator[dict[str, np.ndarray]]:
        """This process' rows of the batches from `start_step` on."""
        ...

    def whole_batch(self, step: int) -> dict[str, np.ndarray]:
        """All rows of the batch at a step."""
        ...


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """What is trained on what.

    Attributes:
      name: folder under the workdir, and the name in logs.
      config: `config.training.<name>`.
      model: before its first step, on the mesh.
      axes: path → the logical axes of a parameter (`parameters.logical_axes`).
      rules: which parameters train.
      objective: see `training/objectives.py`; what arrays it holds, on the mesh.
      batches: see `Batches`.
      evaluate: model → metrics on the validation windows, or None.
      paces: see `make_optimizer`.
    """

    name: str
    config: ConfigDict
    model: Model
    axes: Mapping[str, tuple[str | None, ...]]
    rules: Rules
    objective: Objective
    batches: Batches
    evaluate: Callable[[Model], dict[str, float]] | None = None
    paces: Mapping[str, Pace] | None = None


def train(run: TrainingRun, folder: Path, *, seed: int, host: Host) -> Model:
    """Trains `run`, or what is left of it, and returns the model with the best kept parameters, or the last.

    Args:
      folder: `<workdir>/<stage>`: checkpoints, metrics and events go there. A finished stage is only restored.
      seed: of dropout; the data's order has its own in `run.batches`.
      host: reading ahead and logging.

    Raises:
      TrainingDiverged: with the step and the batch; the last good checkpoint stays the newest.
      Preempted: after SIGTERM, once the state is saved.
    """
    config, mesh = run.config, run.model.mesh
    trains = trainable(run.model.parameters, run.rules)
    tuned = {path: value for path, value in run.model.parameters.items() if trains[path]}
    frozen = {path: value for path, value in run.model.parameters.items() if not trains[path]}
    optimizer = make_optimizer(config, {path: run.axes[path] for path in tuned}, run.paces)
    state = replicate_scalars({"parameters": tuned, **fresh_state(optimizer, tuned)}, mesh)
    lead_says(lambda: put_aside_damaged(folder, config.steps))
    checkpoints = StageCheckpoints(folder, keep_last=config.keep_last, keep_best=bool(config.keep_best))
    step, seconds = 0, 0.0
    if (latest := checkpoints.latest_step()) is not None:
        state, note = checkpoints.restore(latest, state)
        step, seconds = note["step"], note["seconds"]
        _logger.info("%s: restored step %d of %d", run.name, step, config.steps)

    if step < config.steps:
        train_step = make_train_step(run, optimizer, seed)
        writer = MetricWriter(folder, restored_step=step, tensorboard=host.tensorboard)
        learning_rate = learning_rate_schedule(config)
        reader = run.batches.iterator(step, threads=host.reader_threads, prefetch=host.prefetch_batches)
        batches = _on_device(reader, mesh)
        pending: collections.deque = collections.deque()  # metrics of steps not yet written
        # Virtual CPU devices share few threads: collectives of two steps at once wait for one another for ever.
        ahead = 1 if mesh.size > 1 and jax.default_backend() == "cpu" else _DISPATCH_AHEAD
        clock = time.perf_counter() - seconds
        with Interrupt() as interrupt, Progress(run.name, step, config.steps, config.batch_size) as progress:
            while True:
                done = step == config.steps
                stop = interrupt.received()  # once: a signal that comes later is handled after the next step
                checkpoint = done or _multiple(step, config.checkpoint_every)
                logs, evaluates = _multiple(step, config.log_every), _multiple(step, config.eval_every)
                if pending and (checkpoint or stop or logs or evaluates):
                    values, bad_step = _fetch(pending)
                    if bad_step >= 0:
                        raise _diverged(run, folder, bad_step, checkpoints)
                    progress.show(step, values["loss"])
                    seconds = time.perf_counter() - clock  # over all starts of this stage
                    rate = float(learning_rate(step - 1))
                    writer.write(step, "train", {**values, "learning_rate": rate, "seconds": seconds})
                metric = None
                evaluates = evaluates or (done and config.eval_every)
                if run.evaluate and evaluates and not writer.restored(step):
                    measured = run.evaluate(run.model.with_parameters({**state["parameters"], **frozen}))
                    writer.write(step, "validation", measured)
                    progress.show(step, validation=measured)
                    # A step saved only because of a signal must not win: the uninterrupted run has none there.
                    metric = _to_maximise(config.keep_best, measured) if checkpoint else None
                if (checkpoint or stop) and checkpoints.latest_step() != step:
                    note = {"step": step, "seconds": time.perf_counter() - clock}
                    checkpoints.save(step, state, note, metric)
                if done:
                    break
                if stop:
                    checkpoints.close()
                    writer.close()
                    raise Preempted(f"Stage {run.name} is saved at step {step}; the same command resumes there.")
                state, metrics = train_step(state, frozen, run.model.buffers, next(batches), run.objective)
                step += 1
                pending.append(metrics)
                if len(pending) >= ahead:
                    jax.block_until_ready(pending[-ahead])
                progress.advance(step)
        writer.close()

    best = checkpoints.best_step()
    if best is not None and best != step:
        state, _ = checkpoints.restore(best, state)
        _logger.info("%s: uses step %d, the best by %s", run.name, best, config.keep_best)
    checkpoints.close()
    return run.model.with_parameters(
        {path: state["parameters"].get(path, frozen.get(path)) for path in run.model.parameters}
    )


def make_train_step(run: TrainingRun, optimizer: optax.GradientTransformation, seed: int):
    """Compiles `(state, frozen, buffers, batch) -> (state, metrics)`; the state's buffers are reused.

    Given the run's objective as a last argument, the program has no constants of the arrays in it.
    Of tables that are moved lazily (`training/lazy.py`), gradients and updates are of the rows that the step meets.
    """
    accumulate = run.config.accumulate

    def loss(tuned: Parameters, met: MetRows, frozen: Parameters, buffers: Parameters, batch, key, objective):
        model = parameters.merge(run.model.graphdef, {**met.stand_in(tuned), **frozen}, buffers)
        total, weight, metrics = objective(model, batch, key)
        return total, (weight, metrics)

    gradients = jax.value_and_grad(loss, has_aux=True)

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state, frozen, buffers, batch, objective=run.objective):
        key = jax.random.fold_in(jax.random.key(seed), state["step"])
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(accumulate))  # of microbatches
        whole = state["parameters"], state["optimizer"]
        met = met_rows(run.config, run.axes, whole[0], objective, batch, keys, run.model.mesh)
        tuned, moments = met.take(whole)

        def microbatch(rows, own):
            (_, (weight, metrics)), grads = gradients(tuned, met, frozen, buffers, rows, own, objective)
            return grads, weight, metrics

        if accumulate == 1:
            grads, weight, metrics = microbatch(batch, keys[0])
        else:
            # Microbatch i takes rows i, i + accumulate, …: every device keeps its share of each.
            rows = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
            # Added in float32, whatever they are: a bfloat16 sum soon is too large for the next part to change it.
            shapes = jax.eval_shape(microbatch, jax.tree.map(lambda x: x[0], rows), keys[0])
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), shapes)

            def add(total, part):
                return jax.tree.map(jnp.add, total, microbatch(*part)), None

            sums, _ = jax.lax.scan(add, zeros, (rows, keys))
            grads, weight, metrics = jax.tree.map(lambda total, x: total.astype(x.dtype), sums, shapes)

        grads = jax.tree.map(lambda g: g / jnp.maximum(weight, 1e-9).astype(g.dtype), grads)
        norm = optax.tree.norm(grads)
        updates, moments = optimizer.update(grads, moments, tuned)
        bad = ~(jnp.isfinite(norm) & jnp.isfinite(metrics["loss"][0]))
        first_bad = jnp.where((state["first_bad_step"] < 0) & bad, state["step"], state["first_bad_step"])
        values, moments = met.put(whole, (optax.apply_updates(tuned, updates), moments))
        new_state = {
            "parameters": values,
            "optimizer": moments,
            "step": state["step"] + 1,
            "first_bad_step": first_bad,
        }
        return new_state, {**metrics, "gradient_norm": (norm, jnp.ones(())), "first_bad_step": first_bad}

    return train_step


def fresh_state(optimizer: optax.GradientTransformation, tuned: Parameters) -> dict[str, Any]:
    """What a training state holds besides its parameters, before the first step."""
    return {
        "optimizer": optimizer.init(tuned),
        "step": jnp.zeros((), jnp.int32),
        "first_bad_step": jnp.full((), -1, jnp.int32),
    }


def replicate_scalars(state, mesh: Mesh):
    """Puts what has no place on the mesh yet (step counters) on all of it; the rest follows its parameter."""
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: x if isinstance(x.sharding, NamedSharding) else jax.device_put(x, whole), state)


def _on_device(
    batches: Iterable[Mapping[str, np.ndarray]], mesh: Mesh, ahead: int = 2
) -> Iterator[dict[str, jax.Array]]:
    """Starts copying a batch to the devices `ahead` steps before it is used."""
    waiting: collections.deque = collections.deque()
    for batch in batches:
        waiting.append(put_batch(batch, mesh))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


def _fetch(pending: collections.deque) -> tuple[dict[str, float], int]:
    """Means over the steps since the last call, which it waits for, and the first bad step; empties `pending`."""
    rows = jax.device_get(list(pending))
    pending.clear()
    bad_step = [int(row.pop("first_bad_step")) for row in rows][-1]
    nothing = np.float32(0), np.float32(0)  # a step may have more metrics than another
    means = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        totals, weights = zip(*(row.get(name, nothing) for row in rows), strict=True)
        means[name] = float(sum(totals) / max(sum(weights), 1e-9))
    return means, bad_step


def _multiple(step: int, every: int) -> bool:
    return bool(every) and step > 0 and step % every == 0


def _to_maximise(name: str, measured: Mapping[str, float]) -> float | None:
    if not name:
        return None
    if not np.isfinite(measured[name]):
        raise TrainingDiverged(f"The validation metric {name} is {measured[name]}: it can choose no checkpoint.")
    return -measured[name] if name.startswith("loss") else measured[name]


def _diverged(run: TrainingRun, folder: Path, step: int, checkpoints: StageCheckpoints) -> TrainingDiverged:
    newest = checkpoints.latest_step()
    checkpoints.close()
    path = folder / f"bad_batch_{step}.npz"
    if is_lead():
        batch: dict[str, Any] = {**run.batches.whole_batch(step)}  # savez has a bool among its named arguments
        np.savez(path, **batch)
    return TrainingDiverged(
        f"Stage {run.name}: the loss or gradient of step {step} is not finite. Its batch is in {path}; the newest "
        f"checkpoint is {'not there yet' if newest is None else f'step {newest}, before it'}. "
        f"Lower config.training.{run.name}.learning_rate "
        "or set clip_norm, or look for odd values in the batch."
    )
