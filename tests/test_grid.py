"""Every combination the paper speaks of, at toy size: encoder × integration × Perceiver × strategy × initialisation.

One step of training each, on the models a config assembles. Compiled functions are shared by the cells that may.
In CI are those in which every two of encoder, integration, Perceiver and strategy meet; the others are a drill.
"""

import functools
import hashlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from user_llm import schema
from user_llm.checkpoints.transfer import initialise, with_prefix
from user_llm.experiment.assembly import Assembly
from user_llm.experiment.validation import validate
from user_llm.models import parameters
from user_llm.models.language_model import causal_mask
from user_llm.models.model import Model
from user_llm.parallel.mesh import one_device
from user_llm.training import loop
from user_llm.training.objectives import contextualised_objective, history
from user_llm.training.optimizer import make_optimizer
from user_llm.training.trainable import STRATEGIES, trainable

ITEMS, CATEGORIES, RATINGS, VOCABULARY = 12, 3, 5, 19
USERS, EVENTS, TOKENS = 4, 6, 7

ENCODERS = ("autoregressive", "dual_encoder", "bert4rec")
PERCEIVER = {"perceiver": True, "events": False}
# A TextPrompt baseline has no encoder, so only the LLM can train.
CELLS = [
    *itertools.product(ENCODERS, ("cross_attention", "soft_prompt"), PERCEIVER, STRATEGIES),
    *itertools.product(("autoregressive",), ("none",), ("events",), ("full", "lora")),
]


def in_ci(cell, init) -> bool:
    """Of each model one strategy and one beginning, by turns: so every two of the four choices meet."""
    encoder, integration, perceiver, strategy = cell
    if integration == "none":
        return init == "pretrained"
    place = ENCODERS.index(encoder), int(integration == "soft_prompt"), int(PERCEIVER[perceiver])
    turn = place[0] + place[1] + 2 * place[2]
    return (strategy, init) == (STRATEGIES_BY_TURNS[turn % 4], ("pretrained", "random")[sum(place) % 2])


STRATEGIES_BY_TURNS = tuple(STRATEGIES)
FROZEN = {"full": (), "lora": ("language_model",), "enc": ("language_model",), "proj": ("encoder", "language_model")}


def configured(encoder, integration, perceiver, strategy):
    config = schema.get_config()
    config.data.history_length = EVENTS
    config.data.text_history = EVENTS if integration == "none" else 0
    config.encoder.update(kind=encoder, num_layers=1, width=8, num_heads=2, hidden=8)
    config.encoder.dual_encoder.num_outputs = 2  # attention to a single vector would have no use for its queries
    config.llm.update(num_layers=1, width=8, num_heads=2, num_kv_heads=1, head_dim=4, hidden=8)
    config.integration.update(kind=integration, num_heads=2, head_dim=4, hidden=8, task_prompt=2)
    config.integration.perceiver.update(
        enabled=PERCEIVER[perceiver], num_layers=1, num_latents=3, num_heads=2, hidden=8
    )
    config.strategy, config.lora.rank, config.lora.targets = strategy, 2, ("q", "v", "down")
    config.training.user_llm = schema.training(
        steps=1, learning_rate=0.01, warmup_fraction=0.0, weight_decay=0.0, keep_best="loss"
    )
    validate(config)
    return config


def assembled(config) -> Assembly:
    categories = np.zeros((ITEMS + 1, 2), np.int32)
    categories[1:, 0] = np.arange(ITEMS) % CATEGORIES + 1
    return Assembly(config, categories, CATEGORIES, RATINGS, VOCABULARY)


@functools.cache
def pretrained(encoder: str) -> dict[str, dict]:
    """Encoder and LLM of earlier stages."""
    assembly = assembled(configured(encoder, "cross_attention", "events", "full"))
    trained = {
        name: initialise(getattr(assembly, name), seed, one_device())[1]
        for name, seed in (("encoder", 7), ("language_model", 8))
    }
    return {name: with_prefix(name, values) for name, values in trained.items()}


@functools.cache
def initialised(encoder, integration, perceiver, adapted, init):
    """(structure, parameters, buffers) as a stage starts with them, and those of them that were given."""
    build = assembled(configured(encoder, integration, perceiver, "lora" if adapted else "full")).user_llm
    given = dict(pretrained(encoder)["language_model"])
    if init == "pretrained" and integration != "none":
        places = parameters.split(parameters.abstract(build))[1]
        given |= {path: value for path, value in pretrained(encoder)["encoder"].items() if path in places}
    return *initialise(build, 0, one_device(), given), given


@functools.lru_cache(maxsize=1)  # a step's program takes hundreds of memory maps, of which a process has 65,530
def compiled(cell):
    """(path → does it train, optimizer, train step) of a cell."""
    config = configured(*cell)
    model = parameters.abstract(assembled(config).user_llm)
    graphdef, shapes, _ = parameters.split(model)
    axes, rules = parameters.logical_axes(model), STRATEGIES[config.strategy]
    trains = trainable(shapes, rules)
    optimizer = make_optimizer(config.training.user_llm, {path: axes[path] for path in shapes if trains[path]})
    objective = contextualised_objective(chunk_rows=8)
    model = Model(graphdef, {}, {}, one_device())
    stage = loop.TrainingRun("user_llm", config.training.user_llm, model, axes, rules, objective, None)
    return trains, optimizer, loop.make_train_step(stage, optimizer, seed=0)


