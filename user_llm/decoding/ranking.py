"""The exact log-probability of every title of a catalogue.

The trie is read as a tree behind the prompt, in chunks (`tree_chunks.py`), so that a prefix shared by many titles is
computed once.
"""

import functools

import jax
import jax.numpy as jnp

from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.decoding.prefill import Context, DecodingModel, extend, prefill
from user_llm.decoding.segments import segment_logsumexp
from user_llm.decoding.text_states import TextStates, reading
from user_llm.decoding.tree_chunks import read_chunk, tree_chunks
from user_llm.models.attention import Cache


@functools.partial(jax.jit, static_argnames=("nodes_per_chunk", "within_catalogue"))
def rank_catalogue(
    model: DecodingModel[Context],
    prompt_tokens: jax.Array,
    prompt_lengths: jax.Array,
    context: Context | None,
    trie: CatalogueTrie,
    *,
    eos_id: int,
    nodes_per_chunk: int = 256,
    states: TextStates | None = None,
    within_catalogue: bool = False,
) -> jax.Array:
    """log p(title, EOS | prompt, context) of every item.

    One program per shape of the prompts, whatever the number of chunks. Peak memory is that of the logits
    `[B, nodes_per_chunk + longest title, V]`.

    Args:
        prompt_tokens: int32 `[B, P]`, starting with BOS; prompt_lengths: int32 `[B]`, tokens in each row.
        context: what the model attends to besides the text (`UserLLM.encode`), or None.
        nodes_per_chunk: how many nodes of the trie one call of the model reads; memory against calls.
        states: of these prompts and this trie; only the layers above are run then, of a `UserLLM`.
        within_catalogue: see `beam_search`.

    Returns:
        float32 `[B, I+1]`; -inf for item 0. Items with equal title tokens have equal scores.

    Raises:
        ValueError: `nodes_per_chunk` below 1.
    """
    if nodes_per_chunk < 1:
        raise ValueError(f"nodes_per_chunk must be at least 1, got {nodes_per_chunk}")
    free_slots = trie.tree.max_depth - 1 + nodes_per_chunk
    reader, prompts = reading(model, prompt_tokens, states)
    prompt = prefill(reader, prompts, prompt_lengths, context, free_slots=free_slots)
    batch = prompt_tokens.shape[0]

    def score_chunk(cache: Cache, nodes: jax.Array) -> tuple[Cache, tuple[jax.Array, ...]]:
        chunk = read_chunk(trie.tree, nodes)
        hidden, cache = extend(
            reader,
            prompt._replace(cache=cache),
            jnp.broadcast_to(chunk.token if states is None else states.node_rows(chunk.node), (batch, len(nodes))),
            steps=chunk.step,
            sees=chunk.lineage[None],
            slot=0,
        )
        # The prompt's end stands before the chunk: it is the root's state.
        logits = model.logits(jnp.concatenate([prompt.hidden, hidden], axis=1))
        edge, end = logits[:, chunk.parent, chunk.token], logits[:, 1:, eos_id]
        if within_catalogue:  # what follows a node may stand in other chunks
            return cache, (edge[:, -nodes_per_chunk:], end[:, -nodes_per_chunk:])
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        edge -= normaliser[:, chunk.parent]
        prefix = jnp.sum(jnp.where(chunk.lineage, edge[:, None, :], 0.0), axis=-1)
        titles = prefix + end - normaliser[:, 1:]
        return cache, (titles[:, -nodes_per_chunk:],)

    _, found = jax.lax.scan(score_chunk, prompt.cache, tree_chunks(trie.tree, nodes_per_chunk))
    by_node = [jnp.moveaxis(values, 0, 1).reshape(batch, -1) for values in found]
    titles = _within(trie, *by_node) if within_catalogue else by_node[0][:, trie.tree.last]
    return titles[:, trie.title_of_item].at[:, 0].set(-jnp.inf)


def _within(trie: CatalogueTrie, edges: jax.Array, ends: jax.Array) -> jax.Array:
    """Log-probabilities `[B, R]` of titles, by logits `[B, tree nodes]` of each node's token, and of EOS behind it."""
    is_leaf = trie.tree_node < 0
    logits = jnp.where(is_leaf, ends[:, trie.tree_node[trie.parent]], edges[:, trie.tree_node])
    logits = jnp.where(trie.end_title > trie.first_title, logits, -jnp.inf).T  # room for more is no node
    levels = [jnp.zeros((1, len(edges)))]
    bounds = (0, *trie.level_ends)
    for above, start, end in zip(bounds, bounds[1:], bounds[2:], strict=False):
        own, parents = logits[start:end], trie.parent[start:end] - above
        normaliser = segment_logsumexp(own, parents, start - above, are_sorted=True)
        levels.append((levels[-1] - normaliser)[parents] + own)
    return jnp.concatenate(levels)[trie.leaf_of_title].T
