"""What it costs to hold beams to a catalogue, from ten thousand titles to ten million, over beams that are free.

    python -m benchmarks --only=trie [--titles=10000,100000,1000000,10000000]

Titles are words by Zipf's law. Beside ours stands what most of the field does: a dictionary of tokens a node, in
Python, and a mask over the vocabulary made of it at every step.

A second table has as many items, named by semantic IDs, beside STATIC (`static_trie.py`): the same small language
model, prompts and cache, and the same answers. A semantic ID needs no EOS: ours stops at its last code too, and each
takes 8 steps.

How long a title more takes is told too: `GrowingTrie.add`, and the arrays that a search reads; and what fused answers
add to a step: a recommender's mass of every prefix, from its logits on.
"""

import dataclasses
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.beam_workload import EOS, BeamWorkload
from benchmarks.static_trie import StaticTrie, static_search
from user_llm.checkpoints.huggingface import load_language_model
from user_llm.decoding.beam import beam_search
from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.decoding.growing_trie import GrowingTrie
from user_llm.decoding.prior import build_prior, open_log_prior
from user_llm.models import parameters

_WORDS = 1.05  # the exponent of Zipf's law for words
_HISTORY = 200  # titles that are no answer for a user
_IN_DICTIONARIES = 1_000_000  # titles; a dictionary a node takes kilobytes a title
_SEED = 1
_CODES, _CODEBOOK = 8, 2_048  # semantic IDs as STATIC's paper has them, each code drawn alike
_OF_CODES = BeamWorkload(vocabulary=3 + _CODEBOOK, num_layers=2, width=128, num_heads=4, hidden=256)


@dataclasses.dataclass(frozen=True)
class Titles:
    """`count` titles of 2 to `longest` words."""

    count: int
    longest: int = 15
    vocabulary: int = 32_000

    def tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """int32 `[count + 1, longest]`, and their lengths."""
        random = np.random.default_rng(_SEED)
        frequency = np.cumsum(np.arange(1, self.vocabulary - 2) ** -_WORDS)
        tokens = np.empty((self.count + 1, self.longest), np.int32)
        for column in tokens.T:
            column[:] = 3 + np.searchsorted(frequency, random.random(self.count + 1) * frequency[-1])
        return tokens, random.integers(2, self.longest + 1, self.count + 1)


