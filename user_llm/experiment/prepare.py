"""What a run does before it trains: finds what does not fit, as early as it can be known, and writes what it needs.

First what the config says alone, then the data, then the files that the experiment reads (catalogue and vocabulary),
then prompts, answers and shapes, for which these are needed.
"""

import logging
from pathlib import Path

import numpy as np

from user_llm.checkpoints import huggingface
from user_llm.config import ConfigError
from user_llm.data.prompts import category_noun_of, noun_of
from user_llm.data.vocabularies import (
    TOKENIZER_FILE,
    Vocabulary,
    load_vocabulary,
    train_sentencepiece,
)
from user_llm.experiment.experiment import Experiment
from user_llm.experiment.memory import check_memory
from user_llm.experiment.stages.encoder import lender_of
from user_llm.experiment.workdir import CATALOGUE, FACTS, VOCABULARY
from user_llm.files import replacing, write_json
from user_llm.models import parameters
from user_llm.parallel.processes import lead_makes

MAX_VOCABULARY_REVIEWS = 200_000  # read by a vocabulary of our own, evenly spread over the training windows
_SAMPLE = 1000  # windows looked at, to say what prompts and answers lose

_NEEDED = {"category": "categories", "review": "reviews"}  # what a task may need of a dataset, in words

_logger = logging.getLogger(__name__)


def prepare(experiment: Experiment) -> None:
    """Checks an experiment, and writes the catalogue and the vocabulary into its workdir, where they are not yet.

    Raises:
      ConfigError: what does not fit, and the key to change. Nothing is trained by then, not even a vocabulary where
        the data or the config alone can tell.
    """
    check_memory(experiment.config)
    vocabulary = _named_vocabulary(experiment)
    _check_fields(experiment)
    _check_windows(experiment)
    catalogue = experiment.workdir / CATALOGUE
    lead_makes(catalogue, lambda: _write_catalogue(experiment, catalogue))
    _check_data(experiment)
    lender_of(experiment)
    folder = experiment.workdir / VOCABULARY
    lead_makes(folder, lambda: _write_vocabulary(experiment, vocabulary, folder))
    _check_models(experiment)


def vocabulary_events(experiment: Experiment) -> np.ndarray:
    """Places int64 of the events whose reviews a vocabulary of our own reads: labels of training windows."""
    llm = experiment.config.llm
    if llm.vocabulary or llm.checkpoint or not any(task.answers_reviews for task in experiment.tasks):
        return np.zeros(0, np.int64)
    windows = experiment.windows("train")
    ids = np.linspace(0, len(windows) - 1, min(len(windows), MAX_VOCABULARY_REVIEWS)).astype(np.int64)
    return windows.label_positions(ids)


def _named_vocabulary(experiment: Experiment) -> Vocabulary | None:
    """The vocabulary that the config names, or whose checkpoint it names; None where one is to be trained.

    Raises:
      ConfigError: the model has not a row for each of its tokens.
    """
    llm = experiment.config.llm
    source = llm.vocabulary or llm.checkpoint
    if not source:
        return None
    vocabulary = load_vocabulary(huggingface.resolve(source) if source == llm.checkpoint else source)
    if named := llm.checkpoint or llm.architecture:
        needed, rows = vocabulary.rows, huggingface.load_config(named).vocab_size
        if needed > rows:
            raise ConfigError(
                f"the vocabulary of {source} has {needed} pieces, but the model of {named} has rows for {rows}: "
                "use its own tokenizer"
            )
    return vocabulary


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


def _write_vocabulary(experiment: Experiment, vocabulary: Vocabulary | None, folder: Path) -> None:
    with replacing(folder) as partial:
        if vocabulary is not None:
            vocabulary.save(partial)
        else:
            partial.mkdir()
            size = experiment.config.llm.vocabulary_size
            train_sentencepiece(_texts(experiment), size, partial / TOKENIZER_FILE)


def _texts(experiment: Experiment) -> list[str]:
    """What a vocabulary is trained on: catalogue, the tasks' words, and training reviews where a task writes them."""
    dataset, tasks = experiment.config.data.dataset, experiment.tasks
    nouns = noun_of(dataset), category_noun_of(dataset)
    texts = [*experiment.documents, *(text for task in tasks for text in task.wording(*nouns).texts())]
    if any(task.answers_reviews for task in tasks):
        texts += [*experiment.rating_names, *experiment.table.reviews(vocabulary_events(experiment))]
    return texts


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
