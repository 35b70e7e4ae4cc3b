"""Events as vectors: an embedding a feature, and all of them fused into one (early fusion, paper 3.1)."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from user_llm.errors import UserError
from user_llm.models.layers import Buffer, Initializer, RMSNorm, cast, identities, normal, parameter
from user_llm.models.linear import linear
from user_llm.models.sharding import ANY, padded_rows, shard
from user_llm.models.table_rows import take_rows

FEATURES = ("item", "category", "rating")
# Small, so that the tied softmax starts near uniform: in 600 steps on ml-latest-small the loss fell to 6.75, from
# 1/√width (unit-variance logits) only to 7.15.
TABLE_STDDEV = 0.02
TEXT_WIDTH = 128  # of an item's vector made of its name


class FeatureEmbeddings(nnx.Module):
    """Embeds each feature of events in its own table; softmaxes and label towers read the tables again.

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
        if unknown or not features or len(set(features)) != len(features):
            raise UserError(f"features {features}: expected one or more of {FEATURES}, each once.")
        self.features, self.dtype = tuple(features), dtype
        sizes = {"item": len(item_categories), "category": num_categories + 1, "rating": num_ratings + 1}
        self._num_answers = sizes["item"]
        for feature in features:
            rows, axis, initializer = sizes[feature], None, normal(TABLE_STDDEV)
            if feature == "item":
                rows, axis, initializer = padded_rows(rows), "items", _zero_from(rows, initializer)
            table = parameter(rngs, initializer, (rows, width), (axis, "user"), param_dtype)
            setattr(self, f"{feature}_VU", table)
        if "category" in features:
            if item_categories.max(initial=0) > num_categories:
                raise ValueError(f"item_categories holds {item_categories.max()}; num_categories is {num_categories}.")
            self.item_categories = Buffer(jnp.asarray(item_categories, jnp.int32), logical_axes=("items", None))

    def table(self, feature: str) -> nnx.Param:
        """The embedding table [V, U] of a feature, a parameter; of items it is padded (`padded_rows`)."""
        if feature not in self.features:
            raise ValueError(f"This encoder has no feature {feature!r}; it has {self.features}.")
        return getattr(self, f"{feature}_VU")

    def num_classes(self, feature: str) -> int:
        """How many of the first rows of a feature's table are classes, the padding id 0 among them."""
        return self._num_answers if feature == "item" else self.table(feature).shape[0]

    def vectors(self, feature: str, ids: jax.Array | None = None) -> jax.Array:
        """[V, U]: what a feature's classes are embedded as, and zeros behind them (`num_classes`).

        Or [..., U], of the `ids` int [...] alone; NaN for one that is no class.
        """
        return _rows(self.table(feature), self.num_classes(feature), ids)

    def embed(self, feature: str, history: Mapping[str, jax.Array]) -> jax.Array:
        """[..., U]: one feature of the events given as `item` and (where it is a feature) `rating`, int [...]."""
        if feature == "category":
            return self._categories(history["item"])
        return shard(self.vectors(feature, history[feature]).astype(self.dtype), "batch", ...)

    def _categories(self, item: jax.Array) -> jax.Array:
        """[..., U]: the mean embedding of each item's categories; zero for an item that has none."""
        # In float32: its gradient sums over as many events as have a category, and a few categories are in most.
        table = shard(cast(self.table("category"), "float32"), ANY, None)
        ids = jnp.moveaxis(jnp.take(self.item_categories[...], item, axis=0), -1, 0)
        shares = (ids > 0) / jnp.maximum((ids > 0).sum(axis=0), 1)

        # One category of every event at a time: all at once take C times the memory, and set membership times the
        # table is no faster with 20 categories (6,400 events, forward and backward) and takes gigabytes with 5,000.
        def add(total: jax.Array, column: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            ids, share = column
            return shard(total + share[..., None] * table[ids], "batch", ...), None

        mean, _ = jax.lax.scan(add, jnp.zeros((*item.shape, table.shape[1])), (ids, shares))
        return mean.astype(self.dtype)


class EventEmbedding(FeatureEmbeddings):
    """One vector an event: the embeddings of its features, concatenated, projected where there are several, and normed.

    With `item_text` an item's embedding is its own and a map of its name's vector, `item_text_IE` [V, TEXT_WIDTH],
    which is given and never trained (`experiment/item_text.py`), with as many rows as the items' table.

    The projection begins as their sum, and an event is as large as what layers add to it. Else they drown it at the
    start, and with it what a tied softmax promises, that items are like those they are seen with: on Amazon Beauty,
    where users have six events, that is Recall@10 .09 or .03 (docs/results/log.md).
    """

    def __init__(
        self,
        features: tuple[str, ...],
        width: int,
        *,
        param_dtype: str,
        rngs: nnx.Rngs,
        item_text: bool = False,
        **options,
    ):
        if "item" not in features:
            raise UserError(f"features {features}: 'item' must be one of them, as it is what is predicted.")
        super().__init__(features, width, param_dtype=param_dtype, rngs=rngs, **options)
        self.item_text = item_text
        if item_text:
            given = (self.table("item").shape[0], TEXT_WIDTH)
            self.item_text_IE = parameter(rngs, jax.nn.initializers.zeros, given, ("items", None), param_dtype)
            stddev = TABLE_STDDEV / math.sqrt(TEXT_WIDTH)  # as much of it as of the item itself
            self.text_EU = parameter(rngs, normal(stddev), (TEXT_WIDTH, width), (None, "user"), param_dtype)
        if len(features) > 1:
            shape = (len(features) * width, width)
            self.projection_EU = parameter(rngs, identities, shape, ("feature", "user"), param_dtype)
        self.norm = RMSNorm(width, epsilon=1e-6, param_dtype=param_dtype, rngs=rngs)

    def vectors(self, feature: str, ids: jax.Array | None = None) -> jax.Array:
        """See `FeatureEmbeddings`; an item's with what its name gives, where the encoder reads it."""
        if feature != "item" or not self.item_text:
            return super().vectors(feature, ids)
        own, text = (_rows(table, self.num_classes("item"), ids) for table in (self.table("item"), self.item_text_IE))
        return own + linear(text, self.text_EU[...])

    def __call__(self, history: Mapping[str, jax.Array]) -> jax.Array:
        """[..., U] of events given as `item` and (where it is a feature) `rating`, int [...]."""
        x = jnp.concatenate([self.embed(feature, history) for feature in self.features], axis=-1)
        if len(self.features) > 1:
            x = linear(x, cast(self.projection_EU, self.dtype))
        return self.norm(x)


def _rows(table: nnx.Param, classes: int, ids: jax.Array | None) -> jax.Array:
    """[V, U], or [..., U] of `ids` int [...]: its gradient is that of these rows, added at their places.

    An id that is none of the `classes` gives NaN, though the table may have a row of padding there.
    """
    if ids is None:
        return table[...]
    rows = table.get_value()
    if isinstance(rows, jax.Array) and classes < len(rows):
        ids = jnp.where(ids < classes, ids, len(rows))
    return take_rows(rows, ids)


def _zero_from(classes: int, initializer: Initializer) -> Initializer:
    """Like `initializer`, with zeros in the rows from `classes` on."""

    def initialise(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        # All rows are drawn: they lie as the table does, and the first have the numbers that they have without padding.
        drawn = initializer(key, shape, dtype)
        return drawn if classes == shape[0] else jnp.where(jnp.arange(shape[0])[:, None] < classes, drawn, 0)

    return initialise
