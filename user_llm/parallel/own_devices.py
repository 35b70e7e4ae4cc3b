"""A model of several processes on the devices of one: its answers then wait for nobody."""

import dataclasses

import jax
from jax.sharding import NamedSharding

from user_llm.models.model import Model
from user_llm.parallel.mesh import own_mesh


def on_own_devices(model: Model) -> Model:
    """The model on this process' devices alone, where these hold all of it; else the model as it is.

    Nothing is copied: the arrays share their memory.
    """
    mesh = own_mesh(model.mesh)
    if mesh == model.mesh:
        return model

    def own(value: jax.Array) -> jax.Array:
        parts = [shard.data for shard in value.addressable_shards]
        sharding = NamedSharding(mesh, value.sharding.spec)  # type: ignore[attr-defined]  # all lie on the mesh
        return jax.make_array_from_single_device_arrays(value.shape, sharding, parts)

    parameters, buffers = jax.tree.map(own, (model.parameters, model.buffers))
    return dataclasses.replace(model, parameters=parameters, buffers=buffers, mesh=mesh)
