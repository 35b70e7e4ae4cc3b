"""What a config cannot do without, held against the memory there is: what could never run is refused at once."""

import math
import os

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from user_llm.config import ConfigError, says
from user_llm.experiment.stages import stages_of

_EVENTS = ("data.simulated.num_users", "data.simulated.mean_events")  # of a dataset that is made as it is asked for


def check_memory(config: ConfigDict) -> None:
    """Raises ConfigError, with keys and bytes, where all devices together cannot hold what a stage or its data need."""
    available = _available()
    smallest = min(jnp.dtype(config.compute[key]).itemsize for key in ("dtype", "param_dtype", "frozen_dtype"))
    needs = [keys for stage in stages_of(config) for keys in stage.held_at_once]
    if config.data.dataset.endswith("/simulated"):
        needs.append(_EVENTS)
    for keys in needs:
        if config.llm.architecture and keys[0].startswith("llm."):
            continue  # whose dimensions are those of that file
        group, _, name = keys[0].rpartition(".")
        parts = config_path.get_value(f"{group}.accumulate", config) if name == "batch_size" else 1
        needed = math.prod(config_path.get_value(key, config) for key in keys) // parts * smallest
        if needed > available:
            values = ", ".join(says(config, key) for key in dict.fromkeys(keys))
            raise ConfigError(
                f"{values}: together they need {needed / 2**30:,.0f} GiB at the least, and the devices have "
                f"{available / 2**30:,.0f} GiB: lower one of them"
            )


def _available() -> int:
    """Bytes of all devices; of CPU devices, which share it, the memory of their host."""
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices()]
    here = sum(limits) if all(limits) else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return here * jax.process_count()
