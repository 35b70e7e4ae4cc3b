"""The benchmark compares equals: with our weights, the PyTorch encoder gives our loss and our gradients."""

import jax
import numpy as np
import pytest

from benchmarks.contenders import jax_encoder
from benchmarks.workload import Workload
from user_llm.models import parameters
from user_llm.training.objectives import autoregressive_objective

torch = pytest.importorskip("torch", reason="the extra `test` installs PyTorch on Python 3.11 only")

SMALL = Workload(batch_size=3, history_length=7, num_items=29, num_layers=2, width=16, num_heads=4, hidden=24)


def test_contenders_train_the_same_model():
    from benchmarks.contenders import torch_encoder  # needs PyTorch
    from tests.benchmarks.torch_weights import encoder_state

    graphdef, ours, buffers = parameters.split(jax_encoder.build_encoder(SMALL))
    sequences = SMALL.sequences()
    batch = jax_encoder.build_batch(sequences)

    def loss(tuned, objective):
        total, weight, _ = objective(parameters.merge(graphdef, tuned, buffers), batch, None)
        return total / weight

    chunked = jax.value_and_grad(loss)(ours, autoregressive_objective(4))
    dense = jax.value_and_grad(loss)(ours, jax_encoder.dense_objective)

    theirs = torch_encoder.Encoder(SMALL)
    theirs.load_state_dict(encoder_state(ours, SMALL.num_layers))
    items = torch.from_numpy(sequences).long()
    value = torch_encoder.dense_loss(theirs, items[:, :-1], items[:, 1:])
    value.backward()
    expected = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}

    for got, gradients in (chunked, dense):
        np.testing.assert_allclose(got, value.item(), rtol=1e-5)
        for name, gradient in encoder_state(gradients, SMALL.num_layers).items():
            np.testing.assert_allclose(gradient, expected[name], atol=2e-6, err_msg=name)
    np.testing.assert_allclose(
        torch_encoder.chunked_loss(theirs, items[:, :-1], items[:, 1:]).item(), value.item(), rtol=1e-5
    )
