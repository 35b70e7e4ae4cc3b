"""What the user encoders share: interface and dims, a Transformer over slots of history, a tied softmax a feature."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from user_llm.errors import UserError
from user_llm.models.event_embedding import FEATURES, EventEmbedding
from user_llm.models.event_times import BUCKETS, bucket, following, since_previous
from user_llm.models.layers import RMSNorm, cast, dropout, identities, normal, parameter
from user_llm.models.linear import linear
from user_llm.models.sharding import shard
from user_llm.models.stack import StackConfig, apply_layers, init_layers

History = Mapping[str, jax.Array]
# What of times an encoder reads → its tables.
_TIMES = {"": (), "past": ("since_TU",), "asked": ("since_TU", "until_TU")}


class UserEncoder(Protocol):
    """What every encoder has, so that integration and evaluation never ask which one they hold.

    It is an NNX module, built with `(config, *, item_categories, num_categories, num_ratings, rngs)`. `history` has
    `item` and `rating`, int [B, S], padded on the left (the newest event is in slot S - 1), `mask` bool [B, S] says
    where there is an event.
    """

    def __call__(self, history: History, mask: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """User embeddings [B, S', U], zero where `output_mask` is False; `key` of dropout, None runs without."""
        ...

    def output_mask(self, mask: jax.Array) -> jax.Array:
        """bool [B, S']: which embeddings there are."""
        ...

    def query(self, history: History, mask: jax.Array) -> jax.Array:
        """[B, Q]: what the users are looking for, as the encoder alone has it."""
        ...

    @property
    def num_answers(self) -> int:
        """I + 1, the columns of all `query_logits`."""
        ...

    def query_logits(self, query: jax.Array, answers: jax.Array | None = None) -> jax.Array:
        """float32 [B, I + 1], the logits of each next item (of a dual encoder that has learnt them: category).

        Or [B, V], those of the `answers` int [V] alone. -inf for the padding 0.
        """
        ...

    def drop_pretraining(self) -> None:
        """Leaves out what only the encoder alone needs."""
        ...


@dataclass(frozen=True)
class EncoderConfig:
    """The paper's encoder by default: 6 layers, width 128, 8 heads. `max_length`: longest history, events."""

    max_length: int
    features: tuple[str, ...] = FEATURES
    num_layers: int = 6
    width: int = 128
    num_heads: int = 8
    hidden: int = 512
    dropout: float = 0.0
    time: str = ""
    item_text: bool = False
    scan_layers: bool = False
    remat: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"

    @property
    def stack(self) -> StackConfig:
        if self.width % self.num_heads:
            raise UserError(f"Encoder width {self.width} must be a multiple of num_heads {self.num_heads}.")
        return StackConfig(
            num_layers=self.num_layers,
            width=self.width,
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            head_dim=self.width // self.num_heads,
            hidden=self.hidden,
            activation="relu",
            gated=False,
            norm_eps=1e-6,
            rope_theta=None,
            dropout=self.dropout,
            scan_layers=self.scan_layers,
            remat=self.remat,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            width_axis="user",
            hidden_axis="user_mlp",
        )


def both_ways(mask: jax.Array) -> jax.Array:
    """bool [B, S, S]: every slot sees every event, before and after it (`causal_mask` is the other choice)."""
    return jnp.broadcast_to(mask[:, None, :], (*mask.shape, mask.shape[-1]))


def without_padding(logits: jax.Array, classes: jax.Array | None) -> jax.Array:
    """`logits` [..., V] of all classes, or of the `classes` int [V], with -inf for class 0."""
    return logits.at[..., 0].set(-jnp.inf) if classes is None else jnp.where(classes == 0, -jnp.inf, logits)


class Packing(NamedTuple):
    """Where histories share the rows of a batch (`data/packing.py`): whose event a slot has, and its age.

    Both are int [B, S]: users 1, 2, …, 0 where there is no event; the events of its history that are newer.
    """

    user: jax.Array
    age: jax.Array

    def apart(self, sees: jax.Array) -> jax.Array:
        """`sees` bool [B, S, S] without what is another user's."""
        return sees & (self.user[:, :, None] == self.user[:, None, :])


class HistoryTransformer(nnx.Module):
    """Learned positions, the package's one stack of layers, and a norm, over the slots of a history."""

    since_TU: nnx.Param
    until_TU: nnx.Param

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        position = (config.max_length, config.width)
        self.position_SU = parameter(rngs, normal(0.02), position, (None, "user"), config.param_dtype)
        for name in _TIMES[config.time]:
            table = parameter(rngs, normal(0.02), (BUCKETS, config.width), (None, "user"), config.param_dtype)
            setattr(self, name, table)
        self.layers = self.make_layers(rngs)
        self.final_norm = RMSNorm(
            config.width, epsilon=config.stack.norm_eps, param_dtype=config.param_dtype, rngs=rngs
        )

    def make_layers(self, rngs: nnx.Rngs) -> nnx.Module:
        """The layers that `run_layers` runs."""
        return init_layers(self.config.stack, rngs=rngs)

    def run_layers(
        self, x: jax.Array, sees: jax.Array, ago: jax.Array | None, user: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        """[B, S, U] of [B, S, U]; the arguments are those of `transform`, and of its `packing`."""
        slots = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        return apply_layers(self.layers, self.config.stack, x, slots, sees, key=key)[0]

    def transform(
        self,
        x: jax.Array,
        mask: jax.Array,
        sees: jax.Array,
        *,
        ago: jax.Array | None = None,
        packing: Packing | None = None,
        key: jax.Array | None,
    ) -> jax.Array:
        """[B, S, U] of vectors [B, S, U], zero where there is no event.

        Args:
          mask: bool [B, S], where there is an event.
          sees: bool [B, S, S], the slots each slot attends to.
          ago: int [B, S], seconds from each event to the asked one, where the encoder reads time.
          packing: where histories share rows.
          key: of dropout; None runs without.
        """
        length, config = mask.shape[-1], self.config
        if packing is None and length > config.max_length:
            raise UserError(f"History of {length} slots; this encoder was built for at most {config.max_length}.")
        input_key, layers_key = (None, None) if key is None else jax.random.split(key)
        user = None if packing is None else packing.user
        # Positions count from the newest event, so a shorter array of slots gives the same embeddings.
        newer = length - 1 - jnp.arange(length) if packing is None else packing.age
        x = x + cast(self.position_SU, config.dtype)[config.max_length - 1 - newer]
        if config.time and ago is None:
            raise ValueError(f"This encoder was built with time={config.time!r}: it needs the history's `ago`.")
        if config.time and ago is not None:
            x = x + cast(self.since_TU, config.dtype)[bucket(since_previous(ago, mask, user))]
            if config.time == "asked":
                x = x + cast(self.until_TU, config.dtype)[bucket(ago - following(ago, user))]
        x = dropout(x, config.dropout, input_key)
        x = self.run_layers(x, sees, ago, user, layers_key)
        return jnp.where(mask[..., None], self.final_norm(x), 0)


class EventEncoder(HistoryTransformer):
    """One embedding an event, made of all its features (early fusion), with a tied softmax a feature.

    Args:
      item_categories: int [I + 1, C], category ids of each item, 0 padded; row 0 is the padding item.
      num_categories, num_ratings: numbers of classes, the padding id 0 not counted.
    """

    def __init__(
        self,
        config: EncoderConfig,
        *,
        item_categories: np.ndarray,
        num_categories: int,
        num_ratings: int,
        rngs: nnx.Rngs,
    ):
        width, param_dtype = config.width, config.param_dtype
        self.embedding = EventEmbedding(
            config.features,
            width,
            item_categories=item_categories,
            num_categories=num_categories,
            num_ratings=num_ratings,
            dtype=config.dtype,
            param_dtype=param_dtype,
            item_text=config.item_text,
            rngs=rngs,
        )
        super().__init__(config, rngs=rngs)
        # Of items alone there is one space: that of events is that of the softmax.
        self._heads = config.features if len(config.features) > 1 else ()
        for feature in self._heads:
            head = parameter(rngs, identities, (width, width), ("user", "feature"), param_dtype)
            setattr(self, f"{feature}_head_UU", head)

    def output_mask(self, mask: jax.Array) -> jax.Array:
        """bool [B, S]: one embedding an event, where `mask` has one."""
        return mask

    def drop_pretraining(self) -> None:
        """Leaves out the softmaxes' projections: a language model reads embeddings only."""
        for feature in self._heads:
            delattr(self, f"{feature}_head_UU")

    def item_states(self, items: jax.Array) -> jax.Array:
        """[..., U]: what an embedding would be that asks for nothing but each of the `items`, int [...].

        Of an encoder of items alone, whose events lie in the space of its softmax.
        """
        if self._heads:
            raise ValueError(f"An encoder of {self.config.features} has item states behind its heads only.")
        return self.final_norm(self.embedding.embed("item", {"item": items}))

    def feature_table(self, feature: str, ids: jax.Array | None = None) -> jax.Array:
        """[V, U]: the feature's embeddings, which are also its softmax weights; [..., U] of `ids` int [...] alone.

        Of items V may be more than `num_answers`: what lies behind is zero, and no class (`sharding.padded_rows`).
        """
        return self.embedding.vectors(feature, ids)

    def feature_hidden(self, embeddings: jax.Array, feature: str) -> jax.Array:
        """User embeddings [..., U] projected back to a feature's space: times its tableᵀ they are logits."""
        self.embedding.table(feature)
        if feature not in self._heads:
            return embeddings
        return linear(embeddings, cast(getattr(self, f"{feature}_head_UU"), self.config.dtype))

    @property
    def num_answers(self) -> int:
        """I + 1: the items and the padding item 0."""
        return self.embedding.num_classes("item")

    def query_logits(self, query: jax.Array, answers: jax.Array | None = None) -> jax.Array:
        """float32 [B, I + 1], the logits of the item that comes next, or of some `answers`; see `UserEncoder`."""
        return self.item_logits(query, answers)

    def item_logits(self, embeddings: jax.Array, items: jax.Array | None = None) -> jax.Array:
        """float32 [..., I + 1], an item's logits at the event of each embedding; -inf for the padding item 0.

        Or [..., V], those of the `items` int [V] alone.
        """
        table = self.feature_table("item", items).astype(self.config.dtype)
        hidden = self.feature_hidden(embeddings, "item")
        logits = jnp.einsum("...U,VU->...V", hidden, table, preferred_element_type=jnp.float32)
        if items is None and len(table) > self.num_answers:
            # Whole first: into a slice that devices share unevenly XLA scatters wrong numbers (docs/architecture.md).
            logits = shard(logits, "batch", ...)[..., : self.num_answers]
        return without_padding(logits, items)
