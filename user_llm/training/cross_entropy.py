"""Cross-entropy of a tied softmax without the logits: exact, chunked over rows, gradients made on the way.

The autoregressive encoder (User-LLM, section 3.1) predicts an item at every position. Written plainly that
needs logits `[B, S, I]` and as many gradients: 175 GB at batch 32,768 and MovieLens-20M's 26,744 items. Here
the rows go through in chunks, and a chunk's logits are used up before the next chunk's exist:

    P = exp(H Wᵀ - max),  Z = sum(P),  s = weight / Z        (one matmul)
    dH = s * (P W),  dW += Pᵀ (s * H)                        (two matmuls)

The loss is a sum, so both gradients are complete but for one scalar, the cotangent of that sum. They are
therefore made in the forward pass while P is at hand; the backward pass only multiplies. Three matmuls a
chunk is the arithmetic of the dense loss, where `jax.checkpoint` over chunks pays a fourth. `s` is applied to
the narrow side (`[rows, U]`), never to the wide one (`[rows, V]`). The part of the target's own logit, the
one-hot term, is a gather and a scatter over all rows at once, outside the loop; where a row has a set of targets
(an item's categories), one target of every row at a time. Where logits are soft-capped, both terms are further
multiplied by the slope of the cap, 1 - (logit / cap)².
"""

from functools import partial

import jax
import jax.numpy as jnp

from user_llm.models import attention
from user_llm.models.sharding import CLASSES, shard
from user_llm.models.table_rows import add_rows, take_rows
from user_llm.training.softmax_rows import RowChunks, matmul, num_chunks, row_products


