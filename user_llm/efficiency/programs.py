"""The programs that are compared, each built from a config's dimensions with random weights, and their measures."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from user_llm.config import ConfigError
from user_llm.data.sources import decoder_features
from user_llm.decoding.prefill import Prompt, extend, prefill
from user_llm.experiment.assembly import Assembly
from user_llm.inspect.dry_run import assembly_of
from user_llm.models import parameters
from user_llm.models.attention import all_at_once
from user_llm.models.model import Model
from user_llm.models.parameters import Parameters
from user_llm.models.user_llm import UserLLM
from user_llm.parallel.mesh import one_device, put_batch
from user_llm.training.loop import TrainingRun, fresh_state, make_train_step
from user_llm.training.objectives import contextualised_objective, history
from user_llm.training.optimizer import make_optimizer
from user_llm.training.trainable import STRATEGIES, trainable

TEXT_PROMPT, USER_LLM, PERCEIVER = "TextPrompt", "User-LLM", "User-LLM + Perceiver"
STORED = ", stored embeddings"
TEXT_TOKENS = {50: 700, 100: 1350, 200: 2500}  # events → tokens of a text prompt, the paper's table 3

_LEAST_SECONDS = 0.1  # a short program is repeated this long each time its turn comes


@dataclasses.dataclass(frozen=True)
class Approach:
    """A model without its data: how it is built, and `tokens` of text that it is given to read for `users`."""

    assembly: Assembly
    tokens: int
    users: int

    @classmethod
    def of(cls, config: ConfigDict, name: str, events: int, users: int) -> "Approach":
        """The config's model for histories of `events`, all of it trained.

        Raises:
          ConfigError: the text does not fit into the LLM.
        """
        config = config.copy_and_resolve_references()
        config.strategy, config.data.history_length = "full", events
        config.integration.perceiver.enabled = name == PERCEIVER
        # Without loops, whose bodies XLA's cost analysis counts once.
        config.compute.scan_layers = config.compute.remat = False
        config.training.user_llm.accumulate = 1
        config.encoder.chunk_rows = users * config.prompt.max_targets
        if name == TEXT_PROMPT:
            config.integration.kind = "none"
        tokens = TEXT_TOKENS[events] if name == TEXT_PROMPT else config.prompt.max_inputs
        assembly = assembly_of(config)
        needed = assembly.soft_prompt_length + tokens + config.prompt.max_targets
        most = assembly.language_model_config.max_length
        if needed > most:
            raise ConfigError(
                f"{name} of {events} events takes {needed} tokens with its answer, and this LLM at most {most}: "
                "raise config.llm.max_length, or measure shorter histories with --events"
            )
        return cls(assembly, tokens, users)

    @property
    def config(self) -> ConfigDict:
        return self.assembly.config

    @functools.cached_property
    def model(self) -> tuple[nnx.GraphDef, Parameters, Parameters]:
        """As `parameters.split` gives it; drawn by NumPy, where compiling the initialisers would take minutes."""
        graphdef, shapes, buffers = parameters.split(parameters.abstract(self.assembly.user_llm))
        rng = np.random.default_rng(0)
        values = {
            path: jnp.asarray(0.02 * rng.standard_normal(shape.shape, np.float32), shape.dtype)
            for path, shape in shapes.items()
        }
        return graphdef, values, _ones(buffers)

    @functools.cached_property
    def batch(self) -> dict[str, jax.Array]:
        """What a training step reads: random users, and random text of the right length with an answer behind it."""
        rng, config, assembly = np.random.default_rng(0), self.config, self.assembly
        vocabulary = assembly.language_model_config.vocab_size
        tokens = rng.integers(1, vocabulary, (self.users, self.tokens + config.prompt.max_targets), dtype=np.int32)
        shape = (self.users, config.data.history_length)
        batch = {
            "history/item": rng.integers(1, len(assembly.item_categories), shape, dtype=np.int32),
            "history/rating": rng.integers(1, assembly.num_ratings + 1, shape, dtype=np.int32),
            "prompt_tokens": tokens[:, : self.tokens],
            "prompt_lengths": np.full(self.users, self.tokens, np.int32),
            "dropped_events": np.zeros(self.users, np.int32),
            **decoder_features(tokens, np.full(self.users, tokens.shape[1]), self.tokens),
        }
        return put_batch(batch, one_device())

    def merge(self, values: Parameters, buffers: Parameters) -> UserLLM:
        return parameters.merge(self.model[0], values, buffers)

    def encode(self, values: Parameters, buffers: Parameters, batch: Mapping[str, jax.Array]) -> Any:
        """The users' context; None for TextPrompt."""
        return self.merge(values, buffers).encode(*history(batch))

    def read(self, values: Parameters, buffers: Parameters, batch: Mapping[str, jax.Array], context: Any) -> Prompt:
        """The prompts, read, with room for the answer behind them."""
        room = self.config.prompt.max_targets
        tokens, lengths = batch["prompt_tokens"], batch["prompt_lengths"]
        return prefill(self.merge(values, buffers), tokens, lengths, context, free_slots=room)


class Program(NamedTuple):
    """A compiled program, a call of it, and the same arithmetic without loops over the queries of its attention."""

    compiled: jax.stages.Compiled
    run: Callable[[], Any]
    counted: jax.stages.Lowered

    @property
    def costs(self) -> dict[str, float]:
        """FLOPs by XLA's cost analysis, and the memory it takes with its arguments and results."""
        memory: Any = self.compiled.memory_analysis()
        costs: Any = self.counted.cost_analysis()
        held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        return {
            "flops": costs["flops"],
            "peak_mib": (held + memory.temp_size_in_bytes) / 2**20,
        }


