"""Part llm compares equals: with our weights, `transformers` with hooks gives our loss and our gradients."""

import dataclasses

import jax
import numpy as np
import pytest

from benchmarks.llm_workload import encoder_of
from tests.benchmarks import llm_models
from user_llm.checkpoints.transfer import without_prefix
from user_llm.models import parameters
from user_llm.training.objectives import contextualised_objective

torch = pytest.importorskip("torch", reason="the extra `test` installs PyTorch on Python 3.11 only")


def test_contenders_train_the_same_blocks_and_encoder(tmp_path):
    from benchmarks.contenders import torch_user_llm  # needs PyTorch
    from tests.benchmarks.torch_weights import blocks_state, encoder_state

    assembly, ours, batch = llm_models.assembly(tmp_path), llm_models.model(tmp_path), llm_models.batch()
    dims, config = dataclasses.asdict(assembly.language_model_config), assembly.config
    tuned = {path: v for path, v in ours.parameters.items() if not path.startswith("language_model/")}

    @jax.jit
    @jax.value_and_grad
    def loss_of(tuned):
        model = parameters.merge(ours.graphdef, {**ours.parameters, **tuned}, ours.buffers)
        total, weight, _ = contextualised_objective(8)(model, batch, None)
        return total / weight

    loss, gradients = loss_of(tuned)
    sizes = encoder_of(config, llm_models.USERS, llm_models.ITEMS)
    frozen = torch_user_llm.load(tmp_path, torch.float32)
    theirs = torch_user_llm.build(frozen, config, dims, sizes, first_layer=0)
    assert len(theirs.blocks) == 2

    def states(values):
        encoder = encoder_state(without_prefix("encoder", values), sizes.num_layers)
        return encoder, blocks_state(without_prefix("connector", values), len(theirs.blocks))

    encoder, blocks = states(tuned)
    theirs.encoder.load_state_dict(encoder)
    theirs.blocks.load_state_dict(blocks)
    value = theirs(torch_user_llm.tensors(batch))
    value.backward()
    np.testing.assert_allclose(loss, value.item(), rtol=1e-5)
    for module, expected in zip((theirs.encoder, theirs.blocks), states(gradients), strict=True):
        found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            np.testing.assert_allclose(found[name], gradient, atol=1e-6, rtol=1e-4, err_msg=name)
    assert all(p.grad is None for p in theirs.language_model.parameters())


def test_blocks_stand_before_the_layers_that_are_named(tmp_path):
    """What users change in the hidden states begins at the first layer with a block, and not before."""
    from benchmarks.contenders import torch_user_llm  # needs PyTorch

    assembly = llm_models.assembly(tmp_path)
    dims, batch = dataclasses.asdict(assembly.language_model_config), torch_user_llm.tensors(llm_models.batch())
    sizes = encoder_of(assembly.config, llm_models.USERS, llm_models.ITEMS)
    seen = {}
    for first_layer in (0, 2):
        model = torch_user_llm.build(
            torch_user_llm.load(tmp_path, torch.float32), assembly.config, dims, sizes, first_layer
        )
        for block in model.blocks:
            torch.nn.init.ones_(block.attention_gate)
        inputs = []
        for layer in model.language_model.model.layers:
            layer.register_forward_hook(lambda _, given, __, inputs=inputs: inputs.append(given[0].detach()))
        model(batch)
        other = [x.clone() for x in inputs]
        inputs.clear()
        model({**batch, "history/item": batch["history/item"].flip(0)})
        seen[first_layer] = [bool((a != b).any()) for a, b in zip(other, inputs, strict=True)]
    assert seen == {0: [True] * 4, 2: [False, False, True, True]}