def chunked_cross_entropy(
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    chunk_rows: int = 512,
    first_class: int = 0,
    num_classes: int | None = None,
    class_bias: jax.Array | None = None,
    softcap: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Weighted cross-entropy of `softmax(hidden @ table.T)`; loss and gradients equal the dense to rounding.

    Differentiable in `hidden` and `table` (reverse mode, once); weights are constants. Without differentiation
    only the loss is computed. Positions of weight 0 cost next to nothing, wherever they are. Matmuls run in the
    dtype of `hidden`; bfloat16 operands are accumulated in float32, and the softmax and the sums are float32.
    Gradients come back in the dtype of their argument. A chunk takes rows of every shard, so a batch axis sharded
    over a mesh stays sharded inside each chunk as long as its number of shards divides the rows of a chunk; the
    class axis of `table` may be sharded too.

    Args:
      hidden: float `[..., U]`.
      table: float `[V, U]`, one row a class.
      targets: int `[...]`, class ids. Where a weight is not 0 they must lie in `[first_class, num_classes)`
        and be no dropped class.
      weights: float `[...]`; 0 leaves a position out.
      chunk_rows: most rows whose logits `[chunk_rows, V]` exist at once, over all devices. 320 to 640 is
        fastest on CPUs; the memory in use is about `8 * chunk_rows * V` bytes.
      first_class: classes below it (padding) are no part of the softmax.
      num_classes: rows of the table from it on (`sharding.padded_rows`) are none either; None: all are classes.
      class_bias: float `[num_classes]`, added to every row's logits; -inf drops a class. A constant, without gradient.
      softcap: logits become `softcap * tanh(logits / softcap)`, before any bias (Gemma 2); None leaves them.

    Returns:
      `(loss_sum, weight_sum)`, float32 scalars: the sum of weight * -log p(target), the sum of the weights.

    Raises:
      ValueError: the shapes do not fit together, or an option is out of range.
    """
    _check(hidden, table, targets, weights, chunk_rows)
    if targets.shape != hidden.shape[:-1]:
        raise ValueError(f"targets must be one a row of hidden: {hidden.shape[:-1]}, got {targets.shape}.")
    num_classes = len(table) if num_classes is None else num_classes
    if not 0 < num_classes <= len(table):
        raise ValueError(f"num_classes must be 1 to {len(table)}, the rows of the table, got {num_classes}.")
    if not 0 <= first_class < num_classes:
        raise ValueError(f"first_class must be a class, 0 to {num_classes - 1}, got {first_class}.")
    if class_bias is not None:
        if class_bias.shape != (num_classes,):
            raise ValueError(f"class_bias must be one a class: {(num_classes,)}, got {class_bias.shape}.")
        class_bias = jnp.pad(class_bias, (0, len(table) - num_classes))
    if softcap is not None and softcap <= 0:
        raise ValueError(f"softcap must be positive, got {softcap}; None leaves the logits as they are.")
    shares = jnp.ones((*targets.shape, 1), jnp.float32)
    options = chunk_rows, range(first_class, num_classes), softcap
    return _loss_and_weight(options, hidden, table, targets[..., None], shares, weights, class_bias)


def soft_cross_entropy(
    hidden: jax.Array, table: jax.Array, targets: jax.Array, weights: jax.Array, *, chunk_rows: int
) -> tuple[jax.Array, jax.Array]:
    """`chunked_cross_entropy` against a set of classes: the target is uniform over the set (an item's categories).

    Class 0 is padding: neither in the softmax nor in a set. Beyond the chunk of logits it takes memory for a few
    vectors `[..., U]`, however large the sets.

    Args:
      hidden: float `[..., U]`.
      table: float `[V, U]`, one row a class, row 0 the padding.
      targets: int `[..., C]`, distinct class ids padded with 0. A row without a class is left out.
      weights: float `[...]`; 0 leaves a position out.
      chunk_rows: most rows whose logits exist at once.

    Returns:
      `(loss_sum, weight_sum)`, float32 scalars over the rows that have a class.

    Raises:
      ValueError: the shapes do not fit together, or `chunk_rows` is below 1.
    """
    _check(hidden, table, targets, weights, chunk_rows)
    if targets.shape[:-1] != hidden.shape[:-1]:
        raise ValueError(f"targets must be {hidden.shape[:-1]} + (C,) to match hidden, got {targets.shape}.")
    present = targets > 0
    size = present.sum(-1)
    shares = present / jnp.maximum(size, 1)[..., None].astype(jnp.float32)
    weights = jnp.where(size > 0, weights, 0.0)
    return _loss_and_weight((chunk_rows, range(1, len(table)), None), hidden, table, targets, shares, weights, None)


def logits_bytes(rows: int, classes: int, chunk_rows: int) -> int:
    """About how many bytes the largest arrays of either loss take, over all devices, whatever the number of rows.

    These are float32 logits `[R, classes]` and as many exponentials, for the R rows of a chunk.
    """
    return 8 * -(-rows // num_chunks(rows, chunk_rows)) * classes


def _loss_and_weight(options, hidden, table, targets, shares, weights, bias):
    """hidden [..., U], targets and their shares [..., C], weights [...] -> the sums of losses and of weights."""
    rows = weights.size
    weights = weights.astype(jnp.float32).reshape(rows)
    # Rows of the table are whole, and so are those of `hidden`: cut by their width, whole batches would be moved.
    hidden = shard(hidden.reshape(rows, hidden.shape[-1]), "batch", None)
    columns = (x.reshape(rows, -1).T for x in (targets, shares))
    return _cross_entropy(*options, hidden, shard(table, CLASSES, None), *columns, weights, bias), jnp.sum(weights)


def _check(hidden: jax.Array, table: jax.Array, targets: jax.Array, weights: jax.Array, chunk_rows: int) -> None:
    if chunk_rows < 1:
        raise ValueError(f"chunk_rows must be at least 1, got {chunk_rows}.")
    if table.ndim != 2 or table.shape[1] != hidden.shape[-1]:
        raise ValueError(f"table must be [V, {hidden.shape[-1]}] to match hidden, got {table.shape}.")
    if weights.shape != hidden.shape[:-1]:
        raise ValueError(f"weights must be one a row of hidden: {hidden.shape[:-1]}, got {weights.shape}.")
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"targets must be integer class ids, got {targets.dtype}.")


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _cross_entropy(chunk_rows, classes, cap, hidden, table, targets, shares, weights, bias):
    """hidden [M, U], table [V, U], targets and shares [C, M], weights float32 [M], bias [V] or None -> float32 scalar.

    The softmax is over the range of `classes`. A row's target is spread over C of them by its shares, which sum to 1
    where its weight is not 0.
    """
    table = table.astype(hidden.dtype)

    chunks = RowChunks(weights, chunk_rows, len(table))
    hidden_chunks = chunks.split(hidden)

    def log_partition(index, log_partitions):
        logits = _capped(matmul("ru,vu->rv", chunks.chunk(hidden_chunks[index]), table), cap)
        return log_partitions.at[index].set(_softmax_parts(logits, classes, bias)[0])

    def target_logits(total, column):
        targets, shares = column
        logits = _capped(row_products(hidden, _rows(table, targets)), cap)
        return total + shares * _biased(logits, targets, weights, bias), None

    log_partitions = jax.lax.fori_loop(0, chunks.used, log_partition, jnp.zeros(hidden_chunks.shape[:2]))
    chosen, _ = jax.lax.scan(target_logits, jnp.zeros_like(weights), (targets, shares))
    return jnp.sum(weights * (chunks.join(log_partitions) - chosen))


def _forward(chunk_rows, classes, cap, hidden, table, targets, shares, weights, bias):
    cast_table = table.astype(hidden.dtype)
    chunks = RowChunks(weights, chunk_rows, len(table))
    hidden_chunks, weight_chunks = chunks.split(hidden), chunks.split(weights)

    def softmax_gradients(index, carry):
        d_table, log_partitions, d_hiddens = carry
        hidden, weights = chunks.chunk(hidden_chunks[index]), chunks.chunk(weight_chunks[index])
        logits = _capped(matmul("ru,vu->rv", hidden, cast_table), cap)
        log_partition, exponentials, partition = _softmax_parts(logits, classes, bias)
        scale = (weights / partition)[:, None]
        exponentials = (exponentials * _slope(logits, cap)).astype(hidden.dtype)
        d_hidden = scale * matmul("rv,vu->ru", exponentials, cast_table)
        d_table = chunks.add_products(d_table, exponentials, (scale * hidden).astype(hidden.dtype))
        d_hiddens = shard(d_hiddens.at[index].set(d_hidden), None, "batch", None)
        return d_table, log_partitions.at[index].set(log_partition), d_hiddens

    def target_gradients(carry, column):
        chosen, d_hidden, d_table = carry
        targets, shares = column
        target_rows = _rows(cast_table, targets)
        logits = _capped(row_products(hidden, target_rows), cap)
        share = (weights * shares * _slope(logits, cap))[:, None]
        chosen = chosen + shares * _biased(logits, targets, weights, bias)
        return (chosen, d_hidden - share * target_rows, add_rows(d_table, targets, -share * hidden)), None

    zeros = (jnp.zeros(x.shape, jnp.float32) for x in (weight_chunks, hidden_chunks))
    start = chunks.no_products(table.shape[1]), *zeros
    d_tables, *parts = jax.lax.fori_loop(0, chunks.used, softmax_gradients, start)
    log_partitions, d_hidden = (chunks.join(part) for part in parts)
    carry = jnp.zeros_like(weights), d_hidden, d_tables.sum(axis=0)
    (chosen, d_hidden, d_table), _ = jax.lax.scan(target_gradients, carry, (targets, shares))
    loss = jnp.sum(weights * (log_partitions - chosen))
    return loss, (d_hidden.astype(hidden.dtype), d_table.astype(table.dtype))


def _backward(chunk_rows, classes, cap, gradients, cotangent):
    d_hidden, d_table = ((cotangent * gradient).astype(gradient.dtype) for gradient in gradients)
    return d_hidden, d_table, None, None, None, None


_cross_entropy.defvjp(_forward, _backward)


def _softmax_parts(logits, classes, bias):
    """logits [R, V], bias [V] or None -> float32 log Z [R], exp(logits - max) [R, V] of the `classes`, its sum [R]."""
    if bias is not None:
        logits = logits + bias
    if len(classes) < logits.shape[1]:
        row = jnp.arange(logits.shape[1])
        inside = row >= classes.start
        if classes.stop < len(row):
            inside &= row < classes.stop
        logits = jnp.where(inside, logits, -jnp.inf)
    largest = logits.max(-1, keepdims=True)
    exponentials = jnp.exp(logits - largest)
    partition = exponentials.sum(-1)
    return largest[:, 0] + jnp.log(partition), exponentials, partition


def _rows(table, targets):
    """[M, U]; a row that is left out may name no class at all, and is to be a number all the same."""
    return take_rows(table, jnp.clip(targets, 0, len(table) - 1))


def _biased(logits, targets, weights, bias):
    """[M], with the bias of the targets [M]."""
    if bias is None:
        return logits
    # A row that is left out may name a class that is dropped: -inf times 0 is no number.
    return logits + jnp.where(weights == 0, 0.0, bias[targets])


def _capped(logits, cap):
    return logits if cap is None else attention.softcap(logits, cap)


def _slope(capped_logits, cap):
    """The derivative of `_capped`, from its value."""
    return 1.0 if cap is None else 1.0 - jnp.square(capped_logits / cap)
