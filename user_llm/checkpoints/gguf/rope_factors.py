"""Llama 3's scaled rotary positions: GGUF has a factor for each frequency, `config.json` the numbers they come from."""

import math
from typing import Any

import numpy as np

from user_llm.checkpoints.tensors import CheckpointError
from user_llm.gguf_header import Header

ROPE_FACTORS = "rope_freqs.weight"
# Of all Llama 3.1 to 3.3; only the factor differs.
_LOW, _HIGH, _ORIGINAL = 1.0, 4.0, 8192


def rope_scaling(header: Header, theta: Any, head_dim: Any) -> dict[str, Any] | None:
    """The option `rope_scaling` that makes these factors; None where all of them are 1.

    Raises:
      CheckpointError: they are others than of a Llama 3.
    """
    info = header.tensors[ROPE_FACTORS]
    if info.kind.name != "F32" or info.shape != (head_dim // 2,) or type(theta) is not float:
        raise CheckpointError(
            f"{header.file}: {ROPE_FACTORS} is {info.kind.name} {list(info.shape)}; expected F32 [{head_dim // 2}]."
        )
    found = np.fromfile(header.file, np.float32, head_dim // 2, offset=info.start)
    if (found == 1).all():
        return None
    factor = float(found.max())
    if factor > 1 and np.allclose(found, _factors(theta, head_dim, factor), rtol=1e-5):
        return {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": _LOW,
            "high_freq_factor": _HIGH,
            "original_max_position_embeddings": _ORIGINAL,
        }
    raise CheckpointError(f"{header.file}: {ROPE_FACTORS} holds factors of no Llama 3; only those are supported.")


def _factors(theta: float, head_dim: int, factor: float) -> np.ndarray:
    wavelength = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    share = np.clip((_ORIGINAL / wavelength - _LOW) / (_HIGH - _LOW), 0.0, 1.0)  # 1: a short wave, left as it is
    return 1 / ((1 - share) / factor + share)
