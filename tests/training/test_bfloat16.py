"""bfloat16 compute beside float32 on simulated users: the same curves, the same ranks; what is kept stays float32."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections.config_flags import config_path

from user_llm.evaluation.evaluator import rank_by_scores
from user_llm.evaluation.metrics import compare, ranking_metrics
from user_llm.evaluation.users import encoder_scores
from user_llm.experiment.experiment import Experiment
from user_llm.experiment.prepare import prepare
from user_llm.experiment.stages import STAGES
from user_llm.parallel.mesh import one_device
from user_llm.training.loop import fresh_state, make_train_step
from user_llm.training.optimizer import make_optimizer

SIZES = {
    "data.simulated.num_users": 300,
    "encoder.dropout": 0.0,
    "encoder.init": "random",  # each stage alone, from the seed's parameters
    "llm.num_layers": 1,
    "integration.every": 1,
    "integration.task_prompt": 3,
}
STEPS = {"llm": 16, "encoder": 80, "user_llm": 16}
RUNS = {
    "llm": ("llm", {}),
    "encoder": ("encoder", {}),
    "user_llm, cross-attention": ("user_llm", {"encoder.features": ("item",)}),
    "user_llm, soft prompt": ("user_llm", {"encoder.features": ("item",), "integration.kind": "soft_prompt"}),
}
# Of a loss, at every step: bfloat16 keeps 8 bits, so that a logit is off by 1/256 of itself, and losses are means.
TOLERANCE = 0.02


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bfloat16")


def experiment_of(folder, overrides, dtype) -> Experiment:
    spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parents[1] / "end_to_end" / "tiny.py")
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    config = tiny.get_config()
    run = {"compute.dtype": dtype, "data.data_dir": str(folder / "data")}
    for key, value in {**SIZES, **run, **overrides}.items():
        config_path.set_value(key, config, value)
    for name, steps in STEPS.items():
        config.training[name].update(steps=steps, learning_rate=1e-2, accumulate=1)
    experiment = Experiment(config, folder / "run", one_device())
    prepare(experiment)
    return experiment


def trained(experiment, name):
    """Losses of all steps, the model behind them, and the training state."""
    stage = STAGES[name]
    run = stage.training_run(experiment, stage.initial(experiment, {}))
    optimizer = make_optimizer(run.config, run.axes)
    state = {"parameters": run.model.parameters, **fresh_state(optimizer, run.model.parameters)}
    train_step, losses = make_train_step(run, optimizer, seed=0), []
    for step in range(run.config.steps):
        state, metrics = train_step(state, {}, run.model.buffers, run.batches.whole_batch(step))
        total, weight = metrics["loss"]
        losses.append(float(total / weight))
    assert int(state["first_bad_step"]) == -1
    return np.array(losses), run.model.with_parameters(state["parameters"]), state


@pytest.mark.parametrize("case", RUNS)
def test_training_in_bfloat16_follows_float32_and_keeps_float32(case, folder):
    name, overrides = RUNS[case]
    exact, exact_model, _ = trained(experiment_of(folder, overrides, "float32"), name)
    experiment = experiment_of(folder, overrides, "bfloat16")
    losses, model, state = trained(experiment, name)

    assert np.abs(losses / exact - 1).max() < TOLERANCE
    assert (losses != exact).any()  # it was computed in another dtype
    assert exact[0] - exact[-1] > 10 * np.abs(losses - exact).max()  # on the scale of what is learnt
    kept = jax.tree.leaves((state["parameters"], state["optimizer"]))
    assert {leaf.dtype for leaf in kept if jnp.issubdtype(leaf.dtype, jnp.floating)} == {jnp.dtype("float32")}
    assert sum(leaf.size for leaf in kept) > 3 * sum(leaf.size for leaf in model.parameters.values())  # both moments
    if name == "encoder":
        ranks, ranks_exact = (ranks_of(experiment, found) for found in (model, exact_model))
        assert np.mean(ranks_exact <= 10) > 0.3  # by chance 10 of 60
        for metric, interval in compare(ranking_metrics(ranks), ranking_metrics(ranks_exact)).items():
            # Of four metrics one may lie beside 0 by chance, but not by more than 2 of 100 users.
            assert interval["low"] <= 0.02, metric
            assert interval["high"] >= -0.02, metric
        assert np.median(np.abs(ranks - ranks_exact)) <= 1


def ranks_of(experiment, model):
    """Of every test user's label, by the encoder alone, in the dtype it computes in."""
    scores = encoder_scores(model)
    return rank_by_scores(scores, experiment.windows("test"), batch_size=100, exclude_seen=True)[0]
