"""Our parameters under the names of the benchmarks' PyTorch models, whose linear layers keep [out, in]."""

import numpy as np
import torch

HEADS = ("q_DNH", "k_DKH", "v_DKH")


def _linear(value) -> np.ndarray:
    return np.asarray(value).T


def _one(values, at):
    """The only parameter below a path."""
    (found,) = (value for name, value in values.items() if name.startswith(at))
    return found


def encoder_state(ours, num_layers: int) -> dict[str, torch.Tensor]:
    """Of `torch_encoder.Encoder`."""
    state = {
        "table": ours["embedding/item_VU"],
        "embedding_norm.weight": _one(ours, "embedding/norm/"),
        "position": ours["position_SU"],
        "final_norm.weight": _one(ours, "final_norm/"),
    }
    for layer in range(num_layers):
        at, to = f"layers/{layer}/", f"layers.{layer}."
        width = ours[at + "mlp/up_DF"].shape[0]
        qkv = [np.asarray(ours[f"{at}attention/{name}"]).reshape(width, width) for name in HEADS]
        state[to + "qkv.weight"] = np.concatenate(qkv, axis=1).T
        state[to + "output.weight"] = np.asarray(ours[at + "attention/o_NHD"]).reshape(width, width).T
        state[to + "up.weight"], state[to + "down.weight"] = (
            _linear(ours[at + f"mlp/{name}"]) for name in ("up_DF", "down_FD")
        )
        for norm in ("attention_norm", "mlp_norm"):
            state[f"{to}{norm}.weight"] = _one(ours, f"{at}{norm}/")
    return _tensors(state)


def blocks_state(ours, num_blocks: int) -> dict[str, torch.Tensor]:
    """Of `torch_user_llm.UserLLM.blocks`, from our connector's parameters."""
    state = {}
    for block in range(num_blocks):
        at, to = f"blocks/{block}/", f"{block}."
        for name, ours_name in zip("qkv", HEADS, strict=True):
            value = np.asarray(ours[f"{at}attention/{ours_name}"])
            state[f"{to}{name}.weight"] = value.reshape(len(value), -1).T
        output = np.asarray(ours[at + "attention/o_NHD"])
        state[to + "o.weight"] = output.reshape(-1, output.shape[-1]).T
        for name in ("gate_DF", "up_DF", "down_FD"):
            state[f"{to}{name.partition('_')[0]}.weight"] = _linear(ours[f"{at}mlp/{name}"])
        for norm in ("attention_norm", "mlp_norm"):
            state[f"{to}{norm}.weight"] = _one(ours, f"{at}{norm}/")
        for gate in ("attention_gate", "mlp_gate"):
            state[to + gate] = ours[f"{at}{gate}_D"]
    return _tensors(state)


def _tensors(state):
    return {name: torch.tensor(np.asarray(value)) for name, value in state.items()}
