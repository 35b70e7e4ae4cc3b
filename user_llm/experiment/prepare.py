"""What a run does before it trains: finds what does not fit, as early as it can be known, and writes what it needs.

First what the config says alone, then the data, then the files that the experiment reads (catalogue and vocabulary),
then prompts, answers and shapes, for which these are needed.
"""

import logging
from pathlib import Path

import numpy as np

from user_llm.config import ConfigError
from user_llm.experiment.experiment import Experiment
from user_llm.experiment.kept_tries import keep_trie
from user_llm.experiment.memory import check_memory
from user_llm.experiment.stages.encoder import LENDERS, lender_of
from user_llm.experiment.vocabulary import named_vocabulary, write_vocabulary
from user_llm.experiment.workdir import CATALOGUE, FACTS, VOCABULARY
from user_llm.files import replacing, write_json
from user_llm.models import parameters
from user_llm.parallel.processes import lead_makes

_SAMPLE = 1000  # windows looked at, to say what prompts and answers lose

_NEEDED = {"category": "categories", "review": "reviews"}  # what a task may need of a dataset, in words

_logger = logging.getLogger(__name__)


def prepare(experiment: Experiment) -> None:
    """Checks an experiment, and writes catalogue, vocabulary and large tries into its workdir, where they are not yet.

    Raises:
      ConfigError: what does not fit, and the key to change. Nothing is trained by then, not even a vocabulary where
        the data or the config alone can tell.
    """
    check_memory(experiment.config)
    vocabulary = named_vocabulary(experiment)
    _check_fields(experiment)
    _check_windows(experiment)
    catalogue = experiment.workdir / CATALOGUE
    lead_makes(catalogue, lambda: _write_catalogue(experiment, catalogue))
    _check_data(experiment)
    for key in LENDERS:
        lender_of(experiment, key)
    folder = experiment.workdir / VOCABULARY
    lead_makes(folder, lambda: write_vocabulary(experiment, vocabulary, folder))
    _check_models(experiment)
    if {"llm", "user_llm"} & set(experiment.config.stages):
        for task in experiment.tasks:
            keep_trie(experiment, task.name)


def _check_fields(experiment: Experiment) -> None:
    """Raises ConfigError where a task or the encoder reads what the dataset has not."""
    config, table, dataset = experiment.config, experiment.table, experiment.config.data.dataset
    has = {
        "category": len(table.catalogue.category_names) > 1,
        "rating": len(table.rating_names) > 1,
        "review": table.has_reviews,
    }
    missing = [name for name in config.encoder.features if not has.get(name, True)]
    if missing and ("encoder" in config.stages or config.integration.kind != "none"):
        left = tuple(name for name in config.encoder.features if name not in missing)
        raise ConfigError(
            f"{dataset} has no {' and no '.join(missing)} for the encoder to read: "
            f'set "--config.encoder.features={left}"'
        )
    for task in experiment.tasks:
        for need in task.needs:
            if not has[need]:
                raise ConfigError(f"{dataset} has no {_NEEDED[need]}, so config.task={task.name!r} has no answer")


def _check_windows(experiment: Experiment) -> None:
    if len(experiment.windows("train")) == 0 or len(experiment.windows("test")) == 0:
        data = experiment.config.data
        raise ConfigError(
            f"no timeline of {data.dataset} is long enough for config.data.history_length={data.history_length} "
            f"with min_history={data.min_history}: lower them"
        )


def _write_catalogue(experiment: Experiment, folder: Path) -> None:
    table = experiment.table
    facts = {
        "rating_names": table.rating_names,
        "fingerprint": table.fingerprint,
        "duplicates": table.catalogue.duplicates,
    }
    with replacing(folder) as partial:
        partial.mkdir()
        table.catalogue.save(partial)
        write_json(partial / Path(FACTS).name, facts)


def _check_data(experiment: Experiment) -> None:
    """Raises ConfigError where this host reads other data than those the workdir's catalogue is of."""
    if experiment.table.fingerprint != experiment.fingerprint:
        raise ConfigError(
            f"this host reads other raw files of {experiment.config.data.dataset} than those {experiment.workdir} was "
            "made of (their content's hash differs): name the same with config.data.raw_path"
        )


def _check_models(experiment: Experiment) -> None:
    """Builds the models abstractly, and holds prompts and answers against what the LLM can read."""
    config, assembly = experiment.config, experiment.assembly
    if not {"llm", "user_llm"} & set(config.stages):
        parameters.abstract(assembly.encoder)
        return
    parameters.abstract(assembly.user_llm)
    length, most = experiment.answered_prompts("train").length, assembly.language_model_config.max_length
    soft = assembly.soft_prompt_length
    if soft + length > most:
        also = f" after a soft prompt of {soft}" if soft else ""
        raise ConfigError(
            f"a prompt and its answer take {length} tokens{also}, but the LLM reads {most}: lower "
            "config.prompt.max_inputs or max_targets"
            + (", data.history_length, or enable integration.perceiver" if soft else "")
        )
    for task in experiment.tasks:
        _tell_what_is_cut(experiment, task.name)


def _tell_what_is_cut(experiment: Experiment, task: str) -> None:
    source, prompt = experiment.source(task, "train"), experiment.config.prompt
    ids = np.linspace(0, len(source) - 1, min(_SAMPLE, len(source))).astype(np.int64)
    if cut := source.answers.count_cut(source.windows.label_positions(ids)):
        _logger.warning(
            "%d of %d answers of %s are longer than config.prompt.max_targets=%d tokens: their ends are not learnt",
            *(cut, len(ids), task, prompt.max_targets),
        )
    batch, events = source.gather(np.arange(min(_SAMPLE, len(source)))), experiment.config.data.text_history
    dropped = batch["dropped_events"]
    if dropped.any() and (dropped == np.sum(batch["history/item"][:, -events:] > 0, axis=1)).all():
        raise ConfigError(
            f"config.prompt.max_inputs={prompt.max_inputs} has no room for a single event of "
            f"config.data.text_history={events} in a prompt of {task}: raise it, or write no history"
        )
    if dropped.any():
        _logger.warning(
            "Prompts drop their oldest events: %.1f of text_history=%d on average do not fit into "
            "config.prompt.max_inputs=%d tokens",
            *(dropped.mean(), events, prompt.max_inputs),
        )
