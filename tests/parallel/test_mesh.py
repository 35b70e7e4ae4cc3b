"""The same step on one device and on meshes of eight: the same loss, gradients and updates to rounding."""

import contextlib
import functools
import math
import os
import re
import tempfile
from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from user_llm.checkpoints.transfer import initialise
from user_llm.models import parameters
from user_llm.models.autoregressive_encoder import AutoregressiveEncoder, EncoderConfig
from user_llm.models.cross_attention import CrossAttention, CrossAttentionConfig
from user_llm.models.language_model import LanguageModel, LanguageModelConfig
from user_llm.models.model import Model
from user_llm.models.sharding import shard
from user_llm.models.user_llm import UserLLM
from user_llm.parallel import mesh as meshes
from user_llm.parallel.rules import parameter_shardings, partition_spec
from user_llm.schema import training
from user_llm.training import loop
from user_llm.training.objectives import autoregressive_objective, contextualised_objective
from user_llm.training.trainable import EVERYTHING

ITEMS, S, T, V = 31, 8, 8, 32
B = 40  # as no other dimension: what has it in a program on several devices is a whole batch
ONE = {"data": 1, "fsdp": 1, "tensor": 1}
ALL_AXES = {"data": 2, "fsdp": 2, "tensor": 2}
EIGHT = ({"data": 8, "fsdp": 1, "tensor": 1}, {"data": 1, "fsdp": 8, "tensor": 1}, ALL_AXES)


def build_encoder(rngs, scan_layers=False):
    config = EncoderConfig(max_length=S, num_layers=2, width=16, num_heads=4, hidden=32, scan_layers=scan_layers)
    categories = np.arange(ITEMS + 1)[:, None] % 5
    return AutoregressiveEncoder(config, item_categories=categories, num_categories=4, num_ratings=5, rngs=rngs)


def build_user_llm(rngs, scan_layers=False):
    llm = LanguageModelConfig(
        vocab_size=V,
        num_layers=2,
        width=16,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        hidden=32,
        scan_layers=scan_layers,
    )
    dims = CrossAttentionConfig(every=1, num_heads=2, head_dim=8, hidden=32)
    encoder = build_encoder(rngs, scan_layers)
    return UserLLM(encoder, None, CrossAttention(dims, llm, 16, rngs=rngs), LanguageModel(llm, rngs=rngs))


def make_batch():
    generator = np.random.default_rng(0)
    item = generator.integers(1, ITEMS + 1, (B, S + 1)).astype(np.int32)
    rating = generator.integers(1, 6, (B, S + 1)).astype(np.int32)
    item[:3, :4] = rating[:3, :4] = 0
    tokens = generator.integers(1, V, (B, T + 1)).astype(np.int32)
    return {
        "history/item": item[:, :-1],
        "history/rating": rating[:, :-1],
        "label/item": item[:, -1],
        "label/rating": rating[:, -1],
        "decoder_input_tokens": tokens[:, :-1],
        "decoder_target_tokens": tokens[:, 1:],
        "decoder_positions": np.broadcast_to(np.arange(T, dtype=np.int32), (B, T)),
        "decoder_loss_weights": (generator.random((B, T)) < 0.7).astype(np.float32),
        "prompt_tokens": tokens[:, :1],
        "prompt_lengths": np.ones(B, np.int32),
        "dropped_events": np.zeros(B, np.int32),
    }


def mesh_of(sizes: dict[str, int]) -> Mesh:
    if sizes is ONE:
        return meshes.one_device()
    return meshes.make_mesh(sizes)


class Step(NamedTuple):
    """One step of gradient descent: its results, its program, the constraints in that, and what XLA warned of."""

    loss: float
    parameters: dict[str, np.ndarray]
    program: str
    constraints: int
    log: str


def one_step(build, objective, sizes, watched) -> Step:
    mesh = mesh_of(sizes)
    graphdef, values, buffers = initialise(build, 0, mesh)
    config = training(batch_size=B, clip_norm=0.0)
    axes = parameters.logical_axes(parameters.abstract(build))
    model = Model(graphdef, values, buffers, mesh)
    stage = loop.TrainingRun("user_llm", config, model, axes, EVERYTHING, objective, batches=None)
    # Open gates, so that the context reaches the loss.
    values = {path: value + 0.5 if path.endswith("_gate_D") else value for path, value in values.items()}
    optimizer = optax.sgd(0.1)
    state = loop.replicate_scalars({"parameters": values, **loop.fresh_state(optimizer, values)}, mesh)
    arguments = state, {}, buffers, meshes.put_batch(make_batch(), mesh)
    lowered = loop.make_train_step(stage, optimizer, seed=0).lower(*arguments)
    with warnings_of_xla() if watched else contextlib.nullcontext([]) as log:
        step = lowered.compile()
    state, metrics = step(*arguments)
    loss = float(metrics["loss"][0] / metrics["loss"][1])
    constraints = lowered.as_text().count("sharding_constraint")
    return Step(loss, jax.tree.map(np.asarray, state["parameters"]), step.as_text(), constraints, "".join(log))


