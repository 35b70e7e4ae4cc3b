"""The language model of a finished run by itself, as a Hugging Face folder: the checkpoint's whole table put back."""

import dataclasses
import logging
from pathlib import Path

from user_llm.checkpoints import huggingface
from user_llm.checkpoints.transfer import without_prefix
from user_llm.experiment.experiment import Experiment
from user_llm.models import parameters
from user_llm.models.language_model import LanguageModel
from user_llm.models.model import Model

_logger = logging.getLogger(__name__)


def save_language_model(experiment: Experiment, model: Model, folder: Path) -> None:
    """Writes the LLM of a contextualised one, without what tells it about users; its adapters are merged.

    Raises:
      CheckpointError: `folder` holds weights already, or the checkpoint that a trimmed run began with is gone.
    """
    config, vocabulary = experiment.assembly.adapted_config, experiment.vocabulary
    values = without_prefix("language_model", model.parameters)
    if vocabulary.kept is not None:
        checkpoint = experiment.config.llm.checkpoint
        held = dataclasses.replace(config, param_dtype=str(values["embedding_VD"].dtype))
        for path, table in huggingface.load_tables(checkpoint, held).items():
            values[path] = table.at[vocabulary.kept].set(values[path])
        rows = len(values["embedding_VD"])
        if experiment.config.strategy == "full":
            _logger.warning(
                "%d of the %d rows of the embedding table are the checkpoint's: the run trained without them, and so "
                "they were never trained down",
                *(rows - vocabulary.rows, rows),
            )
        config, vocabulary = dataclasses.replace(config, vocab_size=rows), vocabulary.whole
    graphdef, _, buffers = parameters.split(parameters.abstract(lambda rngs: LanguageModel(config, rngs=rngs)))
    trained = parameters.merge(graphdef, values, buffers)
    huggingface.save_language_model(trained, folder, bos_id=vocabulary.bos_id, eos_id=vocabulary.eos_id)
    vocabulary.save(folder)
