"""The stages of an experiment, in the order they feed one another: LLM, encoder, contextualised LLM (paper 3)."""

from ml_collections import ConfigDict

from user_llm.experiment.stages.base import Stage
from user_llm.experiment.stages.encoder import EncoderStage
from user_llm.experiment.stages.llm import LanguageModelStage
from user_llm.experiment.stages.user_llm import UserLLMStage
from user_llm.registry import Registry

STAGES: Registry[Stage] = Registry()
for _stage in (LanguageModelStage(), EncoderStage(), UserLLMStage()):
    STAGES.register(_stage)


def stages_of(config: ConfigDict) -> list[Stage]:
    """The stages that a run trains: what is pretrained elsewhere is not trained here."""
    return [STAGES[name] for name in config.stages if not STAGES[name].is_elsewhere(config)]
