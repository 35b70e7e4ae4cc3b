"""The dual encoder (paper appendix A): a user tower with late fusion, a label tower, and their similarity."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from user_llm.models.event_embedding import FeatureEmbeddings
from user_llm.models.layers import MLP, RMSNorm, cast, fan_in, normal, parameter
from user_llm.models.perceiver import Perceiver, PerceiverConfig
from user_llm.models.user_encoder import EncoderConfig, History, HistoryTransformer

LABELS = ("item", "category")


@dataclass(frozen=True)
class DualEncoderConfig(EncoderConfig):
    """Dims of each feature's Transformer, and how they are fused into `num_outputs` user embeddings.

    `label`: what the label tower embeds, the next "item" or its "category". `fusion_layers`: cross-attention layers.
    """

    num_outputs: int = 1
    label: str = "item"
    fusion_layers: int = 1

    def __post_init__(self):
        if self.label not in LABELS:
            raise ValueError(f"label {self.label!r} of the dual encoder: expected one of {LABELS}.")
        for name in ("num_outputs", "fusion_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of the dual encoder must be at least 1, got {getattr(self, name)}.")

    @property
    def fusion(self) -> PerceiverConfig:
        return PerceiverConfig(
            num_layers=self.fusion_layers,
            num_latents=self.num_outputs,
            num_heads=self.num_heads,
            hidden=self.hidden,
            scan_layers=self.scan_layers,
            remat=self.remat,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )


class UserTower(nnx.Module):
    """A Transformer a feature, each with its own embedding; fusion layers read all of them.

    The Transformers are bidirectional: there is one label, behind the history, so no slot needs to be kept from
    later ones. Fusion is a Perceiver over the slots of all features, the outputs its latents: it needs no pairing
    of slots between features, and gives as many embeddings as asked for.
    """

    def __init__(self, config: DualEncoderConfig, *, rngs: nnx.Rngs, **sizes):
        self.config = config
        self.embedding = FeatureEmbeddings(
            config.features, config.width, dtype=config.dtype, param_dtype=config.param_dtype, rngs=rngs, **sizes
        )
        for feature in config.features:
            setattr(self, f"{feature}_encoder", HistoryTransformer(config, rngs=rngs))
        self.fusion = Perceiver(config.fusion, config.width, rngs=rngs)

    def __call__(self, history: History, mask: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        features = self.config.features
        keys = [None] * len(features) if key is None else jax.random.split(key, len(features))
        sees = jnp.broadcast_to(mask[:, None, :], (*mask.shape, mask.shape[-1]))
        encoded = [
            getattr(self, f"{feature}_encoder").transform(self.embedding.embed(feature, history), mask, sees, key=key)
            for feature, key in zip(features, keys, strict=True)
        ]
        embeddings, _ = self.fusion(jnp.concatenate(encoded, axis=1), jnp.tile(mask, (1, len(features))))
        return embeddings


class LabelTower(nnx.Module):
    """A table of labels and an MLP: [..., U] of label ids int [...]."""

    def __init__(self, config: DualEncoderConfig, num_labels: int, *, rngs: nnx.Rngs):
        self.config = config
        width, param_dtype = config.width, config.param_dtype
        axes = ("items" if config.label == "item" else None, "user")
        self.label_VU = parameter(rngs, normal(0.02), (num_labels + 1, width), axes, param_dtype)


class DualEncoder(nnx.Module):
    """Two towers; only the user tower's embeddings go into a language model.

    Args:
      item_categories: int [I + 1, C], category ids of each item, 0 padded; row 0 is the padding item.
      num_categories, num_ratings: numbers of classes, the padding id 0 not counted.
    """

    def __init__(
        self,
        config: DualEncoderConfig,
        *,
        item_categories: np.ndarray,
        num_categories: int,
        num_ratings: int,
        rngs: nnx.Rngs,
    ):
        self.config = config

    def __call__(self, history: History, mask: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """User embeddings [B, n, U], n = `num_outputs`; zero for a user without events."""
        return self.user_tower(history, mask, key=key)

    def output_mask(self, mask: jax.Array) -> jax.Array:
        """bool [B, n]: all of a user's embeddings, or none of a user without events."""
        return jnp.broadcast_to(jnp.any(mask, axis=1, keepdims=True), (len(mask), self.config.num_outputs))
