"""Initial parameters of a stage: some pretrained (an earlier stage, a downloaded LLM), the rest random."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from jax.extend.core import jaxpr_as_fun
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from user_llm.errors import UserError
from user_llm.models import parameters
from user_llm.models.parameters import Builder, Parameters
from user_llm.parallel import rules


def with_prefix(prefix: str, pretrained: Parameters) -> Parameters:
    """The parameters of a component, under its name in the whole model: `layers/…` → `encoder/layers/…`."""
    return {f"{prefix}/{path}": value for path, value in pretrained.items()}


def without_prefix(prefix: str, values: Parameters) -> Parameters:
    """The inverse of `with_prefix`: one component's parameters out of a whole model's."""
    return {path.removeprefix(f"{prefix}/"): value for path, value in values.items() if path.startswith(f"{prefix}/")}


@dataclasses.dataclass(frozen=True)
class Layout:
    """A model on a mesh before anything of it is computed.

    Attributes:
      graphdef: its structure.
      parameters: path → shape, dtype and sharding.
      buffers: their paths.
      draw: all random parameters and all buffers; traced already, as to trace a model takes as long as to compile it.
    """

    graphdef: nnx.GraphDef
    parameters: Mapping[str, jax.ShapeDtypeStruct]
    buffers: tuple[str, ...]
    draw: Callable[[], tuple[Parameters, Parameters]]

    @classmethod
    def of(cls, build: Builder, seed: int, mesh: Mesh) -> "Layout":
        """That of what `build` makes with the random numbers of `seed`."""
        built: dict[str, Any] = {}

        def make() -> tuple[Parameters, Parameters]:
            model = build(nnx.Rngs(seed))
            built["graphdef"], values, buffers = parameters.split(model)
            built["axes"] = parameters.logical_axes(model)
            return values, buffers

        traced = jax.jit(make).trace()
        abstract, buffers = traced.out_info
        structure = jax.tree.structure(traced.out_info)

        def draw() -> tuple[Parameters, Parameters]:
            drawn: tuple[Parameters, Parameters] = jax.tree.unflatten(structure, jaxpr_as_fun(traced.jaxpr)())
            return drawn

        shardings = rules.parameter_shardings(abstract, built["axes"], mesh)
        placed = {
            path: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=shardings[path])
            for path, value in abstract.items()
        }
        return cls(built["graphdef"], placed, tuple(buffers), draw)


def initialise(
    build: Builder,
    seed: int,
    mesh: Mesh,
    pretrained: Mapping[str, jax.Array] | None = None,
    given_away: Mapping[str, jax.Array] | None = None,
    layout: Layout | None = None,
) -> tuple[nnx.GraphDef, Parameters, Parameters]:
    """Builds a model straight onto the mesh: pretrained values where given, random ones elsewhere.

    Random tensors a pretrained one replaces are never computed, and no device holds more than its slice.

    Args:
      pretrained: values that stay the caller's: the model gets copies, which training may then donate.
      given_away: values nobody else reads any more, such as a downloaded LLM: used where they lie if they may be.
      layout: that of this model on this mesh, where it is known already: to find it takes a moment.

    Returns:
      (structure, parameters, buffers), as `parameters.split` does.

    Raises:
      UserError: a pretrained tensor has no place in the model, or another shape.
    """
    own = given_away or {}
    pretrained = {**(pretrained or {}), **own}
    layout = layout or Layout.of(build, seed, mesh)
    places = layout.parameters
    for path, value in pretrained.items():
        if path not in places:
            raise UserError(f"The pretrained tensor {path} {value.shape} has no place in this model.")
        if places[path].shape != value.shape:
            raise UserError(
                f"The pretrained tensor {path} has shape {value.shape}, the model expects {places[path].shape}: "
                "the config describes another model than the one that was trained."
            )
    random = {path: place.sharding for path, place in places.items() if path not in pretrained}
    whole = NamedSharding(mesh, PartitionSpec())

    def draw() -> tuple[Parameters, Parameters]:
        drawn, buffers = layout.draw()
        return {path: drawn[path] for path in random}, buffers

    drawn, buffers = jax.jit(draw, out_shardings=(random, dict.fromkeys(layout.buffers, whole)))()
    placed = {
        path: jax.device_put(value.astype(places[path].dtype), places[path].sharding, may_alias=path in own)
        for path, value in pretrained.items()
    }
    return layout.graphdef, {path: placed[path] if path in placed else drawn[path] for path in places}, buffers
