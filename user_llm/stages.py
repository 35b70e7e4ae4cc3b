"""The stages of an experiment, in the order they feed one another: LLM, encoder, contextualised LLM (paper 3)."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from user_llm.checkpoints import huggingface
from user_llm.checkpoints.adapters import load_adapters, save_adapters
from user_llm.checkpoints.manager import StageCheckpoints
from user_llm.checkpoints.transfer import initialise, with_prefix, without_prefix
from user_llm.config import STAGES, ConfigError, reads_pretrained_encoder, trains_categories
from user_llm.data.pipeline import TrainBatches
from user_llm.data.vocabularies import copy_vocabulary
from user_llm.evaluation.evaluator import Subset, encoder_scores, mean_metrics, rank_by_scores
from user_llm.evaluation.metrics import METRICS
from user_llm.experiment import Experiment
from user_llm.files import replacing
from user_llm.host import Host
from user_llm.models import parameters
from user_llm.models.parameters import Builder, Parameters
from user_llm.parallel.mesh import local_rows
from user_llm.parallel.processes import fetch, is_lead, wait_for_all
from user_llm.parameter_table import print_parameter_table
from user_llm.training.loop import Stage, train
from user_llm.training.objectives import (
    Objective,
    autoregressive_objective,
    contextualised_objective,
    dual_encoder_objective,
    masked_objective,
    text_objective,
)
from user_llm.training.trainable import EVERYTHING, STRATEGIES, Rules, trainable


@dataclasses.dataclass(frozen=True)
class Model:
    """A stage's model in parts (`models/parameters.py`), before or after its training, and which of it trains."""

    build: Builder
    rules: Rules
    graphdef: nnx.GraphDef
    parameters: Parameters
    buffers: Parameters


Models = dict[str, Model]


def run_stages(experiment: Experiment, host: Host) -> Models:
    """Trains, resumes or restores every stage the config names; returns their finished models.

    A language model trained here is left as a Hugging Face folder too (`<workdir>/llm/huggingface`), adapters as one
    of PEFT (`<workdir>/user_llm/adapters`), for other runs to name with `llm.checkpoint` and `lora.checkpoint`.
    """
    config = experiment.config
    finished = _borrowed(experiment)
    for name in stage_names(config):
        model = _initial(experiment, name, finished)
        stage = _stage(experiment, name, model)
        print_parameter_table(config, name, stage.parameters, stage.axes, stage.rules, experiment.mesh)
        values = train(stage, experiment.workdir / name, experiment.mesh, seed=config.seed, host=host)
        finished[name] = dataclasses.replace(model, parameters=values)
        _export(experiment, name, finished[name])
    return finished


def restore_stages(experiment: Experiment, names: Sequence[str] = STAGES) -> Models:
    """The models of a finished run, without its data, optimizer or metrics.

    Args:
      names: of the stages wanted, as far as the run has them.

    Raises:
      FileNotFoundError: a stage has no checkpoint, or none of its last step yet.
    """
    finished = _borrowed(experiment)
    for name in stage_names(experiment.config):
        if name not in names:
            continue
        folder, training = experiment.workdir / name, experiment.config.training[name]
        if not (folder / "checkpoints").is_dir():
            raise FileNotFoundError(f"{folder} has no checkpoints: this run is not finished; run its command again.")
        stored = StageCheckpoints(folder, keep_best=bool(training.keep_best), read_only=True)
        with contextlib.closing(stored) as checkpoints:
            if (step := checkpoints.latest_step() or 0) < training.steps:
                raise FileNotFoundError(
                    f"{folder} is at step {step} of {training.steps}: this run is not finished; run its command again."
                )
            model = _initial(experiment, name, finished)
            trains = trainable(model.parameters, model.rules)
            tuned = {path: value for path, value in model.parameters.items() if trains[path]}
            tuned = checkpoints.restore_parameters(checkpoints.best_step(), tuned)
        finished[name] = dataclasses.replace(model, parameters={**model.parameters, **tuned})
    return finished