@contextlib.contextmanager
def warnings_of_xla():
    """A list that gets what XLA's compiler writes to this process' standard error, which no Python stream sees.

    Programs come from the compiler then, and not from the cache, and warnings are written as nowhere else in the tests.
    """
    log, error = [], os.dup(2)
    compilation_cache.reset_cache()  # has noted that it is in use
    jax.config.update("jax_enable_compilation_cache", False)
    jax.config.update("jax_logging_level", "WARNING")
    with tempfile.TemporaryFile("w+") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield log
        finally:
            os.dup2(error, 2)
            os.close(error)
            jax.config.update("jax_logging_level", "CRITICAL")
            jax.config.update("jax_logging_level", None)
            jax.config.update("jax_enable_compilation_cache", True)
            compilation_cache.reset_cache()
            file.seek(0)
            log.append(file.read())


@functools.cache
def step_of(name: str, mesh: int | None) -> Step:
    """The step of a model, on one device or on mesh `EIGHT[mesh]`; all tests share its program."""
    return one_step(*MODELS[name], ONE if mesh is None else EIGHT[mesh], watched=mesh == 2 and name in WATCHED)


MODELS = {
    "encoder": (build_encoder, autoregressive_objective(chunk_rows=32)),
    "user_llm": (build_user_llm, contextualised_objective(chunk_rows=32)),
    "user_llm scanned": (functools.partial(build_user_llm, scan_layers=True), contextualised_objective(chunk_rows=32)),
}


def show(value):
    return value if isinstance(value, str) else ",".join(f"{axis}={size}" for axis, size in value.items() if size > 1)


CASES = [
    pytest.param("user_llm", 0, marks=pytest.mark.drill),
    pytest.param("user_llm", 1, marks=pytest.mark.drill),
    ("user_llm", 2),
    ("encoder", 2),
    pytest.param("user_llm scanned", 2, marks=pytest.mark.drill),
]
WATCHED = ("encoder", "user_llm")  # compiled anew at each run of the tests


@pytest.mark.parametrize(
    ("name", "mesh"), CASES, ids=lambda value: show(value if isinstance(value, str) else EIGHT[value])
)
def test_a_step_on_eight_devices_is_the_step_on_one(name, mesh):
    step, one = step_of(name, mesh), step_of(name, None)
    np.testing.assert_allclose(step.loss, one.loss, rtol=1e-5)
    for path, value in one.parameters.items():
        np.testing.assert_allclose(step.parameters[path], value, rtol=1e-3, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("name", WATCHED)
def test_xla_finds_its_way_from_cut_to_cut(name):
    """It says "Involuntary full rematerialization" where it has to make an array whole to cut it another way."""
    log = step_of(name, 2).log
    assert "rematerialization" not in log, log


@pytest.mark.parametrize("name", WATCHED)
def test_no_device_holds_the_activations_of_a_whole_batch(name):
    """Of 40 examples, or their 320 slots flattened; indices and masks, one number a slot, are nothing."""
    arrays = re.findall(r"\w+\[([\d,]+)\]", step_of(name, 2).program)
    shapes = {tuple(map(int, shape.split(","))) for shape in arrays}
    assert any(B // 4 in shape for shape in shapes)  # the check sees: a device has its ten
    whole = [shape for shape in shapes if shape[0] in (B, B * S) and math.prod(shape) > B * S * 2]
    assert not whole


def test_a_program_on_one_device_holds_no_constraint():
    assert step_of("user_llm", None).constraints == 0 < step_of("user_llm", 2).constraints


def test_a_dimension_of_an_activation_that_the_mesh_does_not_divide_stays_whole():
    mesh = meshes.make_mesh(ALL_AXES)
    x = jax.device_put(np.ones((8, 3, 2)), NamedSharding(mesh, PartitionSpec()))
    for axes, spec in {
        ("batch", "heads", None): PartitionSpec(("data", "fsdp"), None, None),
        (None, "batch", "kv_heads"): PartitionSpec(None, None, "tensor"),
        ("mlp", ...): PartitionSpec("tensor", None, None),
    }.items():
        out = jax.jit(lambda x, axes=axes: shard(x, *axes))(x)
        assert out.sharding.is_equivalent_to(NamedSharding(mesh, spec), 3), axes
        np.testing.assert_array_equal(out, x)
    assert shard(x, "batch", "heads", None) is x  # nothing is moved outside of a program


def test_parameters_are_cut_over_the_mesh():
    mesh = meshes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    _, values, _ = initialise(build_user_llm, 0, mesh)
    query = values["language_model/layers/0/attention/q_DNH"]
    assert query.sharding.spec == PartitionSpec("fsdp", "tensor", None)
    assert query.addressable_shards[0].data.shape == (8, 2, 8)


def test_a_dimension_the_mesh_does_not_divide_stays_whole():
    mesh = meshes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    assert partition_spec("x", (31, 16), ("items", "user"), mesh) == PartitionSpec(None, "fsdp")


def test_an_axis_without_a_rule_is_named():
    model = parameters.abstract(build_encoder)
    axes = {**parameters.logical_axes(model), "position_SU": ("slots", "user")}
    with pytest.raises(ValueError, match=r"position_SU.*'slots' has no rule"):
        parameter_shardings(parameters.split(model)[1], axes, meshes.make_mesh({"data": 8, "fsdp": 1, "tensor": 1}))


@pytest.mark.parametrize("sizes", [{"data": 3, "fsdp": 1, "tensor": 1}, {"data": -1, "fsdp": 3, "tensor": 1}])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes):
    with pytest.raises(ValueError, match=r"config.compute.mesh .* 8 devices"):
        meshes.make_mesh(sizes)