def measure_trie(sizes: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """A row a size; `free` and STATIC are measured beside each."""
    rows = _beside_free(sizes, rounds)
    # Behind all others, whose peaks of memory would be this table's too.
    return [row | _beside_static(row["titles"], rounds) | _growing(row["titles"]) for row in rows]


def _beside_free(sizes: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    workload, steps = BeamWorkload(), Titles(1).longest + 1
    graphdef, values, buffers, prompts, lengths = _loaded(workload)

    @jax.jit
    def search(values, trie, excluded, scores=None):
        model = parameters.merge(graphdef, values, buffers)
        options = dict(num_beams=workload.num_beams, max_steps=steps, trie=trie, excluded_items=excluded)
        if scores is not None:
            log_prior = open_log_prior(scores, excluded, jnp.zeros(scores.shape[1], bool), jnp.float32(0))
            options |= dict(prior=build_prior(trie, log_prior, excluded), weight=0.5)
        # Free beams end nowhere: as many steps as the longest title has.
        return beam_search(model, prompts, lengths, eos_id=EOS if trie is not None else -1, **options)

    rows = []
    for size in sizes:
        tokens, of_title = Titles(size).tokens()
        start = time.perf_counter()
        trie = jax.block_until_ready(CatalogueTrie.build(tokens, of_title, EOS))  # its copies are memory, too
        built, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
        seen = np.random.default_rng(0).integers(1, size + 1, (workload.users, _HISTORY)).astype(np.int32)
        scores = jax.random.normal(jax.random.key(0), (workload.users, size + 1))
        searches = [
            lambda trie=trie, seen=seen: search(values, trie, seen),
            lambda: search(values, None, None),
            lambda trie=trie, seen=seen, scores=scores: search(values, trie, seen, scores),
        ]
        ours, free, fused = _in_turns(searches, rounds)
        row = {"titles": size, "nodes": trie.level_ends[-1], "build_seconds": built, "peak_gb": peak}
        row |= {"step_ms": ours / steps * 1e3, "free_step_ms": free / steps * 1e3, "over_free": ours / free - 1}
        row["fused_over"] = fused / ours - 1
        row["widest"] = list(trie.fan_out[:3])
        if size <= _IN_DICTIONARIES:
            row["dictionary_step_ms"] = _dictionary_step(tokens, of_title, workload) * 1e3
        rows.append(row)
        del trie, scores, searches
    return rows


def _beside_static(size: int, rounds: int) -> dict[str, Any]:
    graphdef, values, buffers, prompts, lengths = _loaded(_OF_CODES)

    @jax.jit
    def search(values, trie):
        model = parameters.merge(graphdef, values, buffers)
        if isinstance(trie, StaticTrie):
            return static_search(model, prompts, lengths, trie, num_beams=_OF_CODES.num_beams)
        options = dict(num_beams=_OF_CODES.num_beams, max_steps=_CODES, eos_id=EOS, trie=trie)
        return beam_search(model, prompts, lengths, **options)[:2]

    codes = np.random.default_rng(_SEED).integers(3, _OF_CODES.vocabulary, (size + 1, _CODES), np.int32)
    theirs = StaticTrie.build(codes[1:], _OF_CODES.vocabulary)
    ours = CatalogueTrie.build(codes, np.full(size + 1, _CODES), EOS)
    searches = [lambda: search(values, ours), lambda: search(values, theirs)]
    step, static_step = (seconds / _CODES * 1e3 for seconds in _in_turns(searches, 10 * rounds))  # each is short
    return {"static_step_ms": static_step, "ours_on_its_step_ms": step, "over_static": step / static_step}


def _growing(size: int) -> dict[str, float]:
    tokens, of_title = Titles(size + 1).tokens()
    growing = GrowingTrie.build(tokens[:-1], of_title[:-1], EOS)
    start = time.perf_counter()
    jax.block_until_ready(growing.add(tokens[-1:], of_title[-1:]).trie)
    return {"add_seconds": time.perf_counter() - start}


def _loaded(workload: BeamWorkload) -> tuple[Any, ...]:
    """A language model in three parts, and prompts with their lengths."""
    with tempfile.TemporaryDirectory() as folder:
        workload.save(Path(folder))
        parts = parameters.split(load_language_model(folder))
    lengths = jnp.full(workload.users, workload.prompt_length, jnp.int32)
    return *parts, jnp.asarray(workload.prompts(), jnp.int32), lengths


def _in_turns(searches: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """Median seconds of each."""
    seconds: list[list[float]] = [[] for _ in searches]
    for search in searches:
        jax.block_until_ready(search())  # compiled
    for _ in range(rounds):
        for search, taken in zip(searches, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(search())
            taken.append(time.perf_counter() - start)
    return [median(taken) for taken in seconds]


def _dictionary_step(tokens: np.ndarray, lengths: np.ndarray, workload: BeamWorkload) -> float:
    """Seconds to mask one step of all beams, by a dictionary a node: the mask alone, without the model."""
    root: dict[int, Any] = {}
    for row, length in zip(tokens[1:].tolist(), lengths[1:].tolist(), strict=True):
        node = root
        for token in row[:length]:
            node = node.setdefault(token, {})
        node[EOS] = {}
    random = np.random.default_rng(0)
    chosen = tokens[random.integers(1, len(tokens), workload.users * workload.num_beams), :2].tolist()
    start = time.perf_counter()
    mask = np.full((len(chosen), workload.vocabulary), -np.inf, np.float32)
    for beam, prefix in enumerate(chosen):
        node = root
        for token in prefix[: 1 + beam % 2]:
            node = node[token]
        mask[beam, list(node)] = 0
    jax.block_until_ready(jnp.asarray(mask))
    return time.perf_counter() - start
