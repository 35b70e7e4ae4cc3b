"""What a config cannot do without, held against the memory there is: what could never run is refused at once."""

import math
import os

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from user_llm.config import ConfigError, says
from user_llm.experiment.stages import stages_of

_ENCODER = (("encoder.num_layers", "encoder.width", "encoder.width"), ("encoder.width", "encoder.hidden"))
_LLM = (("llm.num_layers", "llm.width", "llm.hidden"), ("llm.vocabulary_size", "llm.width"))

# Stage → keys whose product is held at once, in weights or in what a batch becomes in the first layer. Far below what
# a step needs, and known without building a model, which takes as long as it has layers.
_NEEDS = {
    "llm": (*_LLM, ("training.llm.batch_size", "llm.width")),
    "encoder": (*_ENCODER, ("training.encoder.batch_size", "data.history_length", "encoder.width")),
    "user_llm": (("training.user_llm.batch_size", "prompt.max_targets"),),
}


def check_memory(config: ConfigDict) -> None:
    """Raises ConfigError, with keys and bytes, where no step of a stage fits into all devices together."""
    available = _available()
    sizes = (jnp.dtype(config.compute[key]).itemsize for key in ("dtype", "param_dtype", "frozen_dtype"))
    smallest = min(sizes)
    for stage in stages_of(config):
        for keys in _NEEDS.get(stage.name, ()):
            if config.llm.architecture and keys in _LLM:
                continue  # whose dimensions are those of that file
            parts = config.training[stage.name].accumulate if keys[0].startswith("training.") else 1
            needed = math.prod(config_path.get_value(key, config) for key in keys) // parts * smallest
            if needed > available:
                values = ", ".join(says(config, key) for key in dict.fromkeys(keys))
                raise ConfigError(
                    f"{values}: together they need {needed / 2**30:,.0f} GiB at the least, and the devices have "
                    f"{available / 2**30:,.0f} GiB: lower one of them"
                )


def _available() -> int:
    """Bytes of all devices; of CPU devices, which share it, the memory of their host."""
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    here = sum(limits) if all(limits) else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return here * jax.process_count()
