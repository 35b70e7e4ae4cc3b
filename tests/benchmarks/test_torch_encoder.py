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


def torch_state(ours):
    """Our parameters under the names of the PyTorch encoder: its linear layers keep [out, in]."""
    width, linear = SMALL.width, lambda name: np.asarray(ours[name]).T
    state = {
        "table": ours["embedding/item_VU"],
        "projection.weight": linear("embedding/projection_EU"),
        "position": ours["position_SU"],
        "final_norm.weight": next(value for name, value in ours.items() if name.startswith("final_norm/")),
        "head.weight": linear("item_head_UU"),
    }
    for layer in range(SMALL.num_layers):
        at, to = f"layers/{layer}/", f"layers.{layer}."
        qkv = [np.asarray(ours[f"{at}attention/{name}"]).reshape(width, width) for name in ("q_DNH", "k_DKH", "v_DKH")]
        state[to + "qkv.weight"] = np.concatenate(qkv, axis=1).T
        state[to + "output.weight"] = np.asarray(ours[at + "attention/o_NHD"]).reshape(width, width).T
        state[to + "up.weight"], state[to + "down.weight"] = linear(at + "mlp/up_DF"), linear(at + "mlp/down_FD")
        for norm in ("attention_norm", "mlp_norm"):
            scales = [value for name, value in ours.items() if name.startswith(f"{at}{norm}/")]
            state[f"{to}{norm}.weight"] = scales[0]
    return {name: torch.tensor(np.asarray(value)) for name, value in state.items()}


def test_contenders_train_the_same_model():
    from benchmarks.contenders import torch_encoder  # needs PyTorch

    graphdef, ours, buffers = parameters.split(jax_encoder.build_encoder(SMALL))
    sequences = SMALL.sequences()
    batch = jax_encoder.build_batch(sequences)

    def loss(tuned, objective):
        total, weight, _ = objective(parameters.merge(graphdef, tuned, buffers), batch, None)
        return total / weight

    chunked = jax.value_and_grad(loss)(ours, autoregressive_objective(4))
    dense = jax.value_and_grad(loss)(ours, jax_encoder.dense_objective)

    theirs = torch_encoder.Encoder(SMALL)
    theirs.load_state_dict(torch_state(ours))
    items = torch.from_numpy(sequences).long()
    value = torch_encoder.dense_loss(theirs, items[:, :-1], items[:, 1:])
    value.backward()
    expected = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}

    for got, gradients in (chunked, dense):
        np.testing.assert_allclose(got, value.item(), rtol=1e-5)
        for name, gradient in torch_state(gradients).items():
            np.testing.assert_allclose(gradient, expected[name], atol=2e-6, err_msg=name)
    np.testing.assert_allclose(
        torch_encoder.chunked_loss(theirs, items[:, :-1], items[:, 1:]).item(), value.item(), rtol=1e-5
    )
