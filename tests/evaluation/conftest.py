"""Made-up windows, a catalogue with two titles of equal tokens, and a small model whose answers differ clearly."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.models import parameters
from user_llm.models.autoregressive_encoder import AutoregressiveEncoder, EncoderConfig
from user_llm.models.cross_attention import CrossAttention, CrossAttentionConfig
from user_llm.models.language_model import LanguageModel, LanguageModelConfig
from user_llm.models.model import Model
from user_llm.models.user_llm import UserLLM
from user_llm.parallel.mesh import one_device

EOS, VOCABULARY, SLOTS, RATINGS = 2, 9, 5, 5
# By item, from 1. Items 2, 5 and 9 are one hypothesis, 3 and 8 another.
TITLES = [(3, 4), (5,), (6, 7, 8), (3,), (5,), (4, 4), (8, 3), (6, 7, 8), (5,), (7,), (8, 8), (4,)]
ITEMS = len(TITLES)
CATEGORIES = np.arange(ITEMS + 1)[:, None] % 4


@dataclass(frozen=True)
class Windows:
    """One window a user, with padding on the left of some."""

    count: int

    def __len__(self) -> int:
        return self.count

    def gather(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        generator = np.random.default_rng(0)
        draw = lambda high, *shape: generator.integers(1, high + 1, (self.count, *shape)).astype(np.int32)  # noqa: E731
        item, rating = draw(ITEMS, SLOTS), draw(RATINGS, SLOTS)
        missing = np.arange(SLOTS) < generator.integers(0, SLOTS - 1, (self.count, 1))
        item[missing] = rating[missing] = 0
        batch = {
            "user": np.arange(self.count, dtype=np.int32),
            "history/item": item,
            "history/rating": rating,
            "label/item": draw(ITEMS),
            "label/rating": draw(RATINGS),
            "prompt_tokens": np.concatenate([np.ones((self.count, 1), np.int32), 2 + draw(6, 2)], axis=1),
            "prompt_lengths": draw(3),
        }
        return {key: value[ids] for key, value in batch.items()}


def build_encoder(rngs: nnx.Rngs) -> AutoregressiveEncoder:
    config = EncoderConfig(max_length=SLOTS, num_layers=1, width=8, num_heads=2, hidden=12)
    return AutoregressiveEncoder(config, item_categories=CATEGORIES, num_categories=3, num_ratings=RATINGS, rngs=rngs)


_LLM = LanguageModelConfig(
    vocab_size=VOCABULARY, num_layers=1, width=12, num_heads=2, num_kv_heads=1, head_dim=6, hidden=16
)


def build_user_llm(rngs: nnx.Rngs) -> UserLLM:
    connector = CrossAttention(CrossAttentionConfig(every=1, num_heads=2, head_dim=6, hidden=16), _LLM, 8, rngs=rngs)
    return UserLLM(build_encoder(rngs), None, connector, LanguageModel(_LLM, rngs=rngs))


def _text_prompt(rngs: nnx.Rngs) -> UserLLM:
    return UserLLM(None, None, None, LanguageModel(_LLM, rngs=rngs))


def lively(build: parameters.Builder) -> Model:
    """Gates open, logits large. NumPy's values, to spare compilations."""
    graphdef, shapes, buffers = parameters.split(parameters.abstract(build))
    generator = np.random.default_rng(1)
    values = {path: jnp.asarray(generator.normal(size=v.shape) * 0.7, v.dtype) for path, v in shapes.items()}
    return Model(graphdef, values, dict.fromkeys(buffers, jnp.asarray(CATEGORIES, jnp.int32)), one_device())


def build_trie() -> CatalogueTrie:
    lengths = np.array([0, *map(len, TITLES)])
    tokens = np.zeros((ITEMS + 1, lengths.max()), np.int32)
    for item, title in enumerate(TITLES, start=1):
        tokens[item, : len(title)] = title
    return CatalogueTrie.build(tokens, lengths, EOS)


@pytest.fixture(scope="session")
def trie() -> CatalogueTrie:
    return build_trie()


@pytest.fixture(scope="session")
def windows() -> Windows:
    """Eleven: no multiple of a batch."""
    return Windows(11)


@pytest.fixture(scope="session")
def make_windows():
    return Windows


@pytest.fixture(scope="session")
def encoder() -> Model:
    return lively(build_encoder)


@pytest.fixture(scope="session")
def user_llm() -> Model:
    return lively(build_user_llm)


@pytest.fixture(scope="session")
def text_prompt() -> Model:
    """The language model alone."""
    return lively(_text_prompt)
