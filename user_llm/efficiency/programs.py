"""The programs that are compared, each built from a config's dimensions with random weights, and their measures."""

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from user_llm.assembly import Assembly
from user_llm.checkpoints.transfer import initialise
from user_llm.data.feature_converters import decoder_features
from user_llm.decoding.prefill import extend, prefill
from user_llm.dry_run import assembly_of
from user_llm.models import parameters
from user_llm.models.parameters import Parameters
from user_llm.parallel.mesh import one_device, put_batch
from user_llm.training.loop import Stage, fresh_state, make_train_step, replicate_scalars
from user_llm.training.objectives import contextualised_objective
from user_llm.training.optimizer import make_optimizer
from user_llm.training.trainable import STRATEGIES, trainable

TEXT_PROMPT, USER_LLM, PERCEIVER = "TextPrompt", "User-LLM", "User-LLM + Perceiver"
STORED = ", stored embeddings"
TEXT_TOKENS = {50: 700, 100: 1350, 200: 2500}  # events → tokens of a text prompt, the paper's table 3

_LEAST_SECONDS = 0.1  # a short program is repeated this long each time its turn comes


class Approach(NamedTuple):
    """A model without its data: how it is built, and `tokens` of text that it is given to read."""

    assembly: Assembly
    tokens: int

    @classmethod
    def of(cls, config: ConfigDict, name: str, events: int) -> "Approach":
        """The config's model for histories of `events`, all of it trained."""
        config = config.copy_and_resolve_references()
        config.strategy, config.data.history_length = "full", events
        config.integration.perceiver.enabled = name == PERCEIVER
        if name == TEXT_PROMPT:
            config.integration.kind = "none"
        tokens = TEXT_TOKENS[events] if name == TEXT_PROMPT else config.prompt.max_inputs
        return cls(assembly_of(config), tokens)

    @property
    def config(self) -> ConfigDict:
        return self.assembly.config

    def initialise(self) -> tuple[nnx.GraphDef, Parameters, Parameters]:
        """The model as `parameters.split` gives it, with random weights."""
        return initialise(self.assembly.user_llm, self.config.seed, one_device())

    def batch(self, users: int) -> dict[str, jax.Array]:
        """What a training step reads, and `prompt_tokens`: random users, and random text of the right length."""
        rng, config = np.random.default_rng(0), self.config
        assembly, answer = self.assembly, config.prompt.max_targets
        vocabulary = assembly.language_model_config.vocab_size
        tokens = rng.integers(1, vocabulary, (users, self.tokens + answer), dtype=np.int32)
        shape = (users, config.data.history_length)
        items = rng.integers(1, len(assembly.item_categories), shape, dtype=np.int32)
        ratings = rng.integers(1, assembly.num_ratings + 1, shape, dtype=np.int32)
        batch = {
            "history/item": items,
            "history/rating": ratings,
            "prompt_tokens": tokens[:, : self.tokens],
            "prompt_lengths": np.full(users, self.tokens, np.int32),
            "dropped_events": np.zeros(users, np.int32),
            **decoder_features(tokens, np.full(users, tokens.shape[1]), self.tokens),
        }
        return put_batch(batch, one_device())


class Program(NamedTuple):
    """A compiled program and a call of it; `users` at once, or their tokens."""

    compiled: Any
    run: Callable[[], Any]

    @property
    def costs(self) -> dict[str, float]:
        """FLOPs by XLA's cost analysis, and the memory it takes with its arguments and results."""
        memory = self.compiled.memory_analysis()
        held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        return {
            "flops": self.compiled.cost_analysis()["flops"],
            "peak_mib": (held + memory.temp_size_in_bytes) / 2**20,
        }


def prefill_programs(approach: Approach, name: str, users: int) -> Iterator[tuple[str, Program]]:
    """From a history and a prompt to the logits of the first answer token; and with embeddings made before."""
    graphdef, values, buffers = approach.initialise()
    batch, answer = approach.batch(users), approach.config.prompt.max_targets

    @jax.jit
    def encode(values, buffers, batch):
        return _encode(parameters.merge(graphdef, values, buffers), batch)

    def read(values, buffers, batch, context):
        model = parameters.merge(graphdef, values, buffers)
        if context is None:
            context = _encode(model, batch)
        prompt = prefill(model, batch["prompt_tokens"], batch["prompt_lengths"], context, free_slots=answer)
        return model.logits(prompt.hidden), prompt.cache

    yield name, _program(read, values, buffers, batch, None)
    if name != TEXT_PROMPT:
        yield name + STORED, _program(read, values, buffers, batch, encode(values, buffers, batch))


