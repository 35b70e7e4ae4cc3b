"""What each stage minimises: `(model, batch, key) -> (loss sum, weight sum, metrics)`.

Sums instead of means, so that microbatches and hosts with different numbers of targets add up exactly.
A metric is a pair (sum, weight) too.

An objective is a pytree of the arrays that it holds for each item of a catalogue: a program takes it as an argument, as
millions of numbers are no constants to compile.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.tree_util import Partial

from user_llm.errors import UserError
from user_llm.models.language_model import causal_mask
from user_llm.models.sharding import deal, shard
from user_llm.models.user_encoder import Packing
from user_llm.training.cross_entropy import chunked_cross_entropy, soft_cross_entropy
from user_llm.training.distillation import Taught, Teacher
from user_llm.training.sampled_softmax import sampled_cross_entropy

Batch = Mapping[str, jax.Array]
Metrics = dict[str, tuple[jax.Array, jax.Array]]
Objective = Callable[[nnx.Module, Batch, jax.Array | None], tuple[jax.Array, jax.Array, Metrics]]
_FIRST = "first/"  # of a batch's names: texts that are learnt up to the first token of their answer (`data.targets`)
Draw = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
"""A key → items int32 `[K]`, and the log of the chance of each: a `Partial` of `negatives.Negatives.draw`."""


def history(batch: Batch) -> tuple[dict[str, jax.Array], jax.Array]:
    """The history features `[B, S]` of a batch, with its times where it has them, and the mask of its real events."""
    features = {name: batch[f"history/{name}"] for name in ("item", "rating", "ago") if f"history/{name}" in batch}
    return features, features["item"] > 0


def next_event(batch: Batch, feature: str) -> jax.Array:
    """Targets `[B, S]`: at each position the event after it, at the last one the label."""
    return jnp.concatenate([batch[f"history/{feature}"][:, 1:], batch[f"label/{feature}"][:, None]], axis=1)


def autoregressive_objective(chunk_rows: int, dropped: np.ndarray | None = None, draw: Draw | None = None) -> Objective:
    """Next-event prediction at every position, one tied softmax a feature (paper 3.1).

    Histories may share rows (`data.packing`). Items where bool `dropped` [I + 1] are no class of their softmax.
    With `draw` the softmax of the items is over what it draws (`sampled_softmax.py`).
    """

    def loss(items: ItemClasses, model, batch: Batch, key: jax.Array | None):
        features, mask = history(batch)
        if "history/user" in batch:
            embeddings = model(features, mask, packing=Packing(batch["history/user"], batch["history/age"]), key=key)
            targets = {feature: batch[f"target/{feature}"] for feature in ("item", "rating")}
            return _event_loss(model, embeddings, targets, mask.astype(jnp.float32), chunk_rows, items)
        embeddings = model(features, mask, key=key)
        weights = _example_weights(batch)[:, None] * mask
        targets = {feature: next_event(batch, feature) for feature in ("item", "rating")}
        return _event_loss(model, embeddings, targets, weights, chunk_rows, items)

    return ItemObjective(loss, dropped, draw)


def masked_objective(
    chunk_rows: int, mask_rate: float, dropped: np.ndarray | None = None, draw: Draw | None = None
) -> Objective:
    """Filling in masked events (Sun et al. 2019) of the newest S of the history and its label.

    In training `max(1, round(mask_rate * events))` random events of each row are masked, drawn from the key, so
    that a step always masks the same. Without a key the label is, which is what the model is for. `dropped` and
    `draw` are those of `autoregressive_objective`.

    Raises:
      UserError: a rate outside (0, 1].
    """
    if not 0 < mask_rate <= 1:
        raise UserError(f"mask_rate is the share of events to mask, above 0 and at most 1, got {mask_rate}.")

    def loss(items: ItemClasses, model, batch: Batch, key: jax.Array | None):
        events = {feature: next_event(batch, feature) for feature in ("item", "rating")}
        mask = events["item"] > 0
        length = mask.shape[1]
        if key is None:
            slots = jnp.full((len(mask), 1), length - 1)
            chosen, dropout_key = jnp.ones(slots.shape, bool), None
        else:
            mask_key, dropout_key = jax.random.split(key)
            counts = np.maximum(1, np.rint(mask_rate * np.arange(length + 1))).astype(np.int32)
            order = jnp.where(mask, jax.random.uniform(mask_key, mask.shape), -1.0)
            _, slots = jax.lax.top_k(order, int(counts[-1]))
            chosen = jnp.arange(slots.shape[1]) < jnp.asarray(counts)[mask.sum(axis=1)][:, None]
        rows = jnp.arange(len(mask))[:, None]
        masked = jnp.zeros_like(mask).at[rows, slots].set(chosen)
        embeddings = model(events, mask, masked=masked, key=dropout_key)
        targets = {feature: jnp.take_along_axis(ids, slots, axis=1) for feature, ids in events.items()}
        embeddings = jnp.take_along_axis(embeddings, slots[..., None], axis=1)
        weights = _example_weights(batch)[:, None] * chosen
        return _event_loss(model, embeddings, targets, weights, chunk_rows, items)

    return ItemObjective(loss, dropped, draw)


class ItemClasses(NamedTuple):
    """Which items the softmax of a step is over: all but those `dropped`, bool [I + 1], or what was `drawn`."""

    dropped: np.ndarray | None
    drawn: tuple[jax.Array, jax.Array] | None

    def cross_entropy(self, model, hidden, targets, weights, chunk_rows: int) -> tuple[jax.Array, jax.Array]:
        """The sums of losses and weights of `targets` int [...], at `hidden` [..., U]."""
        if self.drawn is not None:
            negatives, log_probabilities = self.drawn
            rows = shard(model.feature_table("item", targets), "batch", ...)
            classes = rows, model.feature_table("item", negatives), targets, negatives, log_probabilities
            return sampled_cross_entropy(hidden, *classes, weights, chunk_rows=chunk_rows)
        options: dict[str, Any] = dict(chunk_rows=chunk_rows, first_class=1, num_classes=model.num_answers)
        if self.dropped is not None:
            options["class_bias"] = jnp.where(self.dropped, -jnp.inf, 0.0)
        return chunked_cross_entropy(hidden, model.feature_table("item"), targets, weights, **options)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)  # hashed as a function is, for `jax.jit`, not by its arrays
class ItemObjective:
    """An `Objective` whose softmax of the items is over all but those dropped, or over what is drawn.

    Attributes:
      loss: an `Objective` with the `ItemClasses` as its first argument.
      dropped: bool [I + 1], or None.
      draw: in training from the key, so that a step always draws the same; without one always the same for all batches.
    """

    loss: Callable[..., tuple[jax.Array, jax.Array, Metrics]] = dataclasses.field(metadata={"static": True})
    dropped: np.ndarray | None
    draw: Draw | None

    def __call__(self, model, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, jax.Array, Metrics]:
        drawn = None
        if self.draw is not None:
            own, key = _key_of_draw(key)
            drawn = self.draw(own)
        return self.loss(ItemClasses(self.dropped, drawn), model, batch, key)

    def items_read(self, batch: Batch, keys: jax.Array) -> jax.Array | None:
        """int [M], the only items whose rows of tables are read for the microbatches of a batch; None: all are.

        Args:
          keys: [accumulate], of the microbatches.
        """
        draw = self.draw
        if draw is None:
            return None
        negatives = jax.lax.map(lambda key: draw(_key_of_draw(key)[0])[0], keys)
        of_batch = [ids for name, ids in batch.items() if name.endswith("/item")]
        return jnp.concatenate([ids.reshape(-1) for ids in (*of_batch, negatives)])


def _key_of_draw(key: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    """What negatives are drawn from, and the key that is left for masks and dropout."""
    if key is None:
        return jax.random.key(0), None
    key, own = jax.random.split(key)
    return own, key


def _event_loss(model, embeddings, targets, weights, chunk_rows: int, items: ItemClasses):
    """The sum over features of the tied softmaxes' losses at `embeddings` `[..., U]` with `weights` `[...]`.

    `targets`: `item` and `rating`, int `[...]`. The weight is the number of events, whether an item has a category
    or not.
    """
    metrics: Metrics = {}
    for feature in model.config.features:
        hidden = model.feature_hidden(embeddings, feature)
        if feature == "item":
            metrics["loss/item"] = items.cross_entropy(model, hidden, targets["item"], weights, chunk_rows)
            continue
        of_feature = dict(table=model.feature_table(feature), weights=weights, chunk_rows=chunk_rows)
        if feature == "category":
            sets = jnp.take(model.embedding.item_categories[...], targets["item"], axis=0)
            metrics["loss/category"] = soft_cross_entropy(hidden, targets=sets, **of_feature)
        else:
            ratings = targets["rating"]
            metrics["loss/rating"] = chunked_cross_entropy(hidden, targets=ratings, first_class=1, **of_feature)
    loss, weight = sum(total for total, _ in metrics.values()), weights.sum()
    return loss, weight, {"loss": (loss, weight), **metrics}


def dual_encoder_objective(chunk_rows: int, label_frequencies: np.ndarray | None) -> Objective:
    """The label against the other labels of the batch (paper appendix A), by the similarity of the two towers.

    Equal labels of a batch are one class, so nobody's own label is among their negatives. Popular items are in most
    batches; without a correction they are pushed down for it. With `label_frequencies` a class's logit is corrected by
    the log of the chance that a batch has it, 1 - (1 - p)^B (Yi et al. 2019, where duplicates stay and it is p).

    With `label="category"` the softmax is over all categories: nothing is sampled, nothing to correct. The target is
    uniform over the label's categories, or the batch's own `label/category` where it brings one (the favourite
    category, paper 4.3.2); a label that has none is left out.

    Args:
      label_frequencies: `[I + 1]`, how often each item is a label in training; None corrects nothing.
    """

    def objective(model, batch: Batch, key: jax.Array | None):
        users = model.query(*history(batch), key=key)
        weights, items = _example_weights(batch), batch["label/item"]
        if model.config.label == "category":
            tower = model.label_tower
            if "label/category" in batch:  # given, not the next item's
                sets = batch["label/category"][:, None]
            else:
                sets = jnp.take(tower.item_categories[...], items, axis=0)
            categories = model.label_vectors(jnp.arange(tower.table("category").shape[0]))
            loss, weight = soft_cross_entropy(users, categories, sets, weights, chunk_rows=chunk_rows)
            return loss, weight, {"loss": (loss, weight)}
        rows = len(items)
        # Rows that only fill a batch bring no class; nor does what fills up the distinct ones.
        labels = jnp.where(weights > 0, items, 0)
        classes, targets = jnp.unique(labels, return_inverse=True, size=rows, fill_value=0)
        correction: float | jax.Array = 0.0
        if label_frequencies is not None:
            correction = _log_sampling_probability(label_frequencies, rows)[classes]
        loss, weight = chunked_cross_entropy(
            users,
            model.label_vectors(classes),
            targets,
            weights,
            chunk_rows=chunk_rows,
            class_bias=jnp.where(classes > 0, -correction, -jnp.inf),
        )
        return loss, weight, {"loss": (loss, weight)}

    return Partial(objective)


def _log_sampling_probability(frequencies: np.ndarray, rows: int) -> jax.Array:
    """float32 `[V]`: log of the chance that a class is among `rows` random labels. Unseen ones count as seen once."""
    share = np.maximum(np.asarray(frequencies, np.float64), 1) / np.sum(frequencies)
    with np.errstate(divide="ignore"):  # the only label there is: a share of 1
        return jnp.asarray(np.log(-np.expm1(rows * np.log1p(-share))), jnp.float32)


def text_objective(chunk_rows: int) -> Objective:
    """Next-token prediction of whatever the batch gives weight to, by the LLM alone (stage `llm`)."""

    def objective(model, batch: Batch, key: jax.Array | None):
        del key
        return _text_loss(model, model, batch, chunk_rows)

    return Partial(objective)


def contextualised_objective(
    chunk_rows: int, label_contexts: float = 0.0, teacher: Teacher | None = None, encoder_dropout: bool = True
) -> Objective:
    """Next-token prediction of the answer by the LLM that reads the user's embeddings (paper 3.2).

    Counts the events of a text history that did not fit into the prompt. A history may have several texts
    (`data.targets`). Batches without histories are items to spell (`data.spelling`).

    Args:
      chunk_rows: of the softmax.
      label_contexts: share of the examples that, in training, read one embedding that asks for their label and nothing
        else: how a title is spelt is learnt beside what a user wants. Drawn from the key.
      teacher: says which tokens may follow, where it is to weigh them within the catalogue. In training it makes soft
        targets of what the encoder thinks comes next; the own loss of an encoder that moves is then added, so that it
        stays somebody to learn from.
      encoder_dropout: whether, in training, dropout disturbs the embeddings that are read. The teacher says what the
        encoder thinks with these very embeddings, so that every step asks it about users that no step had before.
    """

    def objective(model, batch: Batch, key: jax.Array | None):
        if "history/item" not in batch:
            context = model.item_context(batch["label/item"])
            taught = None if teacher is None else teacher.of_labels(batch["label/item"])
            llm = model.language_model
            return _text_loss(model, llm, batch, chunk_rows, answers=True, context=context, taught=taught)
        features, mask = history(batch)
        texts, items = batch["target/item"].shape[1] if "target/item" in batch else 1, None
        labels = _labels(batch) if label_contexts or teacher else jnp.zeros(0, jnp.int32)  # not read
        if label_contexts and key is not None:
            key, own = jax.random.split(key)
            items = jnp.where(jax.random.bernoulli(own, label_contexts, labels.shape), labels, 0)
        dropout = key if encoder_dropout else None
        context = model.encode(features, mask, key=dropout, texts=texts, items=items)
        first_tokens = any(name.startswith(_FIRST) for name in batch)
        if "target/item" in batch:  # [B, K, …]
            of_texts = [name for name in batch if name.startswith(("decoder_", "prompt_", "dropped_", _FIRST))]
            batch = {name: batch[name].reshape(-1, *batch[name].shape[2:]) for name in of_texts}
            batch = _first_and_whole(batch) if first_tokens else batch
        metrics: Metrics = {}
        taught = None if teacher is None else teacher.of_labels(labels)
        if teacher is not None and teacher.share and key is not None:
            asked = jnp.zeros(labels.shape, bool) if items is None else items > 0
            taught, metrics = _lesson(teacher, model.encoder, features, mask, labels, asked, chunk_rows, dropout)
        options: dict[str, Any] = dict(context=context, taught=taught, first_tokens=first_tokens)
        loss, weight, of_text = _text_loss(model, model.language_model, batch, chunk_rows, answers=True, **options)
        loss += sum(own for own, _ in metrics.values())
        rows = _example_weights(batch)
        dropped = jnp.sum(rows * batch["dropped_events"]), rows.sum()
        return loss, weight, {**of_text, **metrics, "dropped_events": dropped}

    return Partial(objective)


def _labels(batch: Batch) -> jax.Array:
    """int `[B · K]`: the item that each text asks for."""
    return batch["target/item"].reshape(-1) if "target/item" in batch else batch["label/item"]


def _lesson(teacher: Teacher, encoder, features, mask, labels, asked, chunk_rows: int, key) -> tuple[Taught, Metrics]:
    """What the encoder has to say of texts whose `labels` int [B · K] follow the newest events of histories [B, S].

    Args:
      asked: bool [B · K], texts that read their label and are taught nothing.
      key: of the encoder's dropout, that of the embeddings which are read; None: there is none.
    """
    count = len(labels) // len(mask)
    states = encoder(features, mask, key=key)[:, -count:].reshape(len(labels), -1)
    taught = Taught(teacher, jax.lax.stop_gradient(encoder.item_logits(states)), labels, ~asked)
    if not teacher.learns:
        return taught, {}
    table, weights = encoder.feature_table("item"), (labels > 0).astype(jnp.float32)
    bias = None if teacher.dropped is None else jnp.where(teacher.dropped, -jnp.inf, 0.0)
    options = dict(chunk_rows=chunk_rows, first_class=1, num_classes=encoder.num_answers, class_bias=bias)
    own = chunked_cross_entropy(states, table, labels, weights, **options)
    return taught, {"loss/item": own}


def _first_and_whole(batch: Batch) -> dict[str, Any]:
    """A batch of texts whose `texts` are in two groups: those learnt up to the first token, and those learnt whole."""
    groups = [
        {name.removeprefix(start): values for name, values in batch.items() if name.startswith(f"{start}decoder_")}
        for start in (_FIRST, "")
    ]
    lengths = deal(batch["prompt_lengths"], [len(group["decoder_input_tokens"]) for group in groups])
    texts = tuple({**group, "prompt_lengths": own} for group, own in zip(groups, lengths, strict=True))
    return {**{name: values for name, values in batch.items() if "decoder_" not in name}, "texts": texts}


def _text_loss(
    model,
    language_model,
    batch: Mapping[str, Any],
    chunk_rows: int,
    *,
    answers: bool = False,
    context=None,
    taught=None,
    first_tokens: bool = False,
):
    """The loss over all text, or where all that is learnt are `answers`, over those alone.

    A batch may bring its `texts` in groups that are padded to widths of their own (`data.by_length`); with
    `first_tokens` the first group learns one token a text.
    """
    texts = batch.get("texts", (batch,))
    rows = [len(text["decoder_input_tokens"]) for text in texts]
    contexts = [None] * len(texts) if context is None else context.deal(rows)
    rooms: list[int | None] = [None] * len(texts)
    if answers:  # A: the longest answer the batch has room for
        room = max(text["decoder_input_tokens"].shape[1] for text in texts) + 1 - batch["prompt_tokens"].shape[1]
        rooms = [room] * len(texts)
        rooms[0] = 1 if first_tokens else room
    parts = [_read(model, text, room, part) for text, room, part in zip(texts, rooms, contexts, strict=True)]
    table, cap = language_model.output_table(), language_model.config.final_softcap
    if taught is not None:
        loss, weight = taught.cross_entropy(parts, rows, table, chunk_rows=chunk_rows, softcap=cap)
        return loss, weight, {"loss": (loss, weight)}
    turns = math.gcd(*rows)  # one behind the other along the second axis, as the first may be cut over devices
    hidden, targets, weights = (
        jnp.concatenate([x.reshape(turns, -1, *x.shape[2:]) for x in part], axis=1) for part in zip(*parts, strict=True)
    )
    loss, weight = chunked_cross_entropy(hidden, table, targets, weights, chunk_rows=chunk_rows, softcap=cap)
    return loss, weight, {"loss": (loss, weight)}


def _read(model, text: Batch, room: int | None, context) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Hidden states [B, A, D] of texts, their targets and weights [B, A]: all, or an answer's in up to `room` slots."""
    positions = text["decoder_positions"]
    # Padding is on the right, behind the causal mask: no target position can see it.
    mask = causal_mask(jnp.ones(positions.shape, bool))
    if "decoder_states" in text:  # the layers below the user have read the tokens already
        hidden, _ = model.above(text["decoder_states"], positions, mask, context=context)
    else:
        hidden, _ = model(text["decoder_input_tokens"], positions, mask, context=context)
    targets, weights = text["decoder_target_tokens"], text["decoder_loss_weights"] * _example_weights(text)[:, None]
    if room is None:
        return hidden, targets, weights
    # The softmax over the vocabulary is half of a small LLM's step: spare it the prompts.
    last = positions.shape[1] - 1
    first = jnp.maximum(text["prompt_lengths"], 1) - 1  # a filler's prompt is empty
    slots = first[:, None] + jnp.arange(min(room, last + 1))
    inside, slots = slots <= last, jnp.minimum(slots, last)
    # Along their axis: indexed by rows too, half a batch would be moved between devices.
    hidden = jnp.take_along_axis(hidden, slots[..., None], axis=1)
    targets, weights = (jnp.take_along_axis(x, slots, axis=1) for x in (targets, weights))
    return hidden, targets, weights * inside


def _example_weights(batch: Batch) -> jax.Array:
    """`[B]`: 0 for the rows that only fill up an evaluation's last batch."""
    rows = next(iter(batch.values())).shape[0]
    return batch["weight"] if "weight" in batch else jnp.ones(rows, jnp.float32)
