"""A model as programs take it: structure, parameters and buffers, and the mesh they lie on."""

import dataclasses

import jax
from flax import nnx
from jax.sharding import Mesh

from user_llm.models import parameters
from user_llm.models.parameters import Parameters


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
    """What evaluation, decoding and the public API are given; a jitted function takes it as an argument.

    Attributes:
      graphdef, parameters, buffers: as `parameters.split` gives them.
      mesh: the devices that hold them.
    """

    graphdef: nnx.GraphDef = dataclasses.field(metadata={"static": True})
    parameters: Parameters
    buffers: Parameters
    mesh: Mesh = dataclasses.field(metadata={"static": True})

    def module(self) -> nnx.Module:
        """The NNX module; cheap and traceable, so jitted functions call it at their top."""
        return parameters.merge(self.graphdef, self.parameters, self.buffers)

    def with_parameters(self, values: Parameters) -> "Model":
        """The same model with other parameters."""
        return dataclasses.replace(self, parameters=values)
