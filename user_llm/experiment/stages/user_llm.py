"""Stage `user_llm`: the language model learns to read the user (paper 3.2)."""

import functools
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from user_llm.checkpoints import huggingface
from user_llm.checkpoints.adapters import load_adapters, save_adapters
from user_llm.checkpoints.transfer import with_prefix, without_prefix
from user_llm.config import ConfigError, reads_pretrained_encoder, says, task_names, task_rates, whole_titles
from user_llm.data.answers import Answers
from user_llm.data.pipeline import TrainBatches
from user_llm.data.prompts import Prompts
from user_llm.data.sources import UserLLMSource
from user_llm.data.spelling import OneAfterTheOther, Spelling
from user_llm.data.targets import SeveralTargets
from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.decoding.prior import MOST_DENSE
from user_llm.encoders import ENCODERS
from user_llm.evaluation.evaluator import Subset, mean_metrics
from user_llm.experiment.experiment import Experiment
from user_llm.experiment.stages.base import Stage, on_hosts
from user_llm.experiment.text_states import make_states, with_states
from user_llm.files import replacing
from user_llm.models import parameters
from user_llm.models.parameters import Parameters
from user_llm.parallel.mesh import local_rows
from user_llm.parallel.processes import is_lead
from user_llm.training.distillation import Teacher
from user_llm.training.objectives import contextualised_objective
from user_llm.training.optimizer import Pace
from user_llm.training.trainable import STRATEGIES, Rules

_ONE_BY_ONE = {
    "spelling_steps": 0,
    "label_contexts": 0.0,
    "distillation": 0.0,
    "targets": 1,
    "whole_every": 1,
}  # keys of it, and what they usually are


def _embeddings_one_by_one(config: ConfigDict) -> Iterator[str]:
    """A line for each value that does not go with texts that read some embeddings of a context."""
    integration = config.integration
    asked = {key for key, usual in _ONE_BY_ONE.items() if integration[key] != usual}
    attends, causal = "--config.integration.kind=cross_attention", "--config.encoder.kind=autoregressive"
    of_items = ("spelling_steps", "label_contexts", "distillation")
    items_alone = "\"--config.encoder.features=('item',)\""
    next_item, no_history = "--config.task=next_item", "--config.data.text_history=0"
    wants = [
        (integration.kind != "cross_attention", _ONE_BY_ONE, "cross-attention", attends),
        (integration.perceiver.enabled, _ONE_BY_ONE, "all embeddings", "--config.integration.perceiver.enabled=false"),
        (not ENCODERS[config.encoder.kind].causal, _ONE_BY_ONE, "causal encoders", causal),
        (tuple(config.encoder.features) != ("item",), of_items, "encoders of items alone", items_alone),
        (task_names(config) != ("next_item",), _ONE_BY_ONE, "answers that are an event's title", next_item),
        (config.data.text_history, ("spelling_steps", "targets"), "texts without histories", no_history),
        (config.data.reader != "windows", ("targets",), "the reader windows", "--config.data.reader=windows"),
    ]
    for is_so, keys, what, instead in wants:
        if is_so:
            yield from (
                f"{says(config, f'integration.{key}')} is for {what}: set {instead}" for key in keys if key in asked
            )


def _at_rest(config: ConfigDict) -> Rules:
    """What the strategy might train, and `integration.rates` leaves where it is."""
    rates = config.integration.rates
    return tuple(
        (f"{part}/.*", False) for part, rate in (("encoder", rates.encoder), ("language_model", rates.llm)) if not rate
    )


def _ends_early(config: ConfigDict) -> bool:
    """Whether answers are learnt as far as they tell a title; SeqIO's registered tasks have them whole."""
    return config.integration.within_catalogue and config.data.reader == "windows"


def _words(experiment: Experiment) -> tuple[Prompts, Answers]:
    """Prompts and answers of the one task, the answers as far as there is anything to learn of them."""
    (task,) = experiment.tasks
    of_task = experiment.telling_answers if _ends_early(experiment.config) else experiment.answers
    return experiment.prompts(task.name), of_task(task.name)


def _taught_trie(experiment: Experiment) -> CatalogueTrie:
    """The trie of what is learnt of the titles: within the catalogue much smaller, with the same choices."""
    (task,) = experiment.tasks
    if not _ends_early(experiment.config):
        return experiment.answer_trie(task.name)
    names = experiment.names.titles
    lengths = np.minimum(names.lengths, experiment.telling_answers(task.name).tokens)
    return CatalogueTrie.build(names.tokens, lengths, experiment.vocabulary.eos_id)


