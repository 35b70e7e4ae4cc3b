"""Low-rank adapters of a language model's linear maps (LoRA, Hu et al. 2022)."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from user_llm.errors import UserError
from user_llm.models.layers import PROJECTIONS, Projections, cast, fan_in, parameter
from user_llm.models.linear import linear


@dataclass(frozen=True)
class LoraConfig:
    """A map x W of the `targets` becomes x W + (alpha / rank)·(x A) B, with A and B of `rank` columns and rows.

    In layers `first_layer` and later; those below stay as they are.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q", "v")
    first_layer: int = 0

    def __post_init__(self):
        if self.rank < 1:
            raise UserError(f"lora.rank must be at least 1, got {self.rank}.")
        unknown = [target for target in self.targets if target not in PROJECTIONS]
        if unknown or not self.targets:
            raise UserError(f"lora.targets is {self.targets!r}: name one or more of {', '.join(PROJECTIONS)}.")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class Adapter(nnx.Module):
    """(alpha / rank)·(x A) B beside the map `target` of `module`: A random, B zero, so that it starts as nothing."""

    def __init__(self, config: LoraConfig, module: Projections, target: str, *, rngs: nnx.Rngs):
        self.target, self.scale, self.dtype = target, config.scale, module.dtype
        inputs, outputs = PROJECTIONS[target]
        weight = getattr(module, f"{target}_{inputs}{outputs}")
        shape, axes, count = weight.shape, weight.logical_axes, len(inputs)
        a = (fan_in(math.prod(shape[:count])), (*shape[:count], config.rank), (*axes[:count], None))
        b = (jax.nn.initializers.zeros, (config.rank, *shape[count:]), (None, *axes[count:]))
        setattr(self, f"a_{inputs}R", parameter(rngs, *a, weight.dtype))
        setattr(self, f"b_R{outputs}", parameter(rngs, *b, weight.dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        inputs, outputs = PROJECTIONS[self.target]
        a, b = (cast(getattr(self, name), self.dtype) for name in (f"a_{inputs}R", f"b_R{outputs}"))
        return linear(linear(x, a, len(inputs)) * self.scale, b)


def add_lora(config: LoraConfig, *modules: Projections, rngs: nnx.Rngs) -> None:
    """Gives every one of the `modules` adapters for those of its maps that the config names.

    Raises:
      UserError: a target is a map that no module has (`gate`, where the MLP is not gated).
    """
    for target in config.targets:
        name = target + "_" + "".join(PROJECTIONS[target])
        owners = [module for module in modules if hasattr(module, name)]
        if not owners:
            raise UserError(f"lora.targets names {target!r}, which this model does not have; remove it.")
        for module in owners:
            if module.lora is None:
                module.lora = nnx.Dict()
            module.lora[target] = Adapter(config, module, target, rngs=rngs)


def merge_lora(parameters: Mapping[str, jax.Array], config: LoraConfig) -> dict[str, jax.Array]:
    """Adds every adapter to its weight, W + (alpha / rank)·A B in float32, and leaves the adapters out.

    Args:
      parameters: path → array, of a model or a part of one (any prefix), layers unrolled or stacked.
      config: the one the adapters were built with.
    Raises:
      UserError: there is no adapter, or one lacks its other half or its weight, or has another rank.
    """
    merged = {path: value for path, value in parameters.items() if "/lora/" not in path}
    adapters = sorted(path for path in parameters if re.search(r"/lora/\w+/a_\w+$", path))
    if not adapters:
        raise UserError("No LoRA adapter among the parameters: expected paths such as layers/0/attention/lora/q/a_DR.")
    for a_path in adapters:
        module, _, target, _ = a_path.rsplit("/", 3)
        inputs, outputs = PROJECTIONS[target]
        path, b_path = f"{module}/{target}_{inputs}{outputs}", f"{module}/lora/{target}/b_R{outputs}"
        for needed in (path, b_path):
            if needed not in parameters:
                raise UserError(f"The LoRA adapter {a_path} needs the parameter {needed}, which is not there.")
        a, b, weight = parameters[a_path], parameters[b_path], parameters[path]
        if a.shape[-1] != config.rank:
            raise UserError(f"{a_path} has rank {a.shape[-1]}, the config {config.rank}.")
        low_rank = f"...{inputs}R,...R{outputs}->...{inputs}{outputs}"
        change = jnp.einsum(low_rank, a.astype(jnp.float32), b.astype(jnp.float32), precision="highest")
        merged[path] = (weight.astype(jnp.float32) + config.scale * change).astype(weight.dtype)
    return merged