def prefill_program(approach: Approach) -> Program:
    """From histories and prompts to the logits of the first answer token."""

    def program(values, buffers, batch):
        return _first_logits(approach, values, buffers, batch, approach.encode(values, buffers, batch))

    _, values, buffers = approach.model
    return _program(program, values, buffers, approach.batch)


def stored_prefill_program(approach: Approach) -> Program:
    """The same where the users' context has been made before, and stored."""
    _, values, buffers = approach.model
    context = _ones(jax.eval_shape(approach.encode, values, buffers, approach.batch))
    return _program(functools.partial(_first_logits, approach), values, buffers, approach.batch, context)


def decode_program(approach: Approach) -> Program:
    """One more token for each user, behind a prompt that has been read."""
    _, values, buffers = approach.model
    last = approach.config.prompt.max_targets - 1

    @functools.partial(jax.jit, donate_argnums=0)
    def step(cache, values, buffers, prompt, tokens):
        model, prompt = approach.merge(values, buffers), prompt._replace(cache=cache)
        hidden, cache = extend(model, prompt, tokens, steps=last, sees=jnp.ones((1, 1, last + 1), bool), slot=last)
        return cache, model.logits(hidden)

    context = jax.eval_shape(approach.encode, values, buffers, approach.batch)
    prompt = _ones(jax.eval_shape(approach.read, values, buffers, approach.batch, context))
    cache = prompt.cache
    arguments = values, buffers, prompt._replace(cache=None), jnp.ones((approach.users, 1), jnp.int32)
    lowered = step.lower(cache, *arguments)  # one query, which needs no loop
    compiled = lowered.compile()

    def call():
        nonlocal cache
        cache, logits = compiled(cache, *arguments)
        return logits

    return Program(compiled, call, lowered)


def train_program(approach: Approach) -> Program:
    """A training step: forward, backward and optimizer, as the training loop compiles it."""
    (graphdef, values, buffers), config = approach.model, approach.config
    axes = parameters.logical_axes(parameters.abstract(approach.assembly.user_llm))
    rules = STRATEGIES[config.strategy]
    trains = trainable(values, rules)
    tuned = {path: jnp.copy(value) for path, value in values.items() if trains[path]}  # the state is used up
    frozen = {path: value for path, value in values.items() if not trains[path]}
    optimizer = make_optimizer(config.training.user_llm, {path: axes[path] for path in tuned})
    state = {"parameters": tuned, **fresh_state(optimizer, tuned)}
    run = TrainingRun(
        name="user_llm",
        config=config.training.user_llm,
        model=Model(graphdef, values, buffers, one_device()),
        axes=axes,
        rules=rules,
        objective=contextualised_objective(config.encoder.chunk_rows),
        batches=None,  # type: ignore[arg-type]  # compiling a step reads none
    )

    def lower():
        return make_train_step(run, optimizer, seed=0).lower(state, frozen, buffers, approach.batch)

    compiled = lower().compile()
    with all_at_once():
        counted = lower()

    def call():
        nonlocal state
        state, metrics = compiled(state, frozen, buffers, approach.batch)
        return metrics

    return Program(compiled, call, counted)


PHASES = {"prefill": prefill_program, "decode": decode_program, "train": train_program}


def measure(config: ConfigDict, events: int, users: int, rounds: int) -> list[dict[str, Any]]:
    """One row an approach: what it reads, what it weighs, and what each phase costs with histories of `events`.

    Raises:
      ConfigError: the config has no User-LLM, or an LLM that is too short.
    """
    if config.integration.kind == "none":
        raise ConfigError(
            "config.integration.kind='none' has no User-LLM to measure: set cross_attention or soft_prompt"
        )
    approaches = {name: Approach.of(config, name, events, users) for name in (TEXT_PROMPT, USER_LLM, PERCEIVER)}
    rows = {name: _description(approach, name, events) for name, approach in approaches.items()}
    for phase, program_of in PHASES.items():
        programs = {name: program_of(approach) for name, approach in approaches.items()}
        if phase == "prefill":
            for name in (USER_LLM, PERCEIVER):
                programs[name + STORED] = stored_prefill_program(approaches[name])
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
    def lower():
        return jax.jit(lambda *arguments: function(*arguments)).lower(*arguments)  # traced anew each time

    compiled = lower().compile()
    with all_at_once():
        counted = lower()
    return Program(compiled, lambda: compiled(*arguments), counted)


def _first_logits(approach: Approach, values: Parameters, buffers: Parameters, batch, context):
    prompt = approach.read(values, buffers, batch, context)
    return approach.merge(values, buffers).logits(prompt.hidden), prompt.cache


def _ones(shapes):
    """Arrays of these shapes; what they hold costs no time."""
    return jax.tree.map(lambda shape: jnp.ones(shape.shape, shape.dtype), shapes)


def _description(approach: Approach, name: str, events: int) -> dict[str, Any]:
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
        "llm_tokens": tokens,
        "context_vectors": approach.assembly.context_length,
        "parameters": sizes,
        "flops_6nd": 6 * sizes["language_model"] * tokens,
    }
