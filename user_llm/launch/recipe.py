"""How a model of the paper learns where a config's own way (`integration.*`, `encoder.stride`) is not for it."""

from ml_collections import ConfigDict

from user_llm.config import whole_titles
from user_llm.keys import DEFAULTS
from user_llm.launch.models import Model
from user_llm.launch.scales import NEXT

Overrides = list[tuple[str, object]]

_WITHOUT_TEXT = ("spelling_steps", "targets", "whole_every")  # read a text without a history
_ONE_BY_ONE = (*_WITHOUT_TEXT, "label_contexts", "distillation")  # read an embedding of one event
_TRAINING = "training.user_llm"

DERIVED = frozenset(
    {
        *("encoder.stride", "training.encoder.batch_size", "evaluation.answers"),
        *(f"integration.{key}" for key in ("newest", *_ONE_BY_ONE)),
        *(f"{_TRAINING}.{key}" for key in ("steps", "batch_size", "eval_every", "checkpoint_every")),
        *(f"{_TRAINING}.{key}" for key in ("learning_rate", "keep_best")),
    }
)
"""Keys that some models have values of their own for, made of the config's and the user's: a user may set them."""


def learnable(config: ConfigDict, model: Model, events: int = 0) -> Overrides:
    """The keys of `integration` that a model cannot follow, at the schema's values, with as many whole titles a step.

    Args:
      config: of the run's file, with what the user set.
      events: of the history, written out in the prompt.
    """
    has_states = model.encoder not in (None, "dual_encoder") and not model.perceiver  # an embedding an event
    unfit: set[str] = set() if has_states else {"newest"}
    if not model.alone:
        unfit |= set() if has_states and model.integration == "cross_attention" else {*_ONE_BY_ONE}
        unfit |= {*_ONE_BY_ONE} if config.task != NEXT else set()  # whose answers are no event's title
        unfit |= {*_WITHOUT_TEXT} if events else set()
        unfit |= set() if model.pretrained else {"distillation"}  # a random encoder has no opinion
    own = config.integration
    reset: Overrides = [
        (f"integration.{key}", DEFAULTS[f"integration.{key}"])
        for key in ("newest", *_ONE_BY_ONE)
        if key in unfit and own[key] != DEFAULTS[f"integration.{key}"]
    ]
    if "integration.distillation" in dict(reset) and not config.training.user_llm.keep_best:
        # Labels teach it: their loss says when it has learnt enough.
        reset.append((f"{_TRAINING}.keep_best", "loss"))
    if "integration.targets" in dict(reset) and config.task == NEXT:
        reset.append((f"{_TRAINING}.batch_size", config.training.user_llm.batch_size * whole_titles(config)))
    return reset


def shortened(config: ConfigDict, part: int) -> Overrides:
    """A `part`-th of the steps of the contextualised language model, looked at as often."""
    own = config.training.user_llm
    steps, every = max(own.steps // part, 1), max(own.eval_every // part, 1)
    return [(f"{_TRAINING}.steps", steps), (f"{_TRAINING}.eval_every", every), (f"{_TRAINING}.checkpoint_every", every)]


UNTRAINED: Overrides = [
    (f"{_TRAINING}.steps", 1),
    (f"{_TRAINING}.batch_size", 1),
    (f"{_TRAINING}.learning_rate", 0.0),
    (f"{_TRAINING}.keep_best", ""),
]
"""A training that changes nothing: one step at rate 0."""


def strided(config: ConfigDict, kind: str, history: int) -> Overrides:
    """The windows of an encoder of a `kind`, where a config learns each event once: as many events a step.

    A dual encoder learns the one label of a window, and takes every window.
    """
    if config.encoder.stride != config.data.history_length or config.encoder.stride == 1:
        return []
    if kind == "dual_encoder":
        return [("encoder.stride", 1)]
    if history == config.data.history_length:
        return []
    batch = config.training.encoder.batch_size * config.data.history_length // history
    return [("encoder.stride", history), ("training.encoder.batch_size", max(batch, 1))]