def stage_names(config: ConfigDict) -> list[str]:
    """The stages that apply: what is pretrained elsewhere is not trained here."""
    elsewhere = {"llm": config.llm.checkpoint, "encoder": config.encoder.checkpoint}
    return [name for name in config.stages if not elsewhere.get(name)]


# An encoder of another run must have read the same data in the same shape.
_MUST_AGREE = (
    "data.dataset",
    "data.history_length",
    "encoder.kind",
    "encoder.features",
    "encoder.num_layers",
    "encoder.width",
    "encoder.num_heads",
    "encoder.hidden",
    "encoder.dual_encoder.num_outputs",
    "encoder.dual_encoder.fusion_layers",
    "compute.scan_layers",
)


def _borrowed(experiment: Experiment) -> Models:
    """The encoder of the finished run that `encoder.checkpoint` names, if it does.

    Raises:
      ConfigError: that run's encoder has another shape, other data, or has learnt from what we validate on.
    """
    config, workdir = experiment.config, Path(experiment.config.encoder.checkpoint)
    if not config.encoder.checkpoint or not reads_pretrained_encoder(config):
        return {}
    theirs = ConfigDict(json.loads((workdir / "config.json").read_text()))
    says = f"config.encoder.checkpoint={workdir}"

    def plain(value):
        return list(value) if isinstance(value, tuple) else value  # JSON knows no tuples

    for key in _MUST_AGREE:
        ours, other = plain(config_path.get_value(key, config)), plain(config_path.get_value(key, theirs))
        if ours != other:
            raise ConfigError(f"{says} was made with config.{key}={other!r}, this run has {ours!r}: they must agree")
    if "encoder" not in stage_names(theirs):
        raise ConfigError(f"{says} trained {', '.join(theirs.stages)}: name a run that has trained an encoder")
    if config.data.validation and not theirs.data.validation:
        raise ConfigError(f"{says} has learnt from the events this run validates on: set config.data.validation=false")
    fingerprint = json.loads((workdir / "environment.json").read_text())["dataset"]
    if fingerprint != experiment.facts["fingerprint"]:
        raise ConfigError(f"{says} was trained on other raw files (their content's hash differs)")
    return restore_stages(Experiment(theirs, workdir, experiment.mesh), ["encoder"])


def _export(experiment: Experiment, name: str, model: Model) -> None:
    """What a stage leaves for others to load: the language model trained here, or its adapters (PEFT's layout)."""
    folder = experiment.workdir / name
    if name == "llm" and not (folder / "huggingface").exists():
        trained = parameters.merge(model.graphdef, _on_hosts(model.parameters), _on_hosts(model.buffers))
        vocabulary = experiment.vocabulary
        if is_lead():
            with replacing(folder / "huggingface") as partial:
                huggingface.save_language_model(trained, partial, bos_id=vocabulary.bos_id, eos_id=vocabulary.eos_id)
                copy_vocabulary(vocabulary, partial)
    if name == "user_llm" and experiment.config.strategy == "lora" and not (folder / "adapters").exists():
        values = _on_hosts({path: model.parameters[path] for path in model.parameters if "/lora/" in path})
        if is_lead():
            with replacing(folder / "adapters") as partial:
                values = without_prefix("language_model", values)
                save_adapters(values, experiment.assembly.adapted_config, partial)
    wait_for_all(f"{name} is exported")


def _on_hosts(values: Parameters) -> Parameters:
    """Parameters that this process can read: what lies on devices of other processes too is fetched."""
    return {path: value if value.is_fully_addressable else fetch(value) for path, value in values.items()}


def _initial(experiment: Experiment, name: str, finished: Mapping[str, Model]) -> Model:
    """A stage's model before its first step: what earlier stages or a checkpoint give, the rest random."""
    config, assembly = experiment.config, experiment.assembly
    build: Builder = getattr(assembly, {"llm": "language_model"}.get(name, name))
    rules = STRATEGIES[config.strategy] if name == "user_llm" else EVERYTHING
    earlier, loaded = _pretrained(experiment, finished) if name == "user_llm" else ({}, {})
    graphdef, values, buffers = initialise(build, config.seed, experiment.mesh, earlier, loaded)
    trains, frozen_dtype = trainable(values, rules), jnp.dtype(config.compute.frozen_dtype)
    values = {path: value if trains[path] else value.astype(frozen_dtype) for path, value in values.items()}
    return Model(build, rules, graphdef, values, buffers)


