"""A small contextualised model, and made-up windows that carry the batches of every objective."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from user_llm.models import parameters
from user_llm.models.autoregressive_encoder import AutoregressiveEncoder, EncoderConfig
from user_llm.models.cross_attention import CrossAttention, CrossAttentionConfig
from user_llm.models.language_model import LanguageModel, LanguageModelConfig
from user_llm.models.user_llm import UserLLM

ITEMS, CATEGORIES, RATINGS, S, T, V = 11, 4, 5, 6, 7, 23
# Sets of none, one and two categories.
ITEM_CATEGORIES = np.array([[0, 0]] + [[1 + i % CATEGORIES, (i % 3 == 0) * (1 + (i + 1) % 4)] for i in range(ITEMS)])
ITEM_CATEGORIES[[4, 9]] = 0


def _build_encoder(rngs: nnx.Rngs, **options) -> AutoregressiveEncoder:
    config = EncoderConfig(max_length=S, num_layers=1, width=8, num_heads=2, hidden=12, **options)
    sizes = dict(num_categories=CATEGORIES, num_ratings=RATINGS)
    return AutoregressiveEncoder(config, item_categories=ITEM_CATEGORIES, **sizes, rngs=rngs)


def _build_user_llm(rngs: nnx.Rngs, *, scan_layers: bool = False, **of_encoder) -> UserLLM:
    llm = LanguageModelConfig(
        vocab_size=V,
        num_layers=1,
        width=12,
        num_heads=2,
        num_kv_heads=1,
        head_dim=6,
        hidden=16,
        tie_embeddings=False,
        final_softcap=2.0,
        scan_layers=scan_layers,
    )
    dims = CrossAttentionConfig(every=1, num_heads=2, head_dim=6, hidden=16)
    return UserLLM(
        _build_encoder(rngs, scan_layers=scan_layers, **of_encoder),
        None,
        CrossAttention(dims, llm, 8, rngs=rngs),
        LanguageModel(llm, rngs=rngs),
    )


def _lively(build: parameters.Builder) -> nnx.Module:
    """A model whose predictions differ clearly, gates open. NumPy's values, to spare compilations."""
    graphdef, shapes, buffers = parameters.split(parameters.abstract(build))
    generator = np.random.default_rng(0)
    values = {path: jnp.asarray(generator.normal(size=v.shape) * 0.6, v.dtype) for path, v in shapes.items()}
    assert all(path.endswith("item_categories") for path in buffers)  # of items alone there are none
    return parameters.merge(graphdef, values, dict.fromkeys(buffers, jnp.asarray(ITEM_CATEGORIES, jnp.int32)))


@dataclass(frozen=True)
class Examples:
    """A source of `count` examples: histories with padding on the left, texts with padding on the right."""

    count: int = 16

    def __len__(self) -> int:
        return self.count

    def gather(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        generator = np.random.default_rng(0)
        draw = lambda high, shape: generator.integers(1, high, shape).astype(np.int32)  # noqa: E731
        rows = self.count
        item, rating, tokens = draw(ITEMS + 1, (rows, S + 1)), draw(RATINGS + 1, (rows, S + 1)), draw(V, (rows, T + 1))
        missing = np.arange(S + 1) < generator.integers(0, S, (rows, 1))
        item[missing] = rating[missing] = 0
        length = generator.integers(3, T + 1, (rows, 1))
        tokens[np.arange(T + 1) > length] = 0
        prompt = np.random.default_rng(1).integers(1, 4, (rows, 1))
        slot = np.arange(T) + 1 - prompt  # of the answer's tokens, which a batch has room for T - 2 of
        answer = (slot >= 0) & (slot < T - 2) & (np.arange(T) < length)
        batch = {
            "history/item": item[:, :-1],
            "history/rating": rating[:, :-1],
            "label/item": item[:, -1],
            "label/rating": rating[:, -1],
            "decoder_input_tokens": tokens[:, :-1],
            "decoder_target_tokens": tokens[:, 1:],
            "decoder_positions": np.tile(np.arange(T, dtype=np.int32), (rows, 1)),
            "decoder_loss_weights": answer * generator.uniform(0.5, 1.5, (rows, T)).astype(np.float32),
            "prompt_tokens": tokens[:, :3],
            "prompt_lengths": prompt[:, 0].astype(np.int32),
            "dropped_events": generator.integers(0, 3, rows).astype(np.int32),
        }
        return {key: value[ids] for key, value in batch.items()}


@pytest.fixture(scope="session")
def build_encoder() -> Callable[..., AutoregressiveEncoder]:
    return _build_encoder


@pytest.fixture(scope="session")
def build_user_llm() -> Callable[..., UserLLM]:
    return _build_user_llm


@pytest.fixture(scope="session")
def lively() -> Callable[[parameters.Builder], nnx.Module]:
    return _lively


@pytest.fixture(scope="session")
def examples() -> Examples:
    return Examples()


@pytest.fixture(scope="session")
def batch(examples) -> dict[str, np.ndarray]:
    """All examples at once."""
    return examples.gather(np.arange(len(examples)))


@pytest.fixture(scope="session")
def with_first_tokens():
    """batch → its rows two by two as texts of one history; and the same, the first of each learnt up to one token."""

    def make(batch):
        names = [name for name in batch if name.startswith(("decoder_", "prompt_", "dropped_"))]
        half = len(batch["prompt_lengths"]) // 2
        plain = {name: values.reshape(half, 2, *values.shape[1:]) if name in names else values[:half]
                 for name, values in batch.items()}  # fmt: skip
        plain["target/item"] = batch["label/item"].reshape(half, 2)
        decoder, width = [name for name in names if name.startswith("decoder_")], plain["prompt_tokens"].shape[2]
        some = plain | {name: plain[name][:, 1:] for name in decoder}
        some |= {f"first/{name}": plain[name][:, :1, :width] for name in decoder}
        weights = plain["decoder_loss_weights"].copy()
        places = np.arange(weights.shape[2])
        weights[:, 0] *= places == plain["prompt_lengths"][:, 0, None] - 1
        return {**plain, "decoder_loss_weights": weights}, some

    return make
