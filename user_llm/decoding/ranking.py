"""The exact log-probability of every title of a catalogue.

The trie is read as a tree behind the prompt, in chunks (`tree_chunks.py`), so that a prefix shared by many titles is
computed once.
"""

import functools

import jax
import jax.numpy as jnp

from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.decoding.prefill import Context, DecodingModel, extend, prefill
from user_llm.decoding.text_states import TextStates, reading
from user_llm.decoding.tree_chunks import read_chunk, tree_chunks
from user_llm.models.attention import Cache


@functools.partial(jax.jit, static_argnames=("nodes_per_chunk",))
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
) -> jax.Array:
    """log p(title, EOS | prompt, context) of every item.

    One program per shape of the prompts, whatever the number of chunks. Peak memory is that of the logits
    `[B, nodes_per_chunk + longest title, V]`.

    Args:
        prompt_tokens: int32 `[B, P]`, starting with BOS; prompt_lengths: int32 `[B]`, tokens in each row.
        context: what the model attends to besides the text (`UserLLM.encode`), or None.
        nodes_per_chunk: how many nodes of the trie one call of the model reads; memory against calls.
        states: of these prompts and this trie; only the layers above are run then, of a `UserLLM`.

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

    def score_chunk(cache: Cache, nodes: jax.Array) -> tuple[Cache, jax.Array]:
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
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        edge = logits[:, chunk.parent, chunk.token] - normaliser[:, chunk.parent]
        prefix = jnp.sum(jnp.where(chunk.lineage, edge[:, None, :], 0.0), axis=-1)
        titles = prefix + logits[:, 1:, eos_id] - normaliser[:, 1:]
        return cache, titles[:, -nodes_per_chunk:]

    _, titles = jax.lax.scan(score_chunk, prompt.cache, tree_chunks(trie.tree, nodes_per_chunk))
    by_node = jnp.moveaxis(titles, 0, 1).reshape(batch, -1)
    scores = by_node[:, trie.tree.last[trie.title_of_item]]
    return scores.at[:, 0].set(-jnp.inf)