def _pretrained(experiment: Experiment, finished: Mapping[str, Model]) -> tuple[Parameters, Parameters]:
    """What earlier stages have trained, and what is loaded for this one alone."""
    config, assembly = experiment.config, experiment.assembly
    earlier: Parameters = {}
    loaded: Parameters = {}
    if reads_pretrained_encoder(config):
        places = parameters.split(parameters.abstract(assembly.user_llm))[1]
        trained = with_prefix("encoder", finished["encoder"].parameters)
        earlier |= {path: value for path, value in trained.items() if path in places}  # its pretraining has more
    if config.llm.checkpoint:
        loaded |= huggingface.load_parameters(config.llm.checkpoint, assembly.language_model_config, experiment.mesh)
    elif "llm" in finished:
        earlier |= with_prefix("language_model", finished["llm"].parameters)
    if config.strategy == "lora" and config.lora.checkpoint:
        loaded |= load_adapters(config.lora.checkpoint, assembly.adapted_config)
    return earlier, with_prefix("language_model", loaded)


def _stage(experiment: Experiment, name: str, model: Model) -> Stage:
    """The training run of a model: its data, its objective, its validation."""
    config, training = experiment.config, experiment.config.training[name]
    objective = _objective(experiment, name)
    source = {
        "llm": lambda: experiment.text_source,
        "encoder": lambda: experiment.encoder_source("train"),
        "user_llm": lambda: experiment.source("train"),
    }[name]()
    return Stage(
        name=name,
        config=training,
        graphdef=model.graphdef,
        parameters=model.parameters,
        buffers=model.buffers,
        axes=parameters.logical_axes(parameters.abstract(model.build)),
        rules=model.rules,
        objective=objective,
        batches=TrainBatches(
            source, training.batch_size, config.seed, rows=local_rows(experiment.mesh, training.batch_size)
        ),
        evaluate=_validation(experiment, name, model, objective) if config.data.validation else None,
    )


def _objective(experiment: Experiment, name: str) -> Objective:
    encoder = experiment.config.encoder
    if name == "llm":
        return text_objective(encoder.chunk_rows)
    if name == "user_llm":
        return contextualised_objective(encoder.chunk_rows)
    if encoder.kind == "autoregressive":
        return autoregressive_objective(encoder.chunk_rows)
    if encoder.kind == "bert4rec":
        return masked_objective(encoder.chunk_rows, encoder.bert4rec.mask_rate)
    frequencies = experiment.item_counts if encoder.dual_encoder.sampling_correction else None
    return dual_encoder_objective(encoder.chunk_rows, frequencies)


def _validation(
    experiment: Experiment, name: str, model: Model, objective: Objective
) -> Callable[[Parameters], dict[str, float]]:
    """Metrics on the validation windows: the stage's own loss, and for the encoder how it ranks."""
    evaluation = experiment.config.evaluation
    source: Any = experiment.encoder_source("validation") if name == "encoder" else experiment.source("validation")
    source = Subset.evenly(source, evaluation.max_validation)
    losses = mean_metrics(objective, model.graphdef, model.buffers, source, evaluation.batch_size, experiment.mesh)
    if name != "encoder" or trains_categories(experiment.config):
        return losses
    scores = encoder_scores(model.graphdef, model.buffers, experiment.mesh)

    def rankings(values: Parameters) -> dict[str, float]:
        ranks, _ = rank_by_scores(
            lambda batch: scores(values, batch),
            source,
            batch_size=evaluation.batch_size,
            exclude_history=evaluation.exclude_history,
        )
        return {name: float(np.mean(metric(ranks))) for name, metric in METRICS.items()}

    return lambda values: {**rankings(values), **losses(values)}
