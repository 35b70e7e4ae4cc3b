"""The loop against independent truths: an uninterrupted run, the whole batch at once, plain numpy."""

import functools
import hashlib
import json
import os
import re
import signal

import jax
import numpy as np
import optax
import pytest
from jax.tree_util import Partial
from ml_collections import ConfigDict

from user_llm.checkpoints.manager import StageCheckpoints
from user_llm.checkpoints.transfer import initialise
from user_llm.data.pipeline import TrainBatches
from user_llm.host import Host
from user_llm.models import parameters
from user_llm.models.autoregressive_encoder import AutoregressiveEncoder, EncoderConfig
from user_llm.models.model import Model
from user_llm.parallel.mesh import one_device, put_whole
from user_llm.schema import training
from user_llm.training import loop
from user_llm.training.negatives import Negatives
from user_llm.training.objectives import autoregressive_objective
from user_llm.training.trainable import EVERYTHING

ITEMS, RATINGS, CATEGORIES, S = 30, 5, 4, 6


class RandomWindows:
    """A source of made-up windows, with some padding on the left; window `bad` holds an item that does not exist."""

    def __init__(self, bad=None):
        generator = np.random.default_rng(0)
        self.item = generator.integers(1, ITEMS + 1, (64, S + 1)).astype(np.int32)
        self.rating = generator.integers(1, RATINGS + 1, (64, S + 1)).astype(np.int32)
        self.item[:8, :2] = self.rating[:8, :2] = 0
        if bad is not None:
            self.item[bad, 3] = 10_000  # the embedding answers NaN

    def __len__(self):
        return len(self.item)

    def gather(self, ids):
        return {
            "history/item": self.item[ids, :-1],
            "history/rating": self.rating[ids, :-1],
            "label/item": self.item[ids, -1],
            "label/rating": self.rating[ids, -1],
        }


def build(rngs, dropout=0.1):
    categories = np.arange(ITEMS + 1)[:, None] % (CATEGORIES + 1)
    config = EncoderConfig(max_length=S, num_layers=1, width=16, num_heads=2, hidden=32, dropout=dropout)
    return AutoregressiveEncoder(
        config, item_categories=categories, num_categories=CATEGORIES, num_ratings=RATINGS, rngs=rngs
    )


def make_stage(
    config: ConfigDict, *, rules=EVERYTHING, source=None, evaluate=None, dropout=0.1, **classes
) -> loop.TrainingRun:
    mesh = one_device()
    graphdef, values, buffers = initialise(functools.partial(build, dropout=dropout), 0, mesh)
    return loop.TrainingRun(
        name="encoder",
        config=config,
        model=Model(graphdef, values, buffers, mesh),
        axes=parameters.logical_axes(parameters.abstract(build)),
        rules=rules,
        objective=autoregressive_objective(chunk_rows=32, **classes),
        batches=TrainBatches(source or RandomWindows(), config.batch_size, seed=1),
        evaluate=evaluate,
    )


def run(stage, folder):
    return loop.train(stage, folder, seed=3, host=Host(tensorboard=False)).parameters


def digest(values):
    return {path: hashlib.sha256(np.asarray(value).tobytes()).hexdigest() for path, value in values.items()}


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


CONFIG = training(steps=12, batch_size=8, checkpoint_every=4, eval_every=4, log_every=2, warmup_fraction=0.2)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return digest(run(make_stage(CONFIG), folder)), rows(folder)


def test_training_lowers_the_loss(uninterrupted):
    losses = [row["loss"] for row in uninterrupted[1]]
    assert losses[-1] < losses[0]


class Died(Exception):
    pass


class DyingBatches(TrainBatches):
    def iterator(self, start_step=0, **_):
        for step in range(start_step, 10**9):
            if step == self.dies_at:
                raise Died
            yield self.batch(step)


def die(stage, folder, step):
    stage.batches.__class__ = DyingBatches
    stage.batches.dies_at = step
    with pytest.raises(Died):
        run(stage, folder)


def test_a_run_that_dies_and_resumes_ends_with_the_same_bits(uninterrupted, tmp_path):
    for dies_at in (7, 11):
        die(make_stage(CONFIG), tmp_path, dies_at)
    assert digest(run(make_stage(CONFIG), tmp_path)) == uninterrupted[0]
    assert [row["step"] for row in rows(tmp_path)] == [row["step"] for row in uninterrupted[1]]
    assert digest(run(make_stage(CONFIG), tmp_path)) == uninterrupted[0]  # finished: only restored


def test_negatives_and_moments_of_rows_are_the_same_after_a_resume(uninterrupted, tmp_path):
    draw = Partial(functools.partial(Negatives.draw, count=8), Negatives.by_popularity(np.arange(ITEMS + 1)))
    config = ConfigDict({**CONFIG, "tables": "rowwise"})
    expected = digest(run(make_stage(config, draw=draw), tmp_path / "at once"))
    die(make_stage(config, draw=draw), tmp_path / "resumed", 7)
    assert digest(run(make_stage(config, draw=draw), tmp_path / "resumed")) == expected
    assert expected != uninterrupted[0]


