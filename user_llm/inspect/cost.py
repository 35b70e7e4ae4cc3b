"""What a run's training costs, by the heuristic the paper counts with: 6 N D (section 4.3.1; Kaplan et al., 2020)."""

from collections.abc import Mapping

from user_llm.experiment.experiment import Experiment
from user_llm.experiment.stages import stages_of
from user_llm.models.model import Model


def training_costs(experiment: Experiment, trained: Mapping[str, Model]) -> dict[str, dict[str, int]]:
    """Stage trained by this run → `parameters`, `examples`, and `flops_6nd`.

    N counts every parameter that a position meets, frozen ones too: the heuristic is an upper bound there. D are
    positions, padding included: events for an encoder, tokens (and vectors of a soft prompt) for a language model.
    """
    costs = {}
    for stage in stages_of(experiment.config):
        training = experiment.config.training[stage.name]
        examples = training.steps * training.batch_size
        sizes = {path: int(value.size) for path, value in trained[stage.name].parameters.items()}
        costs[stage.name] = {
            "parameters": sum(sizes.values()),
            "examples": examples,
            "flops_6nd": 6 * examples * stage.positions(experiment, sizes),
        }
    return costs
