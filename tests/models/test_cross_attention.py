"""The gated cross-attention block against plain NumPy."""

import math

import jax
import numpy as np
import pytest

from user_llm.models import parameters
from user_llm.models.cross_attention import GatedCrossBlock
from user_llm.models.language_model import LanguageModelConfig

WIDTH, CONTEXT, HEADS, H = 12, 8, 2, 4
MASK = np.array([[False, True, True], [True, True, True], [False] * 3])


@pytest.fixture(scope="module")
def block(make_trained) -> GatedCrossBlock:
    """Gates around ±0.45, whose tanh is 0.42: neither closed nor the same without it."""
    dims = dict(vocab_size=5, num_layers=2, width=WIDTH, num_heads=HEADS, num_kv_heads=HEADS, head_dim=H, hidden=10)
    stack = LanguageModelConfig(**dims).stack
    return make_trained(lambda rngs: GatedCrossBlock(stack, CONTEXT, rngs=rngs))


def norm(x, scale):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * scale


def naive(values, x, context):
    """x [T, D] of one user after the block, head by head and token by token, in float64; `context` [L, U] holds only
    what there is.
    """
    values = {path: np.asarray(value, np.float64) for path, value in values.items()}
    normed, attended = norm(x, values["attention_norm/scale_D"]), np.zeros_like(x)
    for token in range(len(x) if len(context) else 0):
        for head in range(HEADS):
            query = normed[token] @ values["attention/q_DNH"][:, head]
            scores = context @ values["attention/k_DKH"][:, head] @ query / math.sqrt(H)
            weights = np.exp(scores) / np.exp(scores).sum()
            mixed = weights @ (context @ values["attention/v_DKH"][:, head])
            attended[token] += mixed @ values["attention/o_NHD"][head]
    x = x + np.tanh(values["attention_gate_D"]) * attended
    normed = norm(x, values["mlp_norm/scale_D"])
    gate = normed @ values["mlp/gate_DF"]
    hidden = gate / (1 + np.exp(-gate)) * (normed @ values["mlp/up_DF"])
    return x + np.tanh(values["mlp_gate_D"]) * (hidden @ values["mlp/down_FD"])


def test_the_block_is_that_of_plain_numpy(block):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(3, 4, WIDTH)).astype(np.float32)
    context = generator.normal(size=(*MASK.shape, CONTEXT)).astype(np.float32)
    run = jax.jit(lambda block, x, context: block(x, *block.attention.keys_values(context), MASK))
    got = run(block, x, context)
    values = parameters.split(block)[1]
    for row, known in enumerate(MASK):
        np.testing.assert_allclose(got[row], naive(values, np.float64(x[row]), context[row, known]), atol=2e-5)
