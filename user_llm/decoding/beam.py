"""Beam search over a KV cache, free or constrained to a catalogue's titles.

The prompt's keys and values are kept once per row, and those of generated tokens once per (step, beam slot)
behind them. The beams of a row are the T axis of the model's call, and a beam sees, of every earlier step,
only the slot in which its own ancestor was written: selecting beams never moves the cache.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from user_llm.arguments import whole
from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.decoding.paths import Excluded
from user_llm.decoding.prefill import Context, DecodingModel, Prompt, extend, prefill
from user_llm.decoding.prior import DensePrior, TopPrior
from user_llm.decoding.text_states import TextStates, reading
from user_llm.errors import UserError
from user_llm.models.attention import Cache

_NARROW = 64  # children: levels that branch no wider are computed as if they were all as wide


class BeamResult(NamedTuple):
    """Hypotheses, best first.

    Attributes:
        tokens: int32 `[B, K, steps]`, EOS included, `pad_id` behind it; unfinished when there is no EOS. Within the
            catalogue they end where one title is left.
        scores: float32 `[B, K]`, log-probability of the tokens, mixed with the prior's where there is one; -inf where
            fewer than K hypotheses exist.
        items: int32 `[B, K]`, the lowest item of a finished title that is not excluded; 0 for none, and in free search.
    """

    tokens: jax.Array
    scores: jax.Array
    items: jax.Array


class _Beams(NamedTuple):
    step: jax.Array  # tokens chosen so far
    scores: jax.Array  # [B, J], by which they are chosen
    log_probs: jax.Array  # [B, J], of their tokens
    tokens: jax.Array  # [B, J, steps]
    slots: jax.Array  # [B, J, steps]: the slot that holds the key of this beam's token of that step
    nodes: jax.Array  # [B, J]: where in the trie
    finished: jax.Array  # [B, J]


@functools.partial(jax.jit, static_argnames=("num_beams", "max_steps", "num_best", "within_catalogue"))
def beam_search(
    model: DecodingModel[Context],
    prompt_tokens: jax.Array,
    prompt_lengths: jax.Array,
    context: Context | None = None,
    *,
    num_beams: int,
    max_steps: int,
    eos_id: int,
    pad_id: int = 0,
    trie: CatalogueTrie | None = None,
    excluded_items: jax.Array | None = None,
    states: TextStates | None = None,
    prior: DensePrior | TopPrior | None = None,
    weight: jax.Array | float = 1.0,
    num_best: int | None = None,
    within_catalogue: bool = False,
) -> BeamResult:
    """Searches the likeliest continuations of each prompt.

    A score is the exact log-probability of the tokens including EOS, normalised over the whole vocabulary
    (or over the trie, `within_catalogue`) and not divided by length: the ranking is by p(title). Finished
    hypotheses stay among the beams, their score frozen, until the best K are finished or `max_steps` are done: no
    score ever rises, so that nothing behind these can pass them.

    With a trie, every hypothesis is a title of the catalogue, and exactly min(K, titles left) of them come back
    if `max_steps` is at least the longest title with its EOS (more steps cost nothing).

    Args:
        prompt_tokens: int32 `[B, P]`, starting with BOS; prompt_lengths: int32 `[B]`, tokens in each row.
        context: what the model attends to besides the text (`UserLLM.encode`), or None.
        num_beams: J.
        excluded_items: int32 `[B, E]`, 0-padded: items that must not come out for this row. A title that several
            items bear is left out with the last of them.
        states: of these prompts and this trie; only the layers above are run then, of a `UserLLM`.
        prior: a second opinion on the trie's nodes. What it gives nothing is closed, and what is excluded must be that.
        weight: w, 0 to 1: a score is w times the log-probability of the tokens so far, and 1 - w times the log-mass of
            the node that they lead to.
        within_catalogue: each token is weighed against those that go on with a title of the trie, whoever may be
            answered. Where one title alone is left the rest costs nothing, and is not computed.
        num_best: K, how many hypotheses are asked for; None: J. The long titles of a wide beam then cost nothing.

    Raises:
        UserError: an argument is out of range.
        ValueError: items are excluded, states or a prior are given, or `within_catalogue` is asked, without a trie.
    """
    num_best = num_beams if num_best is None else num_best
    for name, value in (("num_beams", num_beams), ("max_steps", max_steps), ("num_best", num_best)):
        whole(name, value, 1)
    if num_best > num_beams:
        raise UserError(f"num_best={num_best} is more than num_beams={num_beams}.")
    if excluded_items is not None and trie is None:
        raise ValueError("excluded_items needs trie=: free beams know no items")
    if (states is not None or prior is not None) and trie is None:
        raise ValueError("states and prior need trie=: they are those of its nodes")
    if within_catalogue and trie is None:
        raise ValueError("within_catalogue needs trie=: the titles that tokens are weighed by")
    steps = max_steps if trie is None else min(max_steps, len(trie.fan_out))
    excluded = None  # with a prior it is that which closes
    if trie is not None and excluded_items is not None and prior is None:
        excluded = Excluded.build(trie, excluded_items)
    reader, prompts = reading(model, prompt_tokens, states)
    prompt = prefill(reader, prompts, prompt_lengths, context, free_slots=steps * num_beams)

    def choose(beams: _Beams, hidden: jax.Array, fan_out: int | None) -> _Beams:
        """One more token for the beams `[B, K]` whose last states are `hidden`; leaves `[B, J]`."""
        logits = model.logits(hidden)
        if trie is None:
            children = mass = None
            scores = jax.nn.log_softmax(logits, axis=-1)
        else:
            depth, width = beams.step + 1, cast(int, fan_out)
            children, is_open = trie.children(beams.nodes, width)  # [B, K, C]
            if excluded is not None:
                # A node without a title that is left is closed at once, not its leaves alone: no beam walks into it.
                is_open &= ~excluded.is_closed(trie, depth, beams.nodes, width)
            scores = jnp.take_along_axis(logits, trie.token[children], axis=-1)
            rivals = jnp.where(trie.are_children(beams.nodes, width), scores, -jnp.inf) if within_catalogue else logits
            scores = jnp.where(is_open, scores - jax.nn.logsumexp(rivals, axis=-1, keepdims=True), -jnp.inf)
            mass = None if prior is None else prior.log_mass(trie, depth, beams.nodes, children)
        # A finished beam goes on as itself, through its first candidate, at no cost.
        itself = jnp.where(jnp.arange(scores.shape[-1]) == 0, 0.0, -jnp.inf)
        finished = beams.finished[..., None]
        log_probs = scores = beams.log_probs[..., None] + jnp.where(finished, itself, scores)
        if mass is not None:
            alive = (log_probs > -jnp.inf) & (mass > -jnp.inf)  # before they are mixed: 0 * inf is no number
            mixed = jnp.where(alive, weight * log_probs + (1 - weight) * mass, -jnp.inf)
            scores = jnp.where(finished, beams.scores[..., None] + itself, mixed)
        beams = _select(beams, scores, log_probs, children, trie, num_beams, eos_id, pad_id)
        return _at_its_end(beams, cast(CatalogueTrie, trie)) if within_catalogue else beams

    root = None if trie is None else trie.fan_out[0]
    widths, width_of_level = ([None], [0] * steps) if trie is None else _widths(trie.fan_out[1:])

    def advance(state: tuple[_Beams, Cache]) -> tuple[_Beams, Cache]:
        beams, cache = state
        last = beams.step - 1
        ancestry = beams.slots[..., None] == jnp.arange(num_beams)
        if states is None:
            text = jax.lax.dynamic_index_in_dim(beams.tokens, last, axis=2, keepdims=False)
        else:
            text = states.node_rows(cast(CatalogueTrie, trie).tree_node[beams.nodes])
        hidden, cache = extend(
            reader,
            prompt._replace(cache=cache),
            text,
            steps=last,
            sees=ancestry.reshape(*beams.scores.shape, steps * num_beams),
            slot=last * num_beams,
        )
        # The model is compiled once for all levels, and the cache stays out of the branches, which would copy it.
        choices = [functools.partial(choose, fan_out=width) for width in widths]
        return jax.lax.switch(jnp.array(width_of_level)[last], choices, beams, hidden), cache

    def running(state: tuple[_Beams, Cache]) -> jax.Array:
        beams, _ = state  # best first
        going_on = ~beams.finished & (beams.scores > -jnp.inf)
        return (beams.step < steps) & jnp.any(going_on[:, :num_best])

    beams = choose(_start(prompt, steps, pad_id), prompt.hidden, root)
    beams, _ = jax.lax.while_loop(running, advance, (beams, prompt.cache))
    return jax.tree.map(lambda x: x[:, :num_best], _result(beams, trie, excluded_items, pad_id))


def _start(prompt: Prompt[Any], steps: int, pad_id: int) -> _Beams:
    batch = prompt.lengths.shape[0]
    return _Beams(
        step=jnp.int32(0),
        scores=jnp.zeros((batch, 1), jnp.float32),
        log_probs=jnp.zeros((batch, 1), jnp.float32),
        tokens=jnp.full((batch, 1, steps), pad_id, jnp.int32),
        slots=jnp.full((batch, 1, steps), -1, jnp.int32),
        nodes=jnp.zeros((batch, 1), jnp.int32),
        finished=jnp.zeros((batch, 1), bool),
    )


def _widths(fan_out: Sequence[int]) -> tuple[list[int | None], list[int]]:
    """Bounds on the number of children, and which of them is that of each level.

    The first words of titles ("The") branch far wider than what follows: a level has a bound less than four times its
    own children, and levels share it, so that few are compiled for.
    """
    groups = [max(children - 1, _NARROW).bit_length() // 2 for children in fan_out]
    bounds = {group: max(n for n, own in zip(fan_out, groups, strict=True) if own == group) for group in groups}
    return list(bounds.values()), [list(bounds).index(group) for group in groups]


def _select(beams, scores, log_probs, children, trie, num_beams, eos_id, pad_id) -> _Beams:
    """The best `num_beams` of the candidates `[B, K, C]`, best first; a tie goes to the better parent."""
    batch, _, width = scores.shape

    def pool(values: jax.Array) -> jax.Array:
        values = values.reshape(batch, -1)
        return jnp.pad(values, ((0, 0), (0, max(0, num_beams - values.shape[1]))), constant_values=-jnp.inf)

    scores, chosen = jax.lax.top_k(pool(scores), num_beams)
    parents = jnp.minimum(chosen // width, beams.scores.shape[1] - 1)

    def of_parent(values: jax.Array) -> jax.Array:
        return jnp.take_along_axis(values, parents.reshape(parents.shape + (1,) * (values.ndim - 2)), axis=1)

    finished, nodes = of_parent(beams.finished), of_parent(beams.nodes)
    if trie is None:
        token = chosen % width
    else:
        child = jnp.take_along_axis(of_parent(children), (chosen % width)[..., None], axis=2)[..., 0]
        nodes = jnp.where(finished, nodes, child)
        token = trie.token[nodes]
    token = jnp.where(finished, pad_id, token)
    return _Beams(
        step=beams.step + 1,
        scores=scores,
        log_probs=jnp.take_along_axis(pool(log_probs), chosen, axis=1),
        tokens=of_parent(beams.tokens).at[:, :, beams.step].set(token),
        slots=of_parent(beams.slots).at[:, :, beams.step].set(jnp.arange(num_beams)),
        nodes=nodes,
        finished=finished | (token == eos_id),
    )


def _at_its_end(beams: _Beams, trie: CatalogueTrie) -> _Beams:
    """The beams, those that have one title before them at its leaf."""
    told = trie.is_told(beams.nodes)
    leaves = trie.leaf_of_title[trie.first_title[beams.nodes]]
    return beams._replace(nodes=jnp.where(told, leaves, beams.nodes), finished=beams.finished | told)


def _result(beams: _Beams, trie: CatalogueTrie | None, excluded_items: jax.Array | None, pad_id: int) -> BeamResult:
    alive = beams.scores > -jnp.inf
    items = jnp.zeros_like(beams.nodes)
    if trie is not None:
        items = jnp.where(alive, trie.leaf_item[beams.nodes], 0)
        if excluded_items is not None:
            items = trie.open_items(items, excluded_items)
    return BeamResult(jnp.where(alive[..., None], beams.tokens, pad_id), beams.scores, items)
