"""What each stage minimises: `(model, batch, key) -> (loss sum, weight sum, metrics)`.

Sums instead of means, so that microbatches and hosts with different numbers of targets add up exactly.
A metric is a pair (sum, weight) too.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from user_llm.models.language_model import causal_mask
from user_llm.training.cross_entropy import chunked_cross_entropy, soft_cross_entropy

Batch = Mapping[str, jax.Array]
Metrics = dict[str, tuple[jax.Array, jax.Array]]
Objective = Callable[[nnx.Module, Batch, jax.Array | None], tuple[jax.Array, jax.Array, Metrics]]


def history(batch: Batch) -> tuple[dict[str, jax.Array], jax.Array]:
    """The history features `[B, S]` of a batch and the mask of its real events."""
    features = {"item": batch["history/item"], "rating": batch["history/rating"]}
    return features, features["item"] > 0


def next_event(batch: Batch, feature: str) -> jax.Array:
    """Targets `[B, S]`: at each position the event after it, at the last one the label."""
    return jnp.concatenate([batch[f"history/{feature}"][:, 1:], batch[f"label/{feature}"][:, None]], axis=1)


def autoregressive_objective(chunk_rows: int) -> Objective:
    """Next-event prediction at every position, one tied softmax a feature (paper 3.1)."""

    def objective(model, batch: Batch, key: jax.Array | None):
        features, mask = history(batch)
        embeddings = model(features, mask, key=key)
        weights = _example_weights(batch)[:, None] * mask
        items = next_event(batch, "item")
        metrics: Metrics = {}
        for feature in model.config.features:
            hidden, table = model.feature_hidden(embeddings, feature), model.feature_table(feature)
            if feature == "category":
                sets = jnp.take(model.embedding.item_categories[...], items, axis=0)
                metrics["loss/category"] = soft_cross_entropy(hidden, table, sets, weights)
            else:
                targets = items if feature == "item" else next_event(batch, feature)
                metrics[f"loss/{feature}"] = chunked_cross_entropy(
                    hidden, table, targets, weights, chunk_rows=chunk_rows, first_class=1
                )
        loss, weight = sum(total for total, _ in metrics.values()), weights.sum()
        return loss, weight, {"loss": (loss, weight), **metrics}

    return objective


def text_objective(chunk_rows: int) -> Objective:
    """Next-token prediction of whatever the batch gives weight to, by the LLM alone (stage `llm`)."""

    def objective(model, batch: Batch, key: jax.Array | None):
        del key
        return _answer_loss(model, model, batch, chunk_rows)

    return objective


def contextualised_objective(chunk_rows: int) -> Objective:
    """Next-token prediction of the answer by the LLM that reads the user's embeddings (paper 3.2).

    Counts the events of a text history that did not fit into the prompt.
    """

    def objective(model, batch: Batch, key: jax.Array | None):
        features, mask = history(batch)
        context = model.encode(features, mask, key=key)
        loss, weight, metrics = _answer_loss(model, model.language_model, batch, chunk_rows, context=context)
        rows = _example_weights(batch)
        dropped = jnp.sum(rows * batch["dropped_events"]), rows.sum()
        return loss, weight, {**metrics, "dropped_events": dropped}

    return objective


def _answer_loss(model, language_model, batch: Batch, chunk_rows: int, **context):
    tokens = batch["decoder_input_tokens"]
    # Padding is on the right, behind the causal mask: no target position can see it.
    mask = causal_mask(jnp.ones(tokens.shape, bool))
    hidden, _ = model(tokens, batch["decoder_positions"], mask, **context)
    weights = batch["decoder_loss_weights"] * _example_weights(batch)[:, None]
    loss, weight = chunked_cross_entropy(
        hidden, language_model.output_table(), batch["decoder_target_tokens"], weights, chunk_rows=chunk_rows
    )
    return loss, weight, {"loss": (loss, weight)}


def _example_weights(batch: Batch) -> jax.Array:
    """`[B]`: 0 for the rows that only fill up an evaluation's last batch."""
    rows = next(iter(batch.values())).shape[0]
    return batch["weight"] if "weight" in batch else jnp.ones(rows, jnp.float32)