class UserLLMStage(Stage):
    """The contextualised LLM. Its adapters, if any, are left in PEFT's layout, `<workdir>/user_llm/adapters`."""

    name = "user_llm"
    reads_text = True
    held_at_once = (("training.user_llm.batch_size", "prompt.max_targets"),)

    def builder(self, assembly):
        """See `Stage`."""
        return assembly.user_llm

    def rules(self, config):
        """See `Stage`."""
        return (*_at_rest(config), *STRATEGIES[config.strategy])

    def pretrained(self, experiment, finished):
        """See `Stage`."""
        config, assembly = experiment.config, experiment.assembly
        earlier: Parameters = {}
        loaded: Parameters = {}
        if reads_pretrained_encoder(config):
            places = parameters.split(parameters.abstract(assembly.user_llm))[1]
            trained = with_prefix("encoder", finished["encoder"].parameters)
            earlier |= {path: value for path, value in trained.items() if path in places}  # its pretraining has more
        if config.llm.checkpoint:
            llm, rows = assembly.language_model_config, experiment.vocabulary.kept
            loaded |= huggingface.load_parameters(config.llm.checkpoint, llm, experiment.mesh, rows=rows)
        elif "llm" in finished:
            earlier |= with_prefix("language_model", finished["llm"].parameters)
        if config.strategy == "lora" and config.lora.checkpoint:
            loaded |= load_adapters(config.lora.checkpoint, assembly.adapted_config)
        return earlier, with_prefix("language_model", loaded)

    def source(self, experiment, split):
        """See `Stage`."""
        integration = experiment.config.integration
        targets = integration.targets
        if split == "train" and targets > 1:
            windows = experiment.windows("train", stride=targets)
            return SeveralTargets(windows, *_words(experiment), targets, integration.whole_every)
        if _ends_early(experiment.config):
            return UserLLMSource(experiment.windows(split), *_words(experiment))
        return experiment.answered_prompts(split)

    def denser_batches(self, experiment, reader):
        """See `Stage`; items to spell come first."""
        batches, integration = self.batches(experiment, reader), experiment.config.integration
        if integration.targets == 1:  # else texts stand in rows of their own
            batches = self.grouped(experiment, batches)
        if not integration.spelling_steps:
            return batches
        # Of an item without events the encoder knows nothing.
        items = np.flatnonzero(experiment.item_counts[1:]) + 1
        texts = UserLLMSource(experiment.windows("train"), *_words(experiment))
        size = experiment.config.training.user_llm.batch_size * whole_titles(experiment.config)
        seed = experiment.config.seed
        spelling = TrainBatches(Spelling(texts, items), size, seed, rows=local_rows(experiment.mesh, size))
        return OneAfterTheOther(self.grouped(experiment, spelling), batches, integration.spelling_steps)

    def seqio_batches(self, experiment, batch_size, rows):
        """See `Stage`: the registered tasks, mixed where there are several."""
        from user_llm.seqio_road import reader

        answered = self.source(experiment, "train")
        return reader.user_llm_batches(experiment, answered, batch_size, experiment.config.seed, rows=rows)

    def objective(self, experiment):
        """See `Stage`."""
        config = experiment.config
        teacher, own = None, config.integration
        if own.distillation or own.within_catalogue:
            if own.distillation and experiment.catalogue.num_items > MOST_DENSE:
                raise ConfigError(
                    f"config.integration.distillation={own.distillation} asks the encoder about all titles, at most "
                    f"{MOST_DENSE:,}, and {config.data.dataset} has {experiment.catalogue.num_items:,}: set 0"
                )
            teacher = Teacher(
                _taught_trie(experiment),
                own.distillation,
                experiment.cold_items,
                learns=config.strategy != "proj" and own.rates.encoder > 0,
                within_catalogue=own.within_catalogue,
            )
        return contextualised_objective(config.encoder.chunk_rows, own.label_contexts, teacher, own.encoder_dropout)

    def paces(self, config):
        """See `Stage`: the connector, which nothing has trained yet, may move more, and alone at first."""
        rates, after = config.integration.rates, config.integration.connector_first
        paces = {"encoder/": Pace(rates.encoder, after), "language_model/": Pace(rates.llm, after)}
        return {start: pace for start, pace in paces.items() if pace != Pace()}

    def reader(self, experiment, model):
        """See `Stage`: what layers below the user make of texts is computed once, where it can be."""
        make_states(experiment, model)
        return functools.partial(with_states, experiment, model)

    def validation(self, experiment, objective, reader):
        """See `Stage`. Of several tasks each has a loss of its own; the whole weighs them as the training does."""
        if len(experiment.tasks) == 1:
            return super().validation(experiment, objective, reader)
        config, rates = experiment.config.evaluation, task_rates(experiment.config)
        each = {}
        for task in experiment.tasks:
            source = Subset.evenly(reader(experiment.source(task.name, "validation")), config.max_validation)
            each[task.name] = mean_metrics(objective, source, config.batch_size)

        def evaluate(model):
            losses = {name: measure(model)["loss"] for name, measure in each.items()}
            return {
                "loss": float(np.average(list(losses.values()), weights=rates)),
                **{f"loss/{name}": loss for name, loss in losses.items()},
            }

        return evaluate

    def positions(self, experiment, sizes):
        """See `Stage`."""
        encoder = sum(size for path, size in sizes.items() if path.startswith("encoder/"))
        texts, integration = self.source(experiment, "train"), experiment.config.integration
        whole = whole_titles(experiment.config)
        first = integration.targets - whole
        tokens = whole * (texts.length - 1 + experiment.assembly.soft_prompt_length) + first * texts.prompt_length
        return encoder * experiment.config.data.history_length + (sum(sizes.values()) - encoder) * tokens

    def softmax(self, assembly):
        """See `Stage`."""
        config = assembly.config
        whole = whole_titles(config)
        return (
            config.prompt.max_targets * whole + config.integration.targets - whole,
            assembly.language_model_config.vocab_size,
        )

    def export(self, experiment, model):
        """See `Stage`."""
        left = f"{self.name}/adapters"
        folder = experiment.workdir / left
        if experiment.config.strategy != "lora":
            return None
        if folder.exists():
            return left
        values = on_hosts({path: value for path, value in model.parameters.items() if "/lora/" in path})
        if is_lead():
            with replacing(folder) as partial:
                save_adapters(without_prefix("language_model", values), experiment.assembly.adapted_config, partial)
        return left

    def component(self, path):
        """See `Stage`."""
        component = path.split("/", 1)[0]
        return f"{component}, LoRA" if "/lora/" in path else component

    def problems(self, config):
        """See `Stage`."""
        stages = f"config.stages={config.stages!r}"
        if reads_pretrained_encoder(config) and "encoder" not in config.stages and not config.encoder.checkpoint:
            yield (
                f"{stages} pretrains no encoder: add 'encoder', name a finished run that has one with "
                "--config.encoder.checkpoint=WORKDIR, or set --config.encoder.init=random"
            )
        if config.integration.kind == "none" and not config.data.text_history:
            yield (
                "config.integration.kind='none' reads a user from the prompt, where config.data.text_history=0 writes "
                "no event: set --config.data.text_history, or take another kind"
            )
        yield from _embeddings_one_by_one(config)
        if config.integration.targets % config.integration.whole_every:
            targets, every = (says(config, f"integration.{key}") for key in ("targets", "whole_every"))
            yield f"{every}: expected a divisor of {targets}"
        if config.integration.spelling_steps >= config.training.user_llm.steps:
            steps = says(config, "training.user_llm.steps")
            yield f"{says(config, 'integration.spelling_steps')}: expected fewer than {steps}, whose first they are"
        if config.integration.within_catalogue:
            within = says(config, "integration.within_catalogue")
            if task_names(config) != ("next_item",):
                yield f"{within} is for answers that are items: set --config.task=next_item"
            if not config.evaluation.constrained:
                yield f"{within}: free beams know no catalogue; set --config.evaluation.constrained=true"
        llm_rests = config.strategy != "full" or not config.integration.rates.llm
        if llm_rests and not config.llm.checkpoint and "llm" not in config.stages:
            why = says(config, "strategy" if config.strategy != "full" else "integration.rates.llm")
            yield (
                f"{why} freezes a language model that nothing has trained: add 'llm' to "
                "config.stages, or name a pretrained one with --config.llm.checkpoint=FOLDER"
            )
