"""The same encoder in PyTorch, written as one would: fused kernels, causal attention without a mask tensor.

It gets what PyTorch has to offer: `scaled_dot_product_attention`, `rms_norm`, fused AdamW, no padding mask. In bfloat16
autocast decides what is computed in it; parameters, gradients and the optimizer stay float32.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.flops import encoder_step
from benchmarks.protocol import Work, serve
from benchmarks.workload import Workload


class Layer(nn.Module):
    def __init__(self, width: int, num_heads: int, hidden: int):
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.RMSNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.RMSNorm(width, eps=1e-6)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.relu(self.up(self.mlp_norm(x))))


class Encoder(nn.Module):
    """Items [B, S] to user embeddings [B, S, U], which the tied softmax multiplies with `table`."""

    def __init__(self, workload: Workload):
        super().__init__()
        width = workload.width
        self.table = nn.Parameter(torch.randn(workload.num_items + 1, width) * width**-0.5)
        self.embedding_norm = nn.RMSNorm(width, eps=1e-6)
        self.position = nn.Parameter(torch.randn(workload.history_length, width) * 0.02)
        self.layers = nn.ModuleList(
            Layer(width, workload.num_heads, workload.hidden) for _ in range(workload.num_layers)
        )
        self.final_norm = nn.RMSNorm(width, eps=1e-6)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        x = self.embedding_norm(functional.embedding(items, self.table)) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.final_norm(x)


def dense_loss(encoder: Encoder, items: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = functional.linear(encoder(items), encoder.table[1:])  # item 0 is padding: no class
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten() - 1)


def chunked_loss(encoder: Encoder, items: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.linear_cross_entropy(
        encoder(items).flatten(0, 1),
        encoder.table[1:],
        targets.flatten() - 1,
        # 512 rows at once, as ours: faster on CPUs than what it would choose by itself.
        options=nn.LinearCrossEntropyOptions(batch_chunk_size=512, chunking_method=None),
    )


def setup(options: dict[str, Any]):
    workload, dtype = Workload(**options["workload"]), options.get("dtype", "float32")
    torch.manual_seed(0)
    encoder = Encoder(workload)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3, betas=(0.9, 0.98), fused=True)
    if options["loss"] == "chunked":
        # The chunked loss takes no part in compilation: around it, compile what can be.
        loss = chunked_loss
        if options["compile"]:
            encoder.compile()
    else:
        loss = torch.compile(dense_loss) if options["compile"] else dense_loss
    sequences = torch.from_numpy(workload.sequences()).long()
    items, targets = sequences[:, :-1].contiguous(), sequences[:, 1:].contiguous()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            value = loss(encoder, items, targets)
        value.backward()
        optimizer.step()
        return float(value.detach())

    return Work(step, {"dtype": dtype, "flops": encoder_step(workload)})


if __name__ == "__main__":
    serve(setup, ("torch",))
