"""Stage `encoder`: the user encoder's pretraining (paper 3.1), or a baseline of its own."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from ml_collections.config_flags import config_path

from user_llm.config import ConfigError, reads_pretrained_encoder
from user_llm.data.packing import packed
from user_llm.encoders import ENCODERS
from user_llm.evaluation.evaluator import mean_metrics, rank_by_scores
from user_llm.evaluation.metrics import METRICS
from user_llm.evaluation.users import encoder_scores
from user_llm.experiment import workdir as workdirs
from user_llm.experiment.experiment import Experiment
from user_llm.experiment.item_text import item_text
from user_llm.experiment.seal import check_kept
from user_llm.experiment.stages.base import Stage
from user_llm.models.model import Model
from user_llm.models.sharding import padded_rows
from user_llm.parallel.mesh import batch_shards
from user_llm.parallel.own_devices import on_own_devices
from user_llm.parallel.processes import several

# Config keys that name a run whose encoder is taken.
LENDERS = ("encoder.checkpoint", "evaluation.second_encoder")

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
    "encoder.time",
    "encoder.item_text",
    "encoder.dual_encoder.num_outputs",
    "encoder.dual_encoder.fusion_layers",
    "compute.scan_layers",
    "evaluation.cold_share",
)


class EncoderStage(Stage):
    """The encoder alone, whichever kind it is."""

    name = "encoder"
    held_at_once = (
        ("encoder.num_layers", "encoder.width", "encoder.width"),
        ("encoder.width", "encoder.hidden"),
        ("training.encoder.batch_size", "data.history_length", "encoder.width"),
    )
    metrics = ("loss", "recall@10", "ndcg@10")

    def is_elsewhere(self, config):
        """See `Stage`."""
        return bool(config.encoder.checkpoint)

    def builder(self, assembly):
        """See `Stage`."""
        return assembly.encoder

    def pretrained(self, experiment, finished):
        """See `Stage`: what a language model makes of the items' names, where the encoder reads it."""
        if not experiment.config.encoder.item_text:
            return {}, {}
        vectors = item_text(experiment, finished)
        behind = padded_rows(len(vectors)) - len(vectors)
        return {}, {"embedding/item_text_IE": jnp.asarray(np.pad(vectors, ((0, behind), (0, 0))))}

    def source(self, experiment, split):
        """See `Stage`."""
        return experiment.encoder_source(split)

    def objective(self, experiment):
        """See `Stage`."""
        config, cold = experiment.config.encoder, experiment.cold_items
        options = {} if cold is None else {"dropped": cold}
        return ENCODERS[config.kind].objective(config, lambda: experiment.label_counts, **options)

    def denser_batches(self, experiment, reader):
        """See `Stage`: short histories share rows. Of several processes none sees the whole batch."""
        config, batches = experiment.config, self.batches(experiment, reader)
        if several() or not ENCODERS[config.encoder.kind].packs:
            return batches
        return packed(batches, batch_shards(experiment.mesh) * config.training.encoder.accumulate)

    def positions(self, experiment, sizes):
        """See `Stage`."""
        return sum(sizes.values()) * experiment.config.data.history_length

    def softmax(self, assembly):
        """See `Stage`."""
        config, items = assembly.config, len(assembly.item_categories)
        if config.encoder.softmax == "sampled":
            items = config.encoder.negatives
        return config.data.history_length, max(items, assembly.num_categories + 1)

    def rows_read(self, config):
        """See `Stage`: of histories, labels and negatives."""
        if config.encoder.softmax == "full":
            return None
        training = config.training.encoder
        events = training.batch_size * (config.data.history_length + 1)
        return events + training.accumulate * config.encoder.negatives

    def validation(self, experiment, objective, reader):
        """The loss, and for an encoder of items how it ranks them."""
        config, source = experiment.config, self.validation_source(experiment, reader)
        options = dict(
            batch_size=config.evaluation.batch_size,
            mesh=experiment.mesh,
            exclude_seen=config.evaluation.exclude != "nothing",
        )
        losses = mean_metrics(objective, source, config.evaluation.batch_size)
        if ENCODERS[config.encoder.kind].ranks(config.encoder) != "item":
            return losses

        def evaluate(model):
            ranks, _ = rank_by_scores(encoder_scores(on_own_devices(model)), source, **options)
            rankings = {name: float(np.mean(metric(ranks))) for name, metric in METRICS.items()}
            return {**rankings, **losses(model)}

        return evaluate

    def problems(self, config):
        """See `Stage`."""
        if config.encoder.item_text and not config.llm.checkpoint and "llm" not in config.stages:
            yield (
                "config.encoder.item_text=True reads the items' names with a language model: name one with "
                "--config.llm.checkpoint=FOLDER, or add 'llm' to config.stages"
            )

    def borrowed(self, experiment):
        """The encoder of the finished run that `encoder.checkpoint` names, if it does.

        Raises:
          ConfigError: that run's encoder has another shape, other data, or has learnt from what we validate on.
        """
        return _encoder_of(lender_of(experiment, "encoder.checkpoint"))


def second_encoder(experiment: Experiment) -> Model | None:
    """The encoder of the run that `evaluation.second_encoder` names, if it does. Raises as `EncoderStage.borrowed`."""
    return _encoder_of(lender_of(experiment, "evaluation.second_encoder"))


def _encoder_of(lender: Experiment | None) -> Model | None:
    return None if lender is None else EncoderStage().restore(lender, {})


def lender_of(experiment: Experiment, key: str) -> Experiment | None:
    """The finished run whose encoder the config takes by `key`, one of `LENDERS`, if it does.

    Raises:
      ConfigError: that run's encoder has another shape, other data, or has learnt from what we validate on.
    """
    config, named = experiment.config, config_path.get_value(key, experiment.config)
    if not named or not reads_pretrained_encoder(config):
        return None
    workdir = Path(named)
    theirs = workdirs.read_config(workdir)
    check_kept(workdir)
    says = f"config.{key}={workdir}"

    def plain(value):
        return list(value) if isinstance(value, tuple) else value  # JSON knows no tuples

    for shared in _MUST_AGREE:
        ours, other = plain(config_path.get_value(shared, config)), plain(config_path.get_value(shared, theirs))
        if ours != other:
            raise ConfigError(f"{says} was made with config.{shared}={other!r}, this run has {ours!r}: they must agree")
    if EncoderStage.name not in theirs.stages or theirs.encoder.checkpoint:
        raise ConfigError(f"{says} trained {', '.join(theirs.stages)}: name a run that has trained an encoder")
    if config.data.validation and not theirs.data.validation:
        raise ConfigError(f"{says} has learnt from the events this run validates on: set config.data.validation=false")
    if workdirs.fingerprint(workdir) != experiment.fingerprint:
        raise ConfigError(f"{says} was trained on other raw files (their content's hash differs)")
    return Experiment(theirs, workdir, experiment.mesh)
