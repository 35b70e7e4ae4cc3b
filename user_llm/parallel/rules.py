"""Logical axis → mesh axis: how each parameter is cut over the mesh.

Parameters name their dimensions (`layers.py`); this table, with the rows that activations share
(`models/sharding.py`), alone decides what that means on devices, so a new sharding is a changed row and no change in a
model (the idea of T5X's logical axis rules).
"""

import logging
from collections.abc import Mapping, Sequence

from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from user_llm.models import sharding
from user_llm.models.parameters import Shaped

_logger = logging.getLogger(__name__)

RULES: dict[str, str | None] = {
    **sharding.RULES,  # of heads and of hidden channels, which activations have too
    "vocab": "tensor",
    "items": "tensor",
    "embed": "fsdp",
    "user": "fsdp",
    "head_dim": None,
    "feature": None,
    "norm": None,
    "layers": None,
}


def partition_spec(
    path: str, shape: Sequence[int], axes: Sequence[str | None], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """The cut of one parameter. A dimension its mesh axis does not divide (an odd vocabulary, say) stays whole.

    A large table is cut by its rows alone (`sharding.class_axes`).

    Raises:
      ValueError: an axis name without a rule, or a number of names unlike the number of dimensions.
    """
    if len(shape) != len(axes):
        raise ValueError(f"Parameter {path} has shape {tuple(shape)} but {len(axes)} logical axes {tuple(axes)}.")
    if axes and axes[0] in ("items", "vocab") and shape[0] > sharding.LARGE and mesh.shape["fsdp"] > 1:
        if cut := sharding.class_axes(shape[0], mesh):
            return PartitionSpec(cut, *[None] * (len(shape) - 1))
        shards, said = mesh.shape["fsdp"] * mesh.shape["tensor"], "each device gathers them"
        _logger.warning("%s: its %d rows are no multiple of fsdp times tensor (%d): %s", path, shape[0], shards, said)
    spec: list[str | None] = []
    for size, axis in zip(shape, axes, strict=True):
        if axis is not None and axis not in RULES:
            raise ValueError(f"Parameter {path}: logical axis {axis!r} has no rule; add one to parallel/rules.py.")
        mesh_axis = RULES[axis] if axis is not None else None
        if mesh_axis in spec:
            mesh_axis = None  # one mesh axis cuts a parameter once
        if mesh_axis is not None and size % mesh.shape[mesh_axis]:
            _logger.info(
                "%s: axis %r (%d) stays whole: %r has %d devices", path, axis, size, mesh_axis, mesh.shape[mesh_axis]
            )
            mesh_axis = None
        spec.append(mesh_axis)
    return PartitionSpec(*spec)


def parameter_shardings(
    parameters: Mapping[str, Shaped], axes: Mapping[str, Sequence[str | None]], mesh: Mesh
) -> dict[str, NamedSharding]:
    """Path → sharding, for (abstract) parameters and their logical axes."""
    return {
        path: NamedSharding(mesh, partition_spec(path, value.shape, axes[path], mesh))
        for path, value in parameters.items()
    }
