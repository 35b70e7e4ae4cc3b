"""FLOPs that a training step cannot do without, counted from its dimensions: matrix products, two FLOPs an element.

What a contender does beyond that (logits computed again, dropped gradients) is not counted, so that seconds compare. A
forward pass counts once, and once more for each of its two gradients that somebody needs. Attention counts all pairs
of positions, though a causal kernel may leave half of them out. RecTools' environment reads this too: standard library.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from benchmarks.workload import Workload


@dataclasses.dataclass(frozen=True)
class Layers:
    """A stack of Transformer layers, or the cross-attention blocks between them."""

    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden: int
    gated: bool

    def weights(self) -> int:
        """FLOPs a position and layer of the products with weights, forward."""
        heads = self.width * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        return 2 * (heads + (3 if self.gated else 2) * self.width * self.hidden)

    def attention(self, slots: int) -> int:
        """FLOPs a position and layer of scores and mixing over `slots` keys, forward."""
        return 4 * slots * self.num_heads * self.head_dim

    def forward(self, slots: int) -> int:
        """FLOPs a position, all layers."""
        return self.num_layers * (self.weights() + self.attention(slots))


def encoder_layers(workload: Workload) -> Layers:
    """The layers of our encoder, or of a peer's of these sizes."""
    heads, size = workload.num_heads, workload.width // workload.num_heads
    return Layers(workload.num_layers, workload.width, heads, heads, size, workload.hidden, gated=False)


def encoder_step(workload: Workload) -> int:
    """Of the item encoder's training step."""
    event = encoder_layers(workload).forward(workload.history_length) + 2 * workload.width * workload.num_items
    return 3 * workload.batch_size * workload.history_length * event


@dataclasses.dataclass(frozen=True)
class UserLLMStep:
    """A training step of a language model, contextualised or not.

    Attributes:
      language_model: its layers.
      vocabulary: V, rows of its softmax.
      batch_size, tokens: B texts of T.
      answer_slots: A, positions a text at which the softmax is computed.
      blocks: the cross-attention blocks, `num_layers` of them (K = N); None is the language model alone.
      encoder: of the users (`num_items` plays no part); None as `blocks`.
      frozen: whether the language model is; blocks and encoder train.
      first_layer: of the language model that has a block before it.
      stored: whether what comes before that layer is read, not computed.
    """

    language_model: Layers
    vocabulary: int
    batch_size: int
    tokens: int
    answer_slots: int
    blocks: Layers | None = None
    encoder: Workload | None = None
    frozen: bool = False
    first_layer: int = 0
    stored: bool = False

    def flops(self) -> int:
        """All of them."""
        text, softmax = self._language_model(), self.answer_slots * 2 * self.language_model.width * self.vocabulary
        # A frozen table has no gradient, and the hidden states before it have theirs.
        example = text + (2 if self.frozen else 3) * softmax
        if self.blocks is not None and self.encoder is not None:
            example += self._blocks(self.blocks, self.encoder)
        return self.batch_size * example

    def _language_model(self) -> int:
        layers, tokens = self.language_model, self.tokens
        if not self.frozen:
            return 3 * tokens * layers.forward(tokens)
        below = 0 if self.stored else self.first_layer * (layers.weights() + layers.attention(tokens))
        # Scores and mixing have two gradients of their own, where a frozen weight's is spared.
        above = (layers.num_layers - self.first_layer) * (2 * layers.weights() + 3 * layers.attention(tokens))
        return tokens * (below + above)

    def _blocks(self, blocks: Layers, encoder: Workload) -> int:
        events, width = encoder.history_length, encoder.width
        heads = 2 * blocks.num_heads * blocks.head_dim
        # Keys and values are made of events, not of the block's own positions.
        token = blocks.forward(events) - blocks.num_layers * 2 * heads * blocks.width
        event = encoder_layers(encoder).forward(events) + blocks.num_layers * 2 * heads * width
        return 3 * (self.tokens * token + events * event)


def layers_of(config: Mapping[str, Any]) -> Layers:
    """The layers of a `LanguageModelConfig`, as a mapping."""
    return Layers(**{field.name: config[field.name] for field in dataclasses.fields(Layers)})
