"""Cross-entropy of a softmax over millions of classes by some thousands of random ones: its time does not know how many
classes there are.

A row's partition is estimated from negatives that all rows share, drawn with replacement with chances q:

    Z ≈ exp(s_target) + sum over negatives j that are not the target of exp(s_j) / (K q_j)

Its expectation is the partition of all classes (log-Q correction: Bengio and Senécal 2008, Yi et al. 2019). The
gradients are those of the full softmax as far as the log of an estimate is one: they differ by O(1/K). As in
`cross_entropy.py` rows go through in chunks, and the gradients are made in the forward pass. The tables' rows come
gathered, so that the gradient of a table is that of these rows.
"""

from functools import partial

import jax
import jax.numpy as jnp

from user_llm.models.sharding import shard
from user_llm.training.softmax_rows import RowChunks, matmul, row_products


def sampled_cross_entropy(
    hidden: jax.Array,
    target_rows: jax.Array,
    negative_rows: jax.Array,
    targets: jax.Array,
    negatives: jax.Array,
    log_probabilities: jax.Array,
    weights: jax.Array,
    *,
    chunk_rows: int,
) -> tuple[jax.Array, jax.Array]:
    """Weighted cross-entropy of the targets against themselves and the negatives.

    Differentiable in `hidden` and both kinds of rows (reverse mode, once). Positions of weight 0 cost next to nothing.
    Matmuls run in the dtype of `hidden` with float32 sums; the rest is float32.

    Args:
      hidden: float `[..., U]`.
      target_rows: float `[..., U]`, of the softmax's table, the row of each position's target.
      negative_rows: float `[K, U]`, those of the negatives.
      targets: int `[...]`, class ids. A negative that is a position's target is none of its negatives.
      negatives: int `[K]`, class ids, some of them maybe several times.
      log_probabilities: float `[K]`, of each negative in one draw; constants.
      weights: float `[...]`; 0 leaves a position out.
      chunk_rows: most rows whose logits `[chunk_rows, K]` exist at once, over all devices.

    Returns:
      `(loss_sum, weight_sum)`, float32 scalars: the sum of weight * -log p(target), the sum of the weights.

    Raises:
      ValueError: the shapes do not fit together, or `chunk_rows` is below 1.
    """
    if chunk_rows < 1:
        raise ValueError(f"chunk_rows must be at least 1, got {chunk_rows}.")
    if target_rows.shape != hidden.shape or not hidden.shape[:-1] == targets.shape == weights.shape:
        shapes = f"{target_rows.shape}, {targets.shape} and {weights.shape}"
        raise ValueError(f"target rows, targets and weights must be one a row of hidden {hidden.shape}, got {shapes}.")
    if negative_rows.shape != (*negatives.shape, hidden.shape[-1]) or log_probabilities.shape != negatives.shape:
        shapes = f"{negatives.shape}, {negative_rows.shape} and {log_probabilities.shape}"
        raise ValueError(f"negatives [K], their rows [K, {hidden.shape[-1]}] and log_probabilities [K]: got {shapes}.")
    weights = weights.astype(jnp.float32).reshape(-1)
    hidden, target_rows = (shard(x.reshape(len(weights), -1), "batch", None) for x in (hidden, target_rows))
    expected = log_probabilities + jnp.log(jnp.float32(len(negatives)))
    logits = row_products(hidden, target_rows)
    loss = _loss(chunk_rows, hidden, negative_rows, logits, targets.reshape(-1), negatives, expected, weights)
    return loss, jnp.sum(weights)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(chunk_rows, hidden, rows, target_logits, targets, negatives, log_expected, weights):
    """hidden [M, U], rows [K, U], target_logits, targets, weights [M], negatives, log_expected [K] -> a scalar."""
    return _forward(chunk_rows, hidden, rows, target_logits, targets, negatives, log_expected, weights)[0]


def _forward(chunk_rows, hidden, rows, target_logits, targets, negatives, log_expected, weights):
    cast_rows = rows.astype(hidden.dtype)
    chunks = RowChunks(weights, chunk_rows, len(rows))
    columns = [chunks.split(x) for x in (hidden, target_logits, targets, weights)]

    def add(index, carry):
        d_rows, losses, d_logits, d_hiddens = carry
        hidden, own, targets, weights = (column[index] for column in columns)
        logits = matmul("ru,ku->rk", hidden, cast_rows) - log_expected
        logits = jnp.where(targets[:, None] == negatives, -jnp.inf, logits)
        largest = jnp.maximum(logits.max(-1), own)
        exponentials = jnp.exp(logits - largest[:, None])
        others = exponentials.sum(-1)
        partition = others + jnp.exp(own - largest)
        loss = weights * (jnp.log(partition) + largest - own)
        scale, exponentials = (weights / partition)[:, None], exponentials.astype(hidden.dtype)
        d_hidden = scale * matmul("rk,ku->ru", exponentials, cast_rows)
        d_rows = chunks.add_products(d_rows, exponentials, (scale * hidden).astype(hidden.dtype))
        of_chunk = loss, -scale[:, 0] * others, d_hidden
        so_far = losses, d_logits, d_hiddens
        return d_rows, *(column.at[index].set(one) for column, one in zip(so_far, of_chunk, strict=True))

    zeros = (jnp.zeros(x.shape, jnp.float32) for x in (columns[1], columns[1], columns[0]))
    d_rows, *parts = jax.lax.fori_loop(0, chunks.used, add, (chunks.no_products(rows.shape[1]), *zeros))
    d_rows = d_rows.sum(axis=0)
    losses, d_logits, d_hidden = (chunks.join(part) for part in parts)
    return jnp.sum(losses), (d_hidden.astype(hidden.dtype), d_rows.astype(rows.dtype), d_logits)


def _backward(chunk_rows, gradients, cotangent):
    return *((cotangent * gradient).astype(gradient.dtype) for gradient in gradients), None, None, None, None


_loss.defvjp(_forward, _backward)
