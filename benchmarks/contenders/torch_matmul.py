"""A square matrix product by PyTorch, alone: the most that a training step could get out of the machine."""

from typing import Any

import torch

from benchmarks.protocol import serve


def setup(options: dict[str, Any]):
    shape = options["size"], options["size"]
    a, b = (torch.randn(shape).to(getattr(torch, options["dtype"])) for _ in range(2))
    return lambda: float((a @ b)[0, 0])


if __name__ == "__main__":
    serve(setup, ("torch",))