def decode_programs(approach: Approach, name: str, users: int) -> Iterator[tuple[str, Program]]:
    """One more token for each user, behind a prompt that has been read."""
    graphdef, values, buffers = approach.initialise()
    answer = approach.config.prompt.max_targets

    @jax.jit
    def read(values, buffers, batch):
        model = parameters.merge(graphdef, values, buffers)
        context = _encode(model, batch)
        return prefill(model, batch["prompt_tokens"], batch["prompt_lengths"], context, free_slots=answer)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(cache, values, buffers, prompt, tokens):
        model = parameters.merge(graphdef, values, buffers)
        sees = jnp.ones((1, 1, answer), bool)
        hidden, cache = extend(
            model, prompt._replace(cache=cache), tokens, steps=answer - 1, sees=sees, slot=answer - 1
        )
        return cache, model.logits(hidden)

    prompt = read(values, buffers, approach.batch(users))
    cache, prompt = prompt.cache, prompt._replace(cache=None)
    arguments = values, buffers, prompt, jnp.ones((users, 1), jnp.int32)
    compiled = step.lower(cache, *arguments).compile()

    def run():
        nonlocal cache
        cache, logits = compiled(cache, *arguments)
        return logits

    yield name, Program(compiled, run)


def train_programs(approach: Approach, name: str, users: int) -> Iterator[tuple[str, Program]]:
    """A training step: forward, backward and optimizer, as the training loop compiles it."""
    graphdef, values, buffers = approach.initialise()
    config, batch = approach.config, approach.batch(users)
    axes = parameters.logical_axes(parameters.abstract(approach.assembly.user_llm))
    trains = trainable(values, STRATEGIES["full"])
    tuned = {path: value for path, value in values.items() if trains[path]}
    frozen = {path: value for path, value in values.items() if not trains[path]}
    optimizer = make_optimizer(config.training.user_llm, {path: axes[path] for path in tuned})
    state = replicate_scalars({"parameters": tuned, **fresh_state(optimizer, tuned)}, one_device())

    def compiled(chunk_rows: int):
        stage = Stage(
            name="user_llm",
            config=config.training.user_llm,
            graphdef=graphdef,
            parameters=values,
            buffers=buffers,
            axes=axes,
            rules=STRATEGIES["full"],
            objective=contextualised_objective(chunk_rows),
            batches=None,
        )
        return make_train_step(stage, optimizer, seed=0).lower(state, frozen, buffers, batch).compile()

    step = compiled(config.encoder.chunk_rows)

    def run():
        nonlocal state
        state, metrics = step(state, frozen, buffers, batch)
        return metrics

    yield name, Program(step, run)


PHASES = {"prefill": prefill_programs, "decode": decode_programs, "train": train_programs}


def measure(config: ConfigDict, events: int, users: int, rounds: int) -> list[dict[str, Any]]:
    """One row an approach: what it reads, what it weighs, and what each phase costs with histories of `events`."""
    approaches = {name: Approach.of(config, name, events) for name in (TEXT_PROMPT, USER_LLM, PERCEIVER)}
    rows = {name: _description(approach, name, events, users) for name, approach in approaches.items()}
    for phase, make in PHASES.items():
        programs = dict(itertools.chain(*(make(approach, name, users) for name, approach in approaches.items())))
        seconds = interleaved({name: program.run for name, program in programs.items()}, rounds)
        for name, program in programs.items():
            row = rows.setdefault(name, {"events": events, "approach": name})
            row[phase] = {"seconds": median(seconds[name]), "rounds": seconds[name], **program.costs}
    return list(rows.values())


def interleaved(programs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each program in each round; a round runs every one of them. They have run once before."""
    for run in programs.values():
        jax.block_until_ready(run())
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, run in programs.items():
            calls, start = 0, time.perf_counter()
            while not calls or time.perf_counter() - start < _LEAST_SECONDS:
                jax.block_until_ready(run())
                calls += 1
            seconds[name].append((time.perf_counter() - start) / calls)
    return seconds


def _program(function: Callable, *arguments: Any) -> Program:
    compiled = jax.jit(function).lower(*arguments).compile()
    return Program(compiled, lambda: compiled(*arguments))


def _encode(model, batch: Mapping[str, jax.Array]):
    items = batch["history/item"]
    return model.encode({"item": items, "rating": batch["history/rating"]}, items > 0)


def _description(approach: Approach, name: str, events: int, users: int) -> dict[str, Any]:
    """Tokens, parameters by component, and the FLOPs of training on one example by the rule 6ND (Kaplan 2020)."""
    _, shapes, _ = parameters.split(parameters.abstract(approach.assembly.user_llm))
    sizes: dict[str, int] = {}
    for path, shape in shapes.items():
        component = path.split("/", 1)[0]
        sizes[component] = sizes.get(component, 0) + int(np.prod(shape.shape))
    tokens = approach.tokens + approach.assembly.soft_prompt_length
    return {
        "events": events,
        "approach": name,
        "users": users,
        "llm_tokens": tokens,
        "context_vectors": approach.assembly.context_length,
        "parameters": sizes,
        "flops_6nd": 6 * sizes["language_model"] * tokens,
    }
