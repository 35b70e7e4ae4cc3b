"""What a run's training costs, by the heuristic the paper counts with: 6 N D (section 4.3.1; Kaplan et al., 2020)."""

from collections.abc import Mapping

from user_llm.experiment import Experiment
from user_llm.stages import Model, stage_names


def training_costs(experiment: Experiment, trained: Mapping[str, Model]) -> dict[str, dict[str, int]]:
    """Stage trained by this run → `parameters`, `examples`, and `flops_6nd`.

    N counts every parameter that a position meets, frozen ones too: the heuristic is an upper bound there. D are
    positions, padding included: events for an encoder, tokens (and vectors of a soft prompt) for a language model.
    """
    costs = {}
    for name in stage_names(experiment.config):
        training = experiment.config.training[name]
        examples = training.steps * training.batch_size
        sizes = {path: int(value.size) for path, value in trained[name].parameters.items()}
        encoder = sum(size for path, size in sizes.items() if name == "encoder" or path.startswith("encoder/"))
        events, tokens = experiment.config.data.history_length, _tokens(experiment, name)
        products = encoder * events + (sum(sizes.values()) - encoder) * tokens
        costs[name] = {
            "parameters": sum(sizes.values()),
            "examples": examples,
            "flops_6nd": 6 * examples * products,
        }
    return costs


def _tokens(experiment: Experiment, stage: str) -> int:
    """Positions of an example that the language model reads."""
    if stage == "encoder":
        return 0
    if stage == "llm":
        return experiment.text_source.length - 1
    return experiment.source("train").length - 1 + experiment.assembly.soft_prompt_length