@functools.partial(jax.jit, static_argnames=("graphdef", "with_context"))
def logits_of(graphdef, values, buffers, batch, with_context=True):
    model = parameters.merge(graphdef, values, buffers)
    context = model.encode(*history(batch)) if with_context else None
    tokens = batch["decoder_input_tokens"]
    mask = causal_mask(jnp.ones(tokens.shape, bool))
    return model.logits(model(tokens, batch["decoder_positions"], mask, context=context)[0])


@functools.cache
def example():
    random = np.random.default_rng(0)
    items = random.integers(1, ITEMS + 1, (USERS, EVENTS), dtype=np.int32)
    items[np.arange(EVENTS) < np.array([0, 1, 2, 3])[:, None]] = 0
    tokens = random.integers(1, VOCABULARY, (USERS, TOKENS), dtype=np.int32)
    return {
        "history/item": items,
        "history/rating": np.where(items > 0, random.integers(1, RATINGS + 1, items.shape), 0).astype(np.int32),
        "decoder_input_tokens": tokens,
        "decoder_target_tokens": np.roll(tokens, -1, axis=1),
        "decoder_positions": np.tile(np.arange(TOKENS, dtype=np.int32), (USERS, 1)),
        "decoder_loss_weights": np.ones(tokens.shape, np.float32),
        "prompt_tokens": tokens[:, :1],
        "prompt_lengths": np.ones(USERS, np.int32),
        "dropped_events": np.zeros(USERS, np.int32),
    }


def opened(values):
    """Gates and adapters start at zero and shut off what lies behind them: as training would soon open them.

    They stay where they were, or every program that reads them would be compiled again for the new place.
    """
    random = np.random.default_rng(1)
    shut = {path: value for path, value in values.items() if not np.any(np.asarray(value))}
    ajar = {path: 0.3 + 0.1 * random.random(value.shape, np.float32) for path, value in shut.items()}
    return {**values, **{path: jax.device_put(value, shut[path].sharding) for path, value in ajar.items()}}


def digest(values):
    return {path: hashlib.sha256(np.asarray(value).tobytes()).hexdigest() for path, value in values.items()}


@pytest.mark.parametrize(
    ("cell", "init"),
    [
        pytest.param(cell, init, id="-".join((*cell, init)), marks=[] if in_ci(cell, init) else [pytest.mark.drill])
        for cell in CELLS
        for init in ("pretrained", "random")
    ],
)
def test_a_step_of_every_combination(cell, init):
    encoder, integration, perceiver, strategy = cell
    trains, optimizer, train_step = compiled(cell)
    graphdef, values, buffers, given = initialised(encoder, integration, perceiver, strategy == "lora", init)
    logits = functools.partial(logits_of, graphdef)
    batch = example()
    assert digest(given).items() <= digest(values).items()

    # What is added to an LLM leaves it as it was, to the bit, until it is trained.
    alone = logits(values, buffers, batch, with_context=False)
    if integration != "soft_prompt":
        np.testing.assert_array_equal(logits(values, buffers, batch), alone)

    values = opened(values)
    known = logits(values, buffers, batch)
    if integration != "none":
        others = {name: np.roll(batch[name], 1, axis=0) for name in ("history/item", "history/rating")}
        changed = np.abs(logits(values, buffers, {**batch, **others}) - known).max(axis=(1, 2))
        assert (changed > 1e-4).all(), "another user's history must be felt"
        padding = np.where(batch["history/item"] > 0, batch["history/rating"], 3)
        padded = logits(values, buffers, {**batch, "history/rating": padding})
        np.testing.assert_allclose(padded, known, atol=1e-6)
        last = {name: batch[name][3:, -3:] for name in ("history/item", "history/rating")}
        shorter = logits(values, buffers, {name: column[3:] for name, column in batch.items()} | last)
        np.testing.assert_allclose(shorter, known[3:], atol=1e-5)

    # What only the encoder's pretraining needs is no part of the model, and all else of it moves.
    assert not [path for path in values if "_head_" in path or "label_tower" in path or path.endswith("mask_U")]
    before = digest(values)
    tuned = {path: jnp.copy(value) for path, value in values.items() if trains[path]}
    frozen = {path: value for path, value in values.items() if not trains[path]}
    state = {"parameters": tuned, **loop.fresh_state(optimizer, tuned)}
    state, metrics = train_step(state, frozen, buffers, batch)
    assert np.isfinite(metrics["loss"][0])
    after = digest({**frozen, **state["parameters"]})

    def expected(path):
        return path.split("/")[0] not in FROZEN[strategy] or "/lora/" in path

    assert {path for path in before if after[path] != before[path]} == {path for path in before if expected(path)}


def test_every_two_of_the_four_choices_meet_in_ci():
    chosen = {cell for cell in CELLS if in_ci(cell, "pretrained") or in_ci(cell, "random")}
    for two in itertools.combinations(range(4), 2):
        met, all_of_them = ({tuple(cell[i] for i in two) for cell in cells} for cells in (chosen, CELLS))
        assert met == all_of_them
