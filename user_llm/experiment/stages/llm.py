"""Stage `llm`: a language model trained from scratch on the catalogue's and the prompts' text."""

from user_llm.checkpoints import huggingface
from user_llm.experiment.stages.base import Stage, on_hosts
from user_llm.files import replacing
from user_llm.models import parameters
from user_llm.parallel.processes import is_lead
from user_llm.training.objectives import text_objective


class LanguageModelStage(Stage):
    """The LLM alone. It is left as a Hugging Face folder too, `<workdir>/llm/huggingface`."""

    name = "llm"
    reads_text = True
    held_at_once = (
        ("llm.num_layers", "llm.width", "llm.hidden"),
        ("llm.vocabulary_size", "llm.width"),
        ("training.llm.batch_size", "llm.width"),
    )

    def is_elsewhere(self, config):
        """See `Stage`."""
        return bool(config.llm.checkpoint)

    def builder(self, assembly):
        """See `Stage`."""
        return assembly.language_model

    def source(self, experiment, split):
        """See `Stage`; it is validated on the answers to prompts alone."""
        return experiment.text_source if split == "train" else experiment.answered_prompts(split)

    def seqio_batches(self, experiment, batch_size, rows):
        """See `Stage`: documents and the registered tasks, half and half."""
        from user_llm.seqio_road import reader

        text, answered = self.source(experiment, "train"), experiment.answered_prompts("train")
        return reader.llm_batches(experiment, answered, text, batch_size, experiment.config.seed, rows=rows)

    def objective(self, experiment):
        """See `Stage`."""
        return text_objective(experiment.config.encoder.chunk_rows)

    def positions(self, experiment, sizes):
        """See `Stage`."""
        return sum(sizes.values()) * (experiment.text_source.length - 1)

    def softmax(self, assembly):
        """See `Stage`."""
        return assembly.config.llm.max_length - 1, assembly.language_model_config.vocab_size

    def export(self, experiment, model):
        """See `Stage`."""
        left = f"{self.name}/huggingface"
        folder = experiment.workdir / left
        if folder.exists():
            return left
        trained = parameters.merge(model.graphdef, on_hosts(model.parameters), on_hosts(model.buffers))
        vocabulary = experiment.vocabulary
        if is_lead():
            with replacing(folder) as partial:
                huggingface.save_language_model(trained, partial, bos_id=vocabulary.bos_id, eos_id=vocabulary.eos_id)
                vocabulary.save(partial)
        return left