@pytest.mark.parametrize("sampled", [True, False])
def test_what_an_objective_has_for_each_item_is_no_constant_of_the_program(sampled):
    """The same step, to the bit, as one that was compiled for these numbers alone."""
    dropped = np.arange(ITEMS + 1) % 7 == 6
    draw = Partial(functools.partial(Negatives.draw, count=8), Negatives.by_popularity(np.arange(ITEMS + 1), dropped))
    stage = make_stage(CONFIG, **(dict(draw=draw) if sampled else dict(dropped=dropped)))
    size = int(ITEMS - dropped.sum()) if sampled else ITEMS + 1
    step = loop.make_train_step(stage, optax.sgd(1.0), seed=0)
    found, texts = [], []
    for objective in ((put_whole(stage.objective, stage.model.mesh),), ()):
        values = jax.tree.map(jax.numpy.copy, stage.model.parameters)
        state = {"parameters": values, **loop.fresh_state(optax.sgd(1.0), values)}
        lowered = step.lower(state, {}, stage.model.buffers, stage.batches.batch(0), *objective)
        texts.append(re.findall(rf'constant dense<["\[].*> : tensor<{size}x', lowered.as_text()))
        found.append(digest(step(state, {}, stage.model.buffers, stage.batches.batch(0), *objective)[0]["parameters"]))
    assert not texts[0]
    assert texts[1]  # the check sees
    assert found[0] == found[1]


def test_sigterm_saves_and_the_next_run_goes_on(uninterrupted, tmp_path):
    class Terminating(TrainBatches):
        def iterator(self, start_step=0, **_):
            for step in range(start_step, 10**9):
                if step == 5:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield self.batch(step)

    stage = make_stage(CONFIG)
    stage.batches.__class__ = Terminating
    with pytest.raises(loop.Preempted, match="saved at step"):
        run(stage, tmp_path)
    saved = StageCheckpoints(tmp_path, read_only=True).latest_step()
    assert 0 < saved < CONFIG.steps
    assert digest(run(make_stage(CONFIG), tmp_path)) == uninterrupted[0]


def test_accumulation_gives_the_gradient_of_the_whole_batch():
    def gradient_step(accumulate):
        config = training(batch_size=16, accumulate=accumulate)
        stage = make_stage(config, dropout=0.0)
        optimizer = optax.sgd(1.0)  # of rate 1: the change of the parameters is the gradient
        before = jax.tree.map(np.asarray, stage.model.parameters)
        state = {"parameters": stage.model.parameters, **loop.fresh_state(optimizer, stage.model.parameters)}
        after, metrics = loop.make_train_step(stage, optimizer, seed=0)(
            state, {}, stage.model.buffers, stage.batches.batch(0)
        )
        change = {path: before[path] - np.asarray(value) for path, value in after["parameters"].items()}
        return change, float(metrics["loss"][0] / metrics["loss"][1])

    (whole, loss), (parts, loss_of_parts) = gradient_step(1), gradient_step(4)
    np.testing.assert_allclose(loss_of_parts, loss, rtol=1e-5)
    for path in whole:
        np.testing.assert_allclose(parts[path], whole[path], rtol=1e-3, atol=1e-5, err_msg=path)


def test_frozen_parameters_keep_their_bits_and_trained_ones_move(tmp_path):
    rules = ((r"layers/.*", True), (r".*", False))
    stage = make_stage(training(steps=3, batch_size=8), rules=rules)
    before = digest(stage.model.parameters)
    after = digest(run(stage, tmp_path))
    for path in before:
        assert (before[path] != after[path]) == path.startswith("layers/"), path


def test_a_loss_that_is_no_number_stops_before_the_next_checkpoint(tmp_path):
    bad_window = 17
    config = training(steps=16, batch_size=8, checkpoint_every=4, eval_every=0, log_every=4)
    stage = make_stage(config, source=RandomWindows(bad=bad_window))
    bad_step = next(step for step in range(16) if bad_window in stage.batches.ids(step))
    with pytest.raises(loop.TrainingDiverged, match=f"step {bad_step} is not finite"):
        run(stage, tmp_path)
    kept = StageCheckpoints(tmp_path, read_only=True).latest_step()
    assert (kept or 0) <= bad_step
    batch = np.load(tmp_path / f"bad_batch_{bad_step}.npz")
    np.testing.assert_array_equal(batch["label/item"], stage.batches.batch(bad_step)["label/item"])


def test_sigterm_between_checkpoints_changes_neither_what_is_kept_nor_what_wins(tmp_path):
    """The signal comes while step 4 is evaluated, best of all, where an uninterrupted run keeps no checkpoint."""
    scores = {4: 0.9, 8: 0.2, 12: 0.1, 16: 0.3}
    config = training(steps=16, batch_size=8, checkpoint_every=8, eval_every=4, keep_best="recall@10")

    def runs(folder, terminate_at=None):
        evaluated = []

        def evaluate(_):
            evaluated.append(4 * (len(evaluated) + 1))
            if evaluated[-1] == terminate_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return {"recall@10": scores[evaluated[-1]]}

        if terminate_at:
            with pytest.raises(loop.Preempted, match="saved at step 5"):
                run(make_stage(config, evaluate=evaluate), folder)
            assert StageCheckpoints(folder, read_only=True).latest_step() == 5
        return digest(run(make_stage(config, evaluate=evaluate), folder))

    assert runs(tmp_path / "terminated", terminate_at=4) == runs(tmp_path / "whole")


def test_the_best_checkpoint_is_the_one_returned(tmp_path):
    scores = {4: 0.1, 8: 0.9, 12: 0.3}
    seen = {}

    def evaluate(model):
        step = 4 * (len(seen) + 1)
        seen[step] = digest(model.parameters)
        return {"recall@10": scores[step]}

    config = training(steps=12, batch_size=8, checkpoint_every=4, eval_every=4, keep_best="recall@10", keep_last=1)
    final = digest(run(make_stage(config, evaluate=evaluate), tmp_path))
    assert final == seen[8] != seen[12]
    assert digest(run(make_stage(config, evaluate=evaluate), tmp_path)) == seen[8]
    assert [row["recall@10"] for row in rows(tmp_path) if row["kind"] == "validation"] == [0.1, 0.9, 0.3]
