"""Decoder-only language model: Llama (Touvron et al. 2023), and by its config Qwen, Gemma or GPT-2."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from user_llm.models.attention import Cache, Context, softcap
from user_llm.models.layers import NormOptions, RopeScaling, lookup, make_norm, normal, parameter, round_product
from user_llm.models.lora import LoraConfig
from user_llm.models.stack import CrossBlocks, StackConfig, apply_layers, init_layers


@dataclass(frozen=True)
class LanguageModelConfig:
    """Shape and numerics; the defaults make a Llama, and `checkpoints/families.py` says what makes the others.

    Attributes:
      max_length: the longest sequence it was trained for, in tokens.
      activation, gated, norm: keys of `layers.ACTIVATIONS` and `layers.NORMS`; is the MLP gated?
      post_norms: norms also behind attention and MLP, before the residual adds (Gemma 2, 3).
      qk_norm: norms over each head's query and key, before they are rotated (Qwen 3, Gemma 3).
      query_scale: of the scores; None is head_dim ** -0.5.
      attention_softcap, final_softcap: bounds of the scores and of the logits (Gemma 2).
      embedding_scale: multiplies token embeddings, rounded to the compute dtype (Gemma: √width).
      learned_positions: a table of `max_length` positions in place of rotary ones (GPT-2).
      sliding_window, local_layers, local_rope_theta: see `StackConfig` (Gemma 2, 3).
      lora: adapters of every layer; None is the model as it is.
    """

    vocab_size: int
    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    max_length: int = 2048
    scan_layers: bool = False
    remat: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"
    activation: str = "silu"
    gated: bool = True
    norm: str = "rms"
    post_norms: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    query_scale: float | None = None
    attention_softcap: float | None = None
    final_softcap: float | None = None
    embedding_scale: float = 1.0
    learned_positions: bool = False
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None
    local_layers: tuple[bool, ...] = ()
    local_rope_theta: float | None = None
    lora: LoraConfig | None = None

    @property
    def stack(self) -> StackConfig:
        return StackConfig(
            num_layers=self.num_layers,
            width=self.width,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            hidden=self.hidden,
            activation=self.activation,
            gated=self.gated,
            norm_eps=self.norm_eps,
            rope_theta=None if self.learned_positions else self.rope_theta,
            dropout=0.0,
            scan_layers=self.scan_layers,
            remat=self.remat,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            width_axis="embed",
            hidden_axis="mlp",
            norm=self.norm,
            post_norms=self.post_norms,
            qk_norm=self.qk_norm,
            qkv_bias=self.qkv_bias,
            output_bias=self.output_bias,
            mlp_bias=self.mlp_bias,
            query_scale=self.query_scale,
            attention_softcap=self.attention_softcap,
            rope_scaling=self.rope_scaling,
            sliding_window=self.sliding_window,
            local_layers=self.local_layers,
            local_rope_theta=self.local_rope_theta,
            lora=self.lora,
        )


def causal_mask(valid: jax.Array) -> jax.Array:
    """bool [B, T, T]: query t sees key s when s ≤ t and token s is `valid` (bool [B, T])."""
    length = valid.shape[-1]
    return jnp.tril(jnp.ones((length, length), bool)) & valid[:, None, :]


class LanguageModel(nnx.Module):
    """Tokens in, hidden states out; logits are a separate step, since few callers need all of them."""

    def __init__(self, config: LanguageModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        table = (normal(1.0 / math.sqrt(config.width)), (config.vocab_size, config.width), ("vocab", "embed"))
        self.embedding_VD = parameter(rngs, *table, config.param_dtype)
        if config.learned_positions:
            positions = (normal(0.02), (config.max_length, config.width), (None, "embed"))
            self.position_TD = parameter(rngs, *positions, config.param_dtype)
        self.layers = init_layers(config.stack, rngs=rngs)
        norm = NormOptions(epsilon=config.norm_eps, param_dtype=config.param_dtype, rngs=rngs)
        self.final_norm = make_norm(config.norm, config.width, **norm)
        if not config.tie_embeddings:
            self.head_VD = parameter(rngs, *table, config.param_dtype)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        *,
        cache: Cache | None = None,
        offset: int | jax.Array = 0,
        cross: CrossBlocks | None = None,
        context: Context | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """`read` of the embeddings of `tokens` int [B, T]."""
        return self.read(self.embed(tokens), positions, mask, cache=cache, offset=offset, cross=cross, context=context)

    def lower(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        end: int,
        *,
        cache: Cache | None = None,
        offset: int | jax.Array = 0,
    ) -> tuple[jax.Array, Cache | None]:
        """The states [B, T, D] that layer `end` reads, and the updated cache (`init_cache` with this `end`).

        The arguments are those of `__call__`; `read` with `first=end` goes on from there.
        """
        x = self._placed(self.embed(tokens), positions)
        return apply_layers(self.layers, self.config.stack, x, positions, mask, cache=cache, offset=offset, end=end)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Embeddings [..., D] of `tokens` int [...], as `read` takes them; NaN for an id outside the vocabulary."""
        x = lookup(self.embedding_VD, tokens, self.config.dtype)
        return round_product(x * jnp.asarray(self.config.embedding_scale, x.dtype))

    def read(
        self,
        x_BTD: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        *,
        cache: Cache | None = None,
        offset: int | jax.Array = 0,
        cross: CrossBlocks | None = None,
        context: Context | None = None,
        first: int = 0,
    ) -> tuple[jax.Array, Cache | None]:
        """Hidden states [B, T, D] (after the final norm) and the updated cache.

        Args:
          x_BTD: embeddings of tokens (`embed`), or of anything else the model shall read as such. Above layer 0, the
            states that layer `first` reads (`lower`).
          positions: int [B, T], counted in tokens from 0; a learned position from `max_length` on gives NaN.
          mask: bool [B, T, S], the key slots each query sees; S = T without a cache, else the cache's length.
            It decides who sees whom, and local layers leave out of it what is too many positions away: beams
            may share the T axis, all at one position, each seeing its own ancestors.
          cache: from `init_cache`; the T new keys and values go to slots offset … offset + T - 1 (offset may
            be traced) before any query looks.
          cross, context: the connector's blocks and their users; None is the language model alone.
          first: the first layer that runs; the cache is one of `init_cache` with this `first`.
        """
        x = x_BTD.astype(self.config.dtype) if first else self._placed(x_BTD, positions)
        x, cache = apply_layers(
            self.layers,
            self.config.stack,
            x,
            positions,
            mask,
            cache=cache,
            offset=offset,
            cross=cross,
            context=context,
            first=first,
        )
        return self.final_norm(x), cache

    def _placed(self, x_BTD: jax.Array, positions: jax.Array) -> jax.Array:
        """Embeddings at their learned positions, where the model has such."""
        x = x_BTD.astype(self.config.dtype)
        return x + lookup(self.position_TD, positions, self.config.dtype) if self.config.learned_positions else x

    def output_table(self) -> jax.Array:
        """[V, D]: logits are hidden states times its transpose."""
        return (self.embedding_VD if self.config.tie_embeddings else self.head_VD)[...]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 [..., V] of hidden states [..., D]."""
        table = self.output_table().astype(self.config.dtype)
        logits = jnp.einsum("...D,VD->...V", hidden, table, preferred_element_type=jnp.float32)
        return logits if self.config.final_softcap is None else softcap(logits, self.config.final_softcap)

    def init_cache(
        self, batch: int, length: int, context: Context | None = None, *, first: int = 0, end: int | None = None
    ) -> Cache:
        """Empty keys and values of `length` slots for `batch` rows; a `context` of cross-attention takes none.

        Of layers `first` … `end - 1`; `end` None is the last.
        """
        del context
        config = self.config
        layers = (config.num_layers if end is None else end) - first
        shape = (layers, batch, length, config.num_kv_heads, config.head_dim)
        cache = {name: jnp.zeros(shape, config.dtype) for name in ("key", "value")}
        if config.local_layers:
            cache["position"] = jnp.zeros((batch, length), jnp.int32)
        return cache
