"""The same frozen language model with cross-attention in PyTorch: `transformers`, and blocks that hooks put into it.

Gradients go into the blocks and the user encoder alone. Below the first block nothing needs one, and PyTorch keeps
nothing of it. As ours it computes logits where an answer is. In bfloat16 the frozen model is held in it, and autocast
decides for what trains, whose parameters stay float32.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from benchmarks.contenders.torch_encoder import Encoder
from benchmarks.llm_files import load_batches
from benchmarks.llm_workload import blocks_of, config_of, encoder_of, step_of
from benchmarks.protocol import Work, serve
from benchmarks.workload import Workload

ACTIVATIONS = {"silu": functional.silu, "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh")}


class Block(nn.Module):
    """Gated cross-attention [B, T, D] to user embeddings [B, S, U], all of them events."""

    def __init__(
        self, width: int, user_width: int, heads: int, head_dim: int, hidden: int, eps: float, activation: str
    ):
        super().__init__()
        self.heads, self.activation = heads, ACTIVATIONS[activation]
        self.attention_norm, self.mlp_norm = nn.RMSNorm(width, eps=eps), nn.RMSNorm(width, eps=eps)
        self.q = nn.Linear(width, heads * head_dim, bias=False)
        self.k = nn.Linear(user_width, heads * head_dim, bias=False)
        self.v = nn.Linear(user_width, heads * head_dim, bias=False)
        self.o = nn.Linear(heads * head_dim, width, bias=False)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.attention_gate = nn.Parameter(torch.zeros(width))
        self.mlp_gate = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor, users: torch.Tensor) -> torch.Tensor:
        split = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # noqa: E731
        query, key, value = split(self.q(self.attention_norm(x))), split(self.k(users)), split(self.v(users))
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + (torch.tanh(self.attention_gate) * self.o(mixed)).to(x.dtype)
        normed = self.mlp_norm(x)
        hidden = self.activation(self.gate(normed)) * self.up(normed)
        return x + (torch.tanh(self.mlp_gate) * self.down(hidden)).to(x.dtype)


class UserLLM(nn.Module):
    """A frozen language model whose layers first_layer, first_layer + every, … have a block before them.

    Args:
      language_model: a decoder of `transformers`.
      blocks: as many as it gets.
      encoder: of the users' items.
    """

    def __init__(
        self, language_model: PreTrainedModel, blocks: list[Block], encoder: Encoder, every: int, first_layer: int
    ):
        super().__init__()
        self.language_model, self.encoder = language_model.requires_grad_(False), encoder
        self.blocks = nn.ModuleList(blocks)
        self.users: torch.Tensor | None = None
        for place, block in enumerate(self.blocks):
            layer = language_model.model.layers[first_layer + place * every]
            layer.register_forward_pre_hook(lambda _, inputs, block=block: (block(inputs[0], self.users), *inputs[1:]))

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The mean loss of a batch's answers."""
        tokens = batch["decoder_input_tokens"]
        self.users = self.encoder(batch["history/item"])
        hidden = self.language_model.model(tokens, use_cache=False).last_hidden_state
        answer = tokens.shape[1] + 1 - batch["prompt_tokens"].shape[1]
        slots = batch["prompt_lengths"][:, None] - 1 + torch.arange(answer)
        hidden = hidden.gather(1, slots[..., None].expand(-1, -1, hidden.shape[-1]))
        logits = self.language_model.lm_head(hidden).float()
        targets, weights = (
            batch[name].gather(1, slots).flatten() for name in ("decoder_target_tokens", "decoder_loss_weights")
        )
        losses = functional.cross_entropy(logits.flatten(0, 1), targets, reduction="none")
        return (losses * weights).sum() / weights.sum()


def build(
    language_model: PreTrainedModel, config: ConfigDict, dims: Mapping[str, Any], encoder: Workload, first_layer: int
) -> UserLLM:
    """The model of our config with our `LanguageModelConfig` `dims`."""
    if dims["final_softcap"]:
        raise ValueError("soft-capped logits (Gemma 2) are not written here")
    sizes = blocks_of(config, dims, first_layer)
    made = [
        Block(
            *(dims["width"], encoder.width, sizes.num_heads, sizes.head_dim, sizes.hidden),
            *(dims["norm_eps"], dims["activation"]),
        )
        for _ in range(sizes.num_layers)
    ]
    return UserLLM(language_model, made, Encoder(encoder), config.integration.every, first_layer)


def tensors(batch: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """A batch of ours as PyTorch takes it."""
    return {
        name: torch.from_numpy(rows).long() if rows.dtype.kind == "i" else torch.from_numpy(rows)
        for name, rows in batch.items()
    }


def load(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """A GGUF file or a Hugging Face folder."""
    place = dict(gguf_file=path.name) if path.is_file() else {}
    folder = path.parent if path.is_file() else path
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **place).eval()


def setup(options: dict[str, Any]) -> Work:
    """`options`: overrides (of our config), folder (of `llm_files`), facts (theirs), first_layer."""
    logging.set_verbosity_error()
    config, facts, first_layer = config_of(options["overrides"]), options["facts"], options["first_layer"]
    dtype = config.compute.dtype
    raw = load_batches(Path(options["folder"]))
    batches = [tensors(batch) for batch in raw]
    torch.manual_seed(0)
    encoder = encoder_of(config, len(raw[0]["history/item"]), facts["num_items"])
    model = build(
        load(Path(facts["llm"]), getattr(torch, dtype)), config, facts["language_model"], encoder, first_layer
    )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)
    done = 0

    def step() -> float:
        nonlocal done
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(batches[done % len(batches)])
        loss.backward()
        nn.utils.clip_grad_norm_(trained, config.training.user_llm.clip_norm)
        optimizer.step()
        done += 1
        return float(loss.detach())

    dims = facts["language_model"]
    needed = step_of(config, dims, raw[0], vocabulary=dims["vocab_size"], first_layer=first_layer)
    counted = {"dtype": dtype, "flops": needed.flops(), "examples": needed.batch_size}
    return Work(step, {**counted, "tokens": needed.tokens, "vocabulary": needed.vocabulary})


if __name__ == "__main__":
    serve(setup, ("torch", "transformers"))
