"""A module's parameters as a flat `{path: array}` dict, the form training, sharding and checkpoints share.

Paths join attribute names and list indices with "/", as in `encoder/layers/0/attention/q_DNH`, so
that one regular expression can name a strategy's tensors, a sharding or a checkpoint's keys. Plain dicts
also cost `jax.jit` far less Python time per step than NNX states do.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx, traverse_util

Parameters = dict[str, jax.Array]
Shaped = jax.Array | jax.ShapeDtypeStruct  # what has a shape and a dtype: `split` of an `abstract` module gives such
Builder = Callable[[nnx.Rngs], nnx.Module]
Module = TypeVar("Module", bound=nnx.Module)


def _flatten(state: nnx.State) -> Parameters:
    flat = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    return {"/".join(map(str, path)): value for path, value in flat.items()}


def _unflatten(flat: Parameters) -> dict[str | int, Any]:
    return traverse_util.unflatten_dict(
        {tuple(int(part) if part.isdigit() else part for part in path.split("/")): v for path, v in flat.items()}
    )


def split(model: Module) -> tuple[nnx.GraphDef[Module], Parameters, Parameters]:
    """Returns (structure, parameters, buffers) of `model`; `merge` puts them together again."""
    graphdef, *states = nnx.split(model, nnx.Param, ...)
    parameters, buffers = states
    return graphdef, _flatten(parameters), _flatten(buffers)


def merge(graphdef: nnx.GraphDef[Module], parameters: Parameters, buffers: Parameters) -> Module:
    """The inverse of `split`; cheap and traceable, so jitted functions call it at their top."""
    return nnx.merge(graphdef, _unflatten({**parameters, **buffers}))


def abstract(build: Callable[[nnx.Rngs], Module]) -> Module:
    """The module `build` would make, with shapes in place of arrays: no memory, no computation."""
    return nnx.eval_shape(lambda: build(nnx.Rngs(0)))


def logical_axes(model: nnx.Module) -> dict[str, tuple[str | None, ...]]:
    """Path → the logical axis names of the parameter's dimensions (`parallel/rules.py` maps them to a mesh)."""
    state = nnx.state(model, nnx.Param)
    return {
        "/".join(map(str, path)): variable.get_metadata()["logical_axes"] for path, variable in nnx.to_flat_state(state)
    }
