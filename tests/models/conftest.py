"""Small models, and the same parameters in both layouts of a stack."""

import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from user_llm.models import parameters
from user_llm.models.autoregressive_encoder import AutoregressiveEncoder, EncoderConfig
from user_llm.models.cross_attention import CrossAttention, CrossAttentionConfig
from user_llm.models.language_model import LanguageModel, LanguageModelConfig
from user_llm.models.perceiver import Perceiver, PerceiverConfig
from user_llm.models.soft_prompt import SoftPrompt, SoftPromptConfig
from user_llm.models.user_llm import UserLLM

ITEM_CATEGORIES = np.array([[0, 0], [1, 0], [2, 3], [3, 2], [0, 0], [3, 1]])


def _build(
    rngs: nnx.Rngs,
    *,
    every: int = 2,
    first_layer: int = 0,
    dropout: float = 0.0,
    soft_prompt: int | None = None,
    perceiver: bool = False,
    family: Mapping[str, Any] = MappingProxyType({}),
    **numerics,
) -> UserLLM:
    """Three layers, so that blocks before every second one leave a last layer over.

    `soft_prompt`, the length of a task prompt, replaces them; `family` is what makes the language model no Llama.
    """
    dims = dict(vocab_size=40, num_layers=3, width=16, num_heads=4, num_kv_heads=2, head_dim=4, hidden=24)
    llm = LanguageModelConfig(**dims, **family, **numerics)
    encoder = EncoderConfig(max_length=7, num_layers=2, width=8, num_heads=2, hidden=16, dropout=dropout, **numerics)
    sizes = dict(item_categories=ITEM_CATEGORIES, num_categories=3, num_ratings=5)
    latents = PerceiverConfig(num_layers=2, num_latents=3, num_heads=2, hidden=12, **numerics)
    cross = CrossAttentionConfig(every=every, num_heads=2, head_dim=4, hidden=16, first_layer=first_layer)
    return UserLLM(
        AutoregressiveEncoder(encoder, **sizes, rngs=rngs),
        Perceiver(latents, 8, rngs=rngs) if perceiver else None,
        CrossAttention(cross, llm, 8, rngs=rngs)
        if soft_prompt is None
        else SoftPrompt(SoftPromptConfig(soft_prompt), llm, 8, rngs=rngs),
        LanguageModel(llm, rngs=rngs),
    )


def _trained(path: str, shape: jax.ShapeDtypeStruct) -> jax.Array:
    """Any values a trained parameter could have: norms near 1, gates open. NumPy's, to spare compilations."""
    values = np.random.default_rng(zlib.crc32(path.encode())).normal(size=shape.shape)
    if path.endswith("scale_D"):
        values = 1 + 0.3 * values
    elif path.endswith("_gate_D"):
        values = np.copysign(0.4 + 0.1 * np.abs(values), values)
    else:
        values = values / math.sqrt(math.prod(shape.shape[:1]))
    return jnp.asarray(values, shape.dtype)


def _make_trained(build: parameters.Builder) -> nnx.Module:
    """The module `build` describes, with such values; its only buffers are the categories of the items."""
    graphdef, shapes, buffers = parameters.split(parameters.abstract(build))
    values = {path: _trained(path, shape) for path, shape in shapes.items()}
    assert all(path.endswith("item_categories") for path in buffers)
    return parameters.merge(graphdef, values, dict.fromkeys(buffers, jnp.asarray(ITEM_CATEGORIES, jnp.int32)))


def _make_user_llm(**options) -> UserLLM:
    return _make_trained(lambda rngs: _build(rngs, **options))


def _stack_layers(flat: parameters.Parameters) -> parameters.Parameters:
    """What an unrolled model calls `layers/0/x`, `layers/1/x`, … as the one `layers/x` of a scanned model."""
    stacks: dict[str, list[jax.Array]] = defaultdict(list)
    for path, value in flat.items():
        stacks["/".join(part for part in path.split("/") if not part.isdigit())].append(value)
    return {path: parts[0] if path in flat else jnp.stack(parts) for path, parts in stacks.items()}


def _with_parameters_of(unrolled: nnx.Module, other: nnx.Module) -> nnx.Module:
    """`other` holding the parameters of `unrolled`, stacked where its own layers are."""
    flat = parameters.split(unrolled)[1]
    graphdef, shapes, buffers = parameters.split(other)
    return parameters.merge(graphdef, flat if flat.keys() == shapes.keys() else _stack_layers(flat), buffers)


@pytest.fixture(scope="session")
def build_user_llm() -> Callable[..., UserLLM]:
    """The constructor itself, for what its initial values should be."""
    return _build


@pytest.fixture(scope="session")
def make_user_llm() -> Callable[..., UserLLM]:
    return _make_user_llm


@pytest.fixture(scope="session")
def make_trained() -> Callable[[parameters.Builder], nnx.Module]:
    return _make_trained


@pytest.fixture(scope="session")
def with_parameters_of() -> Callable[[nnx.Module, nnx.Module], nnx.Module]:
    return _with_parameters_of


@pytest.fixture(scope="session")
def stack_layers() -> Callable[[parameters.Parameters], parameters.Parameters]:
    return _stack_layers


@pytest.fixture(scope="session")
def user_llm() -> UserLLM:
    """A contextualised language model with open gates, layers unrolled."""
    return _make_user_llm()


@pytest.fixture(scope="session")
def history() -> dict[str, jax.Array]:
    """Three users: five events, two events, none."""
    item = jnp.array([[0, 0, 3, 1, 2, 5, 4], [0, 0, 0, 0, 0, 2, 2], [0] * 7])
    return {"item": item, "rating": jnp.where(item > 0, 1 + item % 5, 0)}


@pytest.fixture(scope="session")
def tokens() -> np.ndarray:
    return np.random.default_rng(3).integers(1, 40, (3, 6))
