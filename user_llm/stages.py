"""The stages of an experiment, in the order they feed one another: LLM, encoder, contextualised LLM (paper 3)."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from user_llm.checkpoints import huggingface
from user_llm.checkpoints.transfer import initialise, with_prefix
from user_llm.data.pipeline import TrainBatches
from user_llm.evaluation.evaluator import Subset, encoder_scores, mean_metrics, rank_by_scores
from user_llm.evaluation.metrics import METRICS
from user_llm.experiment import Experiment
from user_llm.host import Host
from user_llm.models import parameters
from user_llm.models.parameters import Builder, Parameters
from user_llm.training.loop import Stage, train
from user_llm.training.objectives import (
    Objective,
    autoregressive_objective,
    contextualised_objective,
    text_objective,
)
from user_llm.training.trainable import EVERYTHING, STRATEGIES, Rules, trainable


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished stage's model, in parts (`models/parameters.py`)."""

    graphdef: nnx.GraphDef
    parameters: Parameters
    buffers: Parameters


Finished = Mapping[str, Trained]


def run_stages(experiment: Experiment, host: Host) -> dict[str, Trained]:
    """Trains, resumes or restores every stage the config names."""
    config = experiment.config
    trained: dict[str, Trained] = {}
    for name in config.stages:
        if name == "llm" and config.llm.checkpoint:
            continue  # there is one already
        stage = _STAGES[name](experiment, trained)
        values = train(stage, experiment.workdir / name, experiment.mesh, seed=config.seed, host=host)
        trained[name] = Trained(stage.graphdef, values, stage.buffers)
    return trained


def _llm_stage(experiment: Experiment, trained: Finished) -> Stage:
    """A small language model from scratch, so that "frozen LLM" means something without a download."""
    del trained
    return _stage(
        experiment,
        "llm",
        build=experiment.assembly.language_model,
        objective=text_objective(experiment.config.encoder.chunk_rows),
        source=experiment.text_source(),
        validation=experiment.source,
    )


def _encoder_stage(experiment: Experiment, trained: Finished) -> Stage:
    """The user encoder on next-event prediction (paper 3.1)."""
    del trained
    objective = autoregressive_objective(experiment.config.encoder.chunk_rows)
    stage = _stage(
        experiment,
        "encoder",
        build=experiment.assembly.encoder,
        objective=objective,
        source=experiment.windows("train"),
        validation=experiment.windows,
    )
    if stage.evaluate is None:
        return stage
    windows = _validation(experiment, experiment.windows)
    evaluation = experiment.config.evaluation

    def evaluate(values: Parameters) -> dict[str, float]:
        ranks = rank_by_scores(
            encoder_scores(stage.graphdef, values, stage.buffers, experiment.mesh),
            windows,
            batch_size=evaluation.batch_size,
            exclude_history=evaluation.exclude_history,
        )
        return {**{name: float(metric(ranks).mean()) for name, metric in METRICS.items()}, **stage.evaluate(values)}

    return dataclasses.replace(stage, evaluate=evaluate)


def _user_llm_stage(experiment: Experiment, trained: Finished) -> Stage:
    """The LLM contextualised with the encoder's embeddings (paper 3.2)."""
    config = experiment.config
    pretrained: Parameters = {}
    if "encoder" in trained and config.encoder.init == "pretrained":
        pretrained |= with_prefix("encoder", trained["encoder"].parameters)
    if "llm" in trained:
        pretrained |= with_prefix("language_model", trained["llm"].parameters)
    elif config.llm.checkpoint:
        pretrained |= with_prefix("language_model", _checkpoint_parameters(experiment))
    return _stage(
        experiment,
        "user_llm",
        build=experiment.assembly.user_llm,
        objective=contextualised_objective(config.encoder.chunk_rows),
        source=experiment.source("train"),
        validation=experiment.source,
        rules=STRATEGIES[config.strategy],
        pretrained=pretrained,
    )


_STAGES: Mapping[str, Callable[[Experiment, Finished], Stage]] = {
    "llm": _llm_stage,
    "encoder": _encoder_stage,
    "user_llm": _user_llm_stage,
}


def _checkpoint_parameters(experiment: Experiment) -> Parameters:
    compute = experiment.config.compute
    model = huggingface.load_language_model(
        Path(experiment.config.llm.checkpoint),
        dtype=compute.dtype,
        param_dtype=compute.param_dtype,
        scan_layers=compute.scan_layers,
        remat=compute.remat,
    )
    return parameters.split(model)[1]


def _stage(
    experiment: Experiment,
    name: str,
    *,
    build: Builder,
    objective: Objective,
    source: Any,
    validation: Callable[[str], Any],
    rules: Rules = EVERYTHING,
    pretrained: Parameters | None = None,
) -> Stage:
    config, mesh = experiment.config, experiment.mesh
    graphdef, values, buffers = initialise(build, config.seed, mesh, pretrained)
    trains = trainable(values, rules)
    frozen_dtype = jnp.dtype(config.compute.frozen_dtype)
    values = {path: value if trains[path] else value.astype(frozen_dtype) for path, value in values.items()}
    evaluate = None
    if config.data.validation and config.training[name].eval_every:
        held_out = _validation(experiment, validation)
        evaluate = mean_metrics(objective, graphdef, buffers, held_out, config.evaluation.batch_size, mesh)
    return Stage(
        name=name,
        config=config.training[name],
        graphdef=graphdef,
        parameters=values,
        buffers=buffers,
        axes=parameters.logical_axes(parameters.abstract(build)),
        rules=rules,
        objective=objective,
        batches=TrainBatches(source, config.training[name].batch_size, config.seed),
        evaluate=evaluate,
    )


def _validation(experiment: Experiment, make: Callable[[str], Any]) -> Subset:
    """The validation windows, or an even sample of them where there are many."""
    source = make("validation")
    most = experiment.config.evaluation.max_validation or len(source)
    return Subset(source, np.unique(np.linspace(0, len(source) - 1, min(most, len(source))).astype(np.int64)))
