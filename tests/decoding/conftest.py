"""A tiny contextualised model, and what it says of every short continuation by full forward passes alone."""

import itertools
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from user_llm.models.autoregressive_encoder import AutoregressiveEncoder, EncoderConfig
from user_llm.models.cross_attention import CrossAttention, CrossAttentionConfig
from user_llm.models.language_model import LanguageModel, LanguageModelConfig, causal_mask
from user_llm.models.user_llm import UserLLM

VOCABULARY, EOS, MAX_PROMPT, MAX_PREFIX = 7, 2, 5, 4
Prefix = tuple[int, ...]


@dataclass(frozen=True)
class Truth:
    """A model, three users' prompts of different lengths, and the truth about their continuations.

    `next_log_probs[row][prefix]` is float64 `[V]`, log p(next token | prompt, prefix) for every prefix without
    EOS of up to MAX_PREFIX tokens: one uncached causal forward pass over the prompt and the prefix behind it.
    """

    model: UserLLM
    prompts: np.ndarray  # [3, P]; one holds a word 0, and another word stands behind the shorter ones
    lengths: np.ndarray  # [3]
    context: Any
    next_log_probs: list[dict[Prefix, np.ndarray]]
    eos_id: int = EOS
    rows: range = field(default=range(3))

    def log_prob(self, row: int, tokens: Prefix, within: Collection[Prefix] | None = None) -> float:
        """Of tokens behind the prompt; each weighed against all, or `within` titles against what these go on with."""
        total = 0.0
        for n, token in enumerate(tokens):
            log_probs = self.next_log_probs[row][tokens[:n]]
            following = {title[n] for title in within if title[:n] == tokens[:n]} if within else set()
            total += log_probs[token] - (np.log(sum(np.exp(log_probs[t]) for t in following)) if within else 0.0)
        return total


@jax.jit
def _logits(model, tokens, context):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = model(tokens, positions, causal_mask(jnp.ones(tokens.shape, bool)), context=context)
    return model.logits(hidden)


def _next_log_probs(model, prompt: list[int], context) -> dict[Prefix, np.ndarray]:
    others = [token for token in range(VOCABULARY) if token != EOS]
    prefixes = [p for n in range(MAX_PREFIX + 1) for p in itertools.product(others, repeat=n)]
    tokens = np.zeros((len(prefixes), MAX_PROMPT + MAX_PREFIX), np.int32)  # what comes behind is not seen
    tokens[:, : len(prompt)] = prompt
    for row, prefix in zip(tokens, prefixes, strict=True):
        row[len(prompt) : len(prompt) + len(prefix)] = prefix
    context = context._replace(
        key=jnp.repeat(context.key, len(prefixes), axis=1),
        value=jnp.repeat(context.value, len(prefixes), axis=1),
        mask=jnp.repeat(context.mask, len(prefixes), axis=0),
    )
    logits = np.asarray(_logits(model, tokens, context), np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return {prefix: log_probs[n, len(prompt) + len(prefix) - 1] for n, prefix in enumerate(prefixes)}


@pytest.fixture(scope="session")
def truth() -> Truth:
    rngs = nnx.Rngs(0)
    language_config = LanguageModelConfig(
        vocab_size=VOCABULARY, num_layers=2, width=16, num_heads=4, num_kv_heads=2, head_dim=4, hidden=24
    )
    language_model = LanguageModel(language_config, rngs=rngs)
    language_model.embedding_VD[...] *= 3  # predictions that differ clearly
    encoder_config = EncoderConfig(num_layers=1, width=8, num_heads=2, hidden=8, max_length=4)
    encoder = AutoregressiveEncoder(
        encoder_config, item_categories=np.ones((6, 1), int), num_categories=1, num_ratings=5, rngs=rngs
    )
    connector = CrossAttention(
        CrossAttentionConfig(every=1, num_heads=2, head_dim=4, hidden=8), language_config, 8, rngs=rngs
    )
    for block in connector.blocks:
        block.attention_gate_D[...] = jnp.full_like(block.attention_gate_D[...], 2.0)
        block.mlp_gate_D[...] = jnp.full_like(block.mlp_gate_D[...], 2.0)
    model = UserLLM(encoder, None, connector, language_model)
    items = jnp.array([[1, 2, 3, 4], [0, 5, 2, 1], [0, 0, 0, 5]])
    context = model.encode({"item": items, "rating": items}, items > 0)
    prompts = [[1, 4, 3, 6, 5], [1, 5], [1, 6, 0]]
    padded = np.full((3, MAX_PROMPT), 3, np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    users = [
        jax.tree.map(lambda x, r=row: x[:, r : r + 1] if x.ndim == 5 else x[r : r + 1], context) for row in range(3)
    ]
    table = [_next_log_probs(model, prompt, user) for prompt, user in zip(prompts, users, strict=True)]
    return Truth(model, padded, np.array([5, 2, 3], np.int32), context, table)


@dataclass(frozen=True)
class Catalogue:
    titles: dict[int, Prefix]  # by item, without EOS

    @property
    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """What `CatalogueTrie.build` takes."""
        lengths = np.array([0] + [len(title) for title in self.titles.values()])
        tokens = np.zeros((len(lengths), MAX_PREFIX), np.int32)
        for item, title in self.titles.items():
            tokens[item, : len(title)] = title
        return tokens, lengths


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    """44 titles of 1 to 4 tokens, 0 among them: some equal, some the beginning of others. Four differ in their fourth
    token alone, so that the tree is wider there than one level above."""
    rng = np.random.default_rng(1)
    titles = [tuple(rng.choice([0, 1, 3, 4, 5, 6], size=rng.integers(1, 4)).tolist()) for _ in range(40)]
    assert len(set(titles)) < len(titles)
    titles += [(1, 3, 4, last) for last in (6, 0, 5, 3)]
    return Catalogue(dict(enumerate(titles, start=1)))
