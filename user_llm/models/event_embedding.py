"""Events as vectors: one embedding a feature, concatenated and projected (paper 3.1)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from user_llm.models.layers import Buffer, cast, fan_in, lookup, normal, parameter

FEATURES = ("item", "category", "rating")
# Small, so that the tied softmax starts near uniform: in 600 steps on ml-latest-small the loss fell to 6.75, from
# 1/√width (unit-variance logits) only to 7.15.
TABLE_STDDEV = 0.02


class EventEmbedding(nnx.Module):
    """Embeds the features of events, and owns the tables that the tied softmaxes read again.

    Categories are no part of the batch: an item has a set of them, looked up here by item, and embedded as the
    mean over the set. Id 0 of every feature is padding; the tables have a row for it.
    """

    def __init__(
        self,
        features: tuple[str, ...],
        width: int,
        *,
        item_categories: np.ndarray,
        num_categories: int,
        num_ratings: int,
        dtype: str,
        param_dtype: str,
        rngs: nnx.Rngs,
    ):
        unknown = [feature for feature in features if feature not in FEATURES]
        if unknown or "item" not in features or len(set(features)) != len(features):
            raise ValueError(f"features {features}: expected 'item' and any others of {FEATURES}, each once.")
        self.features, self.dtype = tuple(features), dtype
        sizes = {"item": len(item_categories), "category": num_categories + 1, "rating": num_ratings + 1}
        for feature in features:
            axes = ("items" if feature == "item" else None, "user")
            table = parameter(rngs, normal(TABLE_STDDEV), (sizes[feature], width), axes, param_dtype)
            setattr(self, f"{feature}_VU", table)
        joined = len(features) * width
        self.projection_EU = parameter(rngs, fan_in(joined), (joined, width), ("feature", "user"), param_dtype)
        if "category" in features:
            if item_categories.max(initial=0) > num_categories:
                raise ValueError(f"item_categories holds {item_categories.max()}; num_categories is {num_categories}.")
            self.item_categories = Buffer(jnp.asarray(item_categories, jnp.int32), logical_axes=("items", None))

    def table(self, feature: str) -> nnx.Param:
        """The embedding table [V, U] of a feature."""
        if feature not in self.features:
            raise ValueError(f"This encoder has no feature {feature!r}; it has {self.features}.")
        return getattr(self, f"{feature}_VU")

    def __call__(self, history: dict[str, jax.Array]) -> jax.Array:
        """[B, S, U] of events given as `item` and (where it is a feature) `rating`, int [B, S]."""
        parts = []
        for feature in self.features:
            if feature == "category":
                parts.append(self._categories(history["item"]))
            else:
                parts.append(lookup(self.table(feature), history[feature], self.dtype))
        return jnp.concatenate(parts, axis=-1) @ cast(self.projection_EU, self.dtype)

    def _categories(self, item: jax.Array) -> jax.Array:
        """[B, S, U]: the mean embedding of each item's categories; zero for an item that has none."""
        table = self.table("category")
        ids = jnp.take(self.item_categories[...], item, axis=0)
        # Set membership times the table: a gather of every category's row would move C times the memory.
        member = jax.nn.one_hot(ids, table.shape[0], dtype=self.dtype).sum(axis=-2).at[..., 0].set(0)
        count = jnp.maximum(member.sum(axis=-1, keepdims=True), 1)
        return (member / count) @ cast(table, self.dtype)
