"""Models of `transformers` that tests hold ours to."""

import pytest


def randomise(model) -> None:
    """Weights of a size at which logits are of order 1 and norms, biases and angles are felt."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.data += 0.3 * noise
        else:
            parameter.data = noise / parameter.shape[1] ** 0.5
