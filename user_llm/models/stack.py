"""The one Transformer stack of encoder and language model: layers unrolled or scanned, remat or not."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from user_llm.errors import UserError
from user_llm.models.attention import Attention, Cache, Context, write_cache
from user_llm.models.layers import (
    MLP,
    NormOptions,
    RopeScaling,
    SublayerOptions,
    dropout,
    make_norm,
    rotary_angles,
    round_product,
    round_to_dtype,
)
from user_llm.models.lora import LoraConfig, add_lora
from user_llm.models.parameters import Module
from user_llm.models.sharding import shard


@dataclass(frozen=True)
class StackConfig:
    """What encoder and language model choose differently. `rope_theta` None: no rotary positions.

    Layers where `local_layers` is True see only the last `sliding_window` positions, their own among them; their
    rotary theta is `local_rope_theta`, without scaling, where it is given. Without `local_layers` all are global.
    """

    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden: int
    activation: str
    gated: bool
    norm_eps: float
    rope_theta: float | None
    dropout: float
    scan_layers: bool
    remat: bool
    dtype: str
    param_dtype: str
    width_axis: str
    hidden_axis: str
    norm: str = "rms"
    post_norms: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    query_scale: float | None = None
    attention_softcap: float | None = None
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None
    local_layers: tuple[bool, ...] = ()
    local_rope_theta: float | None = None
    lora: LoraConfig | None = None

    def __post_init__(self):
        if self.local_layers and len(self.local_layers) != self.num_layers:
            raise UserError(f"local_layers has {len(self.local_layers)} entries; num_layers is {self.num_layers}.")
        if bool(self.local_layers) != (self.sliding_window is not None):
            raise UserError(
                "sliding_window and local_layers belong together: got "
                f"sliding_window={self.sliding_window}, local_layers={self.local_layers}."
            )
        if self.local_rope_theta is not None and not self.local_layers:
            raise UserError(f"local_rope_theta ({self.local_rope_theta}) needs local_layers.")

    @property
    def output_scale(self) -> float:
        """Shrinks what each sublayer adds, so that their sum has unit variance (GPT-2's 1/√(2·layers))."""
        return 1.0 / math.sqrt(2 * self.num_layers)


class Layer(nnx.Module):
    """Pre-norm layer: x + attention(norm(x)), then x + mlp(norm(x)).

    With `post_norms` what each sublayer adds passes a norm of its own first (Gemma 2, 3).
    """

    attention_post_norm = mlp_post_norm = None

    def __init__(self, config: StackConfig, *, rngs: nnx.Rngs):
        self.config = config
        norm = NormOptions(epsilon=config.norm_eps, param_dtype=config.param_dtype, rngs=rngs)
        common = SublayerOptions(
            output_scale=config.output_scale,
            width_axis=config.width_axis,
            dtype=config.dtype,
            param_dtype=config.param_dtype,
            rngs=rngs,
        )
        self.attention_norm = make_norm(config.norm, config.width, **norm)
        self.attention = Attention(
            config.width,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            key_width=config.width,
            key_axis=config.width_axis,
            query_scale=config.query_scale,
            score_cap=config.attention_softcap,
            qk_norm=config.norm if config.qk_norm else None,
            norm_eps=config.norm_eps,
            qkv_bias=config.qkv_bias,
            output_bias=config.output_bias,
            **common,
        )
        self.mlp_norm = make_norm(config.norm, config.width, **norm)
        self.mlp = MLP(
            config.width,
            config.hidden,
            activation=config.activation,
            gated=config.gated,
            hidden_axis=config.hidden_axis,
            bias=config.mlp_bias,
            **common,
        )
        if config.post_norms:
            self.attention_post_norm = make_norm(config.norm, config.width, **norm)
            self.mlp_post_norm = make_norm(config.norm, config.width, **norm)
        if config.lora is not None:
            add_lora(config.lora, self.attention, self.mlp, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        index: int | jax.Array,
        mask: jax.Array,
        angles: tuple[jax.Array, jax.Array] | None,
        *,
        cache: Cache | None,
        offset: int | jax.Array,
        key: jax.Array | None,
    ) -> tuple[jax.Array, Cache | None]:
        """[B, T, D] → [B, T, D] and the cache, in which this is layer `index`."""
        normed = self.attention_norm(x)
        keys, values = self.attention.keys_values(normed, angles)
        if cache is not None:
            cache = write_cache(cache, index, offset, keys, values)
            keys, values = cache["key"][index], cache["value"][index]
        attention_key, mlp_key = (None, None) if key is None else jax.random.split(key)
        rate = self.config.dropout
        attended = self.attention(normed, keys, values, mask, angles)
        if self.attention_post_norm is not None:
            attended = round_product(self.attention_post_norm(attended))
        x = shard(x + dropout(attended, rate, attention_key), "batch", ...)
        transformed = self.mlp(self.mlp_norm(x))
        if self.mlp_post_norm is not None:
            transformed = round_product(self.mlp_post_norm(transformed))
        x = shard(x + dropout(transformed, rate, mlp_key), "batch", ...)
        return round_to_dtype(x), cache


def repeat(make: Callable[[nnx.Rngs], Module], count: int, *, scan: bool, rngs: nnx.Rngs) -> Module | nnx.List[Module]:
    """`count` modules: an `nnx.List`, or (scan) one module whose parameters have a leading `layers` axis."""
    if not scan:
        return nnx.List([make(rngs) for _ in range(count)])
    stacked = nnx.split_rngs(splits=count)(nnx.vmap(make, in_axes=(0,), out_axes=0))(rngs)
    for variable in jax.tree.leaves(stacked, is_leaf=lambda node: isinstance(node, nnx.Variable)):
        variable.set_metadata(logical_axes=("layers", *variable.logical_axes))
    return stacked


def init_layers(config: StackConfig, *, rngs: nnx.Rngs) -> nnx.Module:
    """The layers `apply_layers` runs, in the layout the config chooses.

    Raises:
      UserError: the layers are scanned, and some of them have adapters while others have none.
    """
    first = 0 if config.lora is None else config.lora.first_layer
    if not first:
        return repeat(lambda rngs: Layer(config, rngs=rngs), config.num_layers, scan=config.scan_layers, rngs=rngs)
    if first >= config.num_layers:
        raise UserError(f"lora.first_layer is {first}; this model has layers 0 to {config.num_layers - 1}.")
    if config.scan_layers:
        raise UserError(f"lora.first_layer is {first}, but scanned layers are all alike: set scan_layers=False.")
    plain = dataclasses.replace(config, lora=None)
    configs = [plain] * first + [config] * (config.num_layers - first)
    return nnx.List([Layer(config, rngs=rngs) for config in configs])


class View(NamedTuple):
    """What a layer's attention looks through: its mask bool [B, T, S] and the angles of its rotary positions."""

    mask: jax.Array
    angles: tuple[jax.Array, jax.Array] | None


def _views(
    config: StackConfig, positions: jax.Array, key_positions: jax.Array, mask: jax.Array
) -> tuple[View, View | None]:
    """The view of the global layers, and of the local ones where there are any."""
    angles = None
    if config.rope_theta is not None:
        angles = rotary_angles(positions, config.head_dim, config.rope_theta, config.rope_scaling)
    if config.sliding_window is None:
        return View(mask, angles), None
    near = positions[:, :, None] - key_positions[:, None, :] < config.sliding_window
    local_angles = angles
    if config.local_rope_theta is not None:
        local_angles = rotary_angles(positions, config.head_dim, config.local_rope_theta)
    return View(mask, angles), View(mask & near, local_angles)


class CrossBlocks(Protocol):
    """Blocks between the layers, g before layer first_layer + g · every; `blocks` has the layout of the layers."""

    first_layer: int
    every: int
    num_blocks: int

    @property
    def blocks(self) -> nnx.Module: ...


def apply_layers(
    layers: nnx.Module,
    config: StackConfig,
    x: jax.Array,
    positions: jax.Array,
    mask: jax.Array,
    *,
    cache: Cache | None = None,
    offset: int | jax.Array = 0,
    cross: CrossBlocks | None = None,
    context: Context | None = None,
    key: jax.Array | None = None,
    first: int = 0,
    end: int | None = None,
) -> tuple[jax.Array, Cache | None]:
    """Runs the layers of `init_layers`, and the blocks of `cross` in between when there is a `context`.

    Args:
      x: [B, T, D] in the compute dtype; positions: int [B, T], for rotary positions.
      mask: bool [B, T, S], the key slots each query sees; S = T without a cache, else the cache's length.
      cache: keys and values [layers, B, S, K, H] of the layers that run, and positions [B, S] where the stack has
        local layers; the T new ones go to slots offset … offset + T - 1.
      cross: a `CrossAttention`; context: its `Context` of the batch's users.
      key: of dropout; None runs without.
      first, end: layers `first` … `end - 1` run, `x` being what layer `first` and the block before it read; `end` None
        is the last layer. A context is read by all its blocks, none of which may be before a layer that does not run.
    Returns:
      [B, T, D] (before any final norm) and the cache, None when none came in.
    """
    key_positions = positions
    if cache is not None and config.local_layers:
        key_positions = jax.lax.dynamic_update_slice(cache["position"], positions.astype(jnp.int32), (0, offset))
        cache = {**cache, "position": key_positions}
    global_view, local_view = _views(config, positions, key_positions, mask)
    keys = None if key is None else jax.random.split(key, config.num_layers)

    def layer_step(carry, step):
        layer, index, local, key = step
        x, cache = carry
        view = global_view
        if local_view is not None:
            view = jax.tree.map(lambda near, far: jnp.where(local, near, far), local_view, global_view)
        return layer(x, index, view.mask, view.angles, cache=cache, offset=offset, key=key), None

    known = None if context is None else context.mask

    def block_step(x, step):
        block, key, value = step
        return block(x, key, value, known)

    if config.remat:
        layer_step, block_step = jax.checkpoint(layer_step), jax.checkpoint(block_step)
    # Rounded here and after each layer, a block whose gates are zero passes on the very bits it gets.
    carry = (round_to_dtype(shard(x, "batch", ...)), cache)
    run = _scan if config.scan_layers else _unroll
    end = config.num_layers if end is None else end
    return run(config, layer_step, block_step, carry, layers, keys, cross, context, first, end)


def _unroll(config, layer_step, block_step, carry, layers, keys, cross, context, first, end):
    """Runs a list of layers, and of blocks, one after the other; the arguments are those of `_scan`."""
    before = {}
    if context is not None:
        before = {cross.first_layer + block * cross.every: block for block in range(cross.num_blocks)}
    for index in range(first, end):
        if index in before:
            block = before[index]
            x, cache = carry
            carry = (block_step(x, (cross.blocks[block], context.key[block], context.value[block])), cache)
        local = config.local_layers[index] if config.local_layers else None
        key = None if keys is None else keys[index]
        carry, _ = layer_step(carry, (layers[index], index - first, local, key))
    return carry


def _scan(config, layer_step, block_step, carry, layers, keys, cross, context, first, end):
    """Runs stacked layers: those before any block, groups of one block and the `every` layers behind it, then the rest.

    Args:
      layer_step: (carry, (layer, its place in the cache, is it local?, dropout key)) → (carry, None), carry being
        (x, cache).
      block_step: (x, (block, its context's keys, values)) → x.
    """

    def group_step(carry, step):
        block, layers = step
        x, cache = carry
        return jax.lax.scan(layer_step, (block_step(x, block), cache), layers)

    local = jnp.array(config.local_layers) if config.local_layers else None
    steps = (layers, jnp.arange(config.num_layers) - first, local, keys)

    def run(carry, start: int, stop: int):
        if start == stop:
            return carry
        return jax.lax.scan(layer_step, carry, jax.tree.map(lambda leaf: leaf[start:stop], steps))[0]

    if context is None:
        return run(carry, first, end)
    shape = (cross.num_blocks, cross.every)
    lead, grouped = cross.first_layer, cross.first_layer + cross.num_blocks * cross.every
    groups = jax.tree.map(lambda leaf: leaf[lead:grouped].reshape(*shape, *leaf.shape[1:]), steps)
    carry, _ = jax.lax.scan(group_step, run(carry, first, lead), ((cross.blocks, context.key, context.value), groups))
    return run(carry, grouped, end)
