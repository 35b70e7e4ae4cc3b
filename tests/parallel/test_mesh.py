"""The same step on one device and on meshes of eight: the same loss, gradients and updates to rounding."""

import functools

import jax
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

from configs.base import training
from user_llm.checkpoints.transfer import initialise
from user_llm.models import parameters
from user_llm.models.autoregressive_encoder import AutoregressiveEncoder, EncoderConfig
from user_llm.models.cross_attention import CrossAttention, CrossAttentionConfig
from user_llm.models.language_model import LanguageModel, LanguageModelConfig
from user_llm.models.model import Model
from user_llm.models.user_llm import UserLLM
from user_llm.parallel import mesh as meshes
from user_llm.parallel.rules import parameter_shardings, partition_spec
from user_llm.training import loop
from user_llm.training.objectives import autoregressive_objective, contextualised_objective
from user_llm.training.trainable import EVERYTHING

ITEMS, S, T, V, B = 31, 8, 8, 32, 16
ONE = {"data": 1, "fsdp": 1, "tensor": 1}
EIGHT = ({"data": 8, "fsdp": 1, "tensor": 1}, {"data": 1, "fsdp": 8, "tensor": 1}, {"data": 2, "fsdp": 2, "tensor": 2})


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


def one_step(build, objective, sizes):
    """The loss of one step of gradient descent, and the parameters after it."""
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
    step = loop.make_train_step(stage, optimizer, seed=0)
    batch = meshes.put_batch(make_batch(), mesh)
    state, metrics = step(state, {}, buffers, batch)
    loss = float(metrics["loss"][0] / metrics["loss"][1])
    return loss, jax.tree.map(np.asarray, state["parameters"])


@functools.cache
def on_one_device(name):
    return one_step(*MODELS[name], ONE)


MODELS = {
    "encoder": (build_encoder, autoregressive_objective(chunk_rows=32)),
    "user_llm": (build_user_llm, contextualised_objective(chunk_rows=32)),
    "user_llm scanned": (functools.partial(build_user_llm, scan_layers=True), contextualised_objective(chunk_rows=32)),
}


def show(value):
    return value if isinstance(value, str) else ",".join(f"{axis}={size}" for axis, size in value.items() if size > 1)


CASES = [("user_llm", sizes) for sizes in EIGHT] + [("encoder", EIGHT[-1]), ("user_llm scanned", EIGHT[-1])]


@pytest.mark.parametrize(("name", "sizes"), CASES, ids=show)
def test_a_step_on_eight_devices_is_the_step_on_one(name, sizes):
    loss, values = one_step(*MODELS[name], sizes)
    expected_loss, expected = on_one_device(name)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    for path, value in expected.items():
        np.testing.assert_allclose(values[path], value, rtol=1e-3, atol=1e-5, err_msg=path)


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
