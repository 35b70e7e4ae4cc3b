"""An accelerator that stands there while JAX computes on the CPU, which nobody wants unawares."""

import os
from pathlib import Path

import jax

_KINDS = {"nvidia[0-9]*": ("an NVIDIA GPU", "cuda"), "accel[0-9]*": ("a TPU", "tpu")}
"""Pattern of its device files → what it is, the extra of this package that brings JAX for it."""


def unused(devices: Path = Path("/dev")) -> str:
    """What is unused and what helps, in one sentence; "" where JAX has an accelerator, or is told to do without.

    Args:
      devices: the folder of device files.
    """
    if jax.default_backend() != "cpu" or os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return ""
    for pattern, (kind, extra) in _KINDS.items():
        if any(devices.glob(pattern)):
            return (
                f"This machine has {kind}, and JAX computes on the CPU: pip install 'user-llm[{extra}]' brings JAX for "
                "it; JAX_PLATFORMS=cpu says that the CPU is meant."
            )
    return ""
