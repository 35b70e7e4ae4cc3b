"""The vocabulary of an experiment: the one it names, whole or trimmed to the texts there are, or one of its own."""

import logging
from pathlib import Path

import numpy as np

from user_llm.checkpoints import huggingface
from user_llm.config import ConfigError
from user_llm.data.prompts import category_noun_of, noun_of
from user_llm.data.trimmed_vocabulary import TrimmedVocabulary, trimmed
from user_llm.data.vocabularies import (
    TOKENIZER_FILE,
    Vocabulary,
    encode_continuations,
    load_vocabulary,
    train_sentencepiece,
)
from user_llm.experiment.experiment import Experiment
from user_llm.files import replacing

MAX_VOCABULARY_REVIEWS = 200_000  # read by a vocabulary of our own, evenly spread over the training windows

_logger = logging.getLogger(__name__)


def named_vocabulary(experiment: Experiment) -> Vocabulary | None:
    """The vocabulary that the config names, or whose checkpoint it names, whole; None where one is to be trained.

    Raises:
      ConfigError: the model has not a row for each of its tokens, or it is another run's trimmed one.
    """
    llm = experiment.config.llm
    source = llm.vocabulary or llm.checkpoint
    if not source:
        return None
    vocabulary = load_vocabulary(huggingface.resolve(source) if source == llm.checkpoint else source)
    if vocabulary.kept is not None:
        raise ConfigError(
            f"{source} is a vocabulary that another run has trimmed, whose ids no model has rows for: name the file "
            f"{vocabulary.file}, and set --config.llm.trim_vocabulary=true to trim it for this run"
        )
    if named := llm.checkpoint or llm.architecture:
        needed, rows = vocabulary.rows, huggingface.load_config(named).vocab_size
        if needed > rows:
            raise ConfigError(
                f"the vocabulary of {source} has {needed} pieces, but the model of {named} has rows for {rows}: "
                "use its own tokenizer"
            )
    return vocabulary


def write_vocabulary(experiment: Experiment, vocabulary: Vocabulary | None, folder: Path) -> None:
    """Writes what `named_vocabulary` has given, trimmed where the config says so, or one trained on the texts."""
    llm = experiment.config.llm
    with replacing(folder) as partial:
        if vocabulary is None:
            partial.mkdir()
            train_sentencepiece(_texts(experiment), llm.vocabulary_size, partial / TOKENIZER_FILE)
        elif llm.trim_vocabulary:
            _trimmed(experiment, vocabulary).save(partial)
        else:
            vocabulary.save(partial)


def vocabulary_events(experiment: Experiment) -> np.ndarray:
    """Places int64 of the events whose reviews make the vocabulary: labels of training windows."""
    llm = experiment.config.llm
    named = (llm.vocabulary or llm.checkpoint) and not llm.trim_vocabulary
    if named or not any(task.answers_reviews for task in experiment.tasks):
        return np.zeros(0, np.int64)
    windows = experiment.windows("train")
    ids = np.linspace(0, len(windows) - 1, min(len(windows), MAX_VOCABULARY_REVIEWS)).astype(np.int64)
    return windows.label_positions(ids)


def _texts(experiment: Experiment) -> list[str]:
    """What makes a vocabulary: catalogue, the tasks' words, and training reviews where a task writes them."""
    dataset, tasks = experiment.config.data.dataset, experiment.tasks
    nouns = noun_of(dataset), category_noun_of(dataset)
    texts = [*experiment.documents, *(text for task in tasks for text in task.wording(*nouns).texts())]
    if any(task.answers_reviews for task in tasks):
        texts += [*experiment.rating_names, *experiment.table.reviews(vocabulary_events(experiment))]
    return texts


def _trimmed(experiment: Experiment, vocabulary: Vocabulary) -> TrimmedVocabulary:
    """With the pieces of these texts, and of every name by itself: at the start of a text, and behind another."""
    catalogue = experiment.catalogue
    names = [*catalogue.titles, *catalogue.category_names, *experiment.rating_names]
    texts = [*_texts(experiment), *names]
    both = [*vocabulary.encode_batch(texts), *encode_continuations(vocabulary, texts)]
    found = trimmed(vocabulary, both)
    model = huggingface.load_config(experiment.config.llm.checkpoint)
    less = (model.vocab_size - found.rows) * model.width * (1 if model.tie_embeddings else 2)
    _logger.info(
        "%d of %d pieces kept; %.1f million embedding parameters less", found.rows, model.vocab_size, less / 1e6
    )
    return found
