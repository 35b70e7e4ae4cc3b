"""How activations lie on a mesh. XLA guesses where nobody says, and on a mesh of several axes it guesses badly:
it cut vectors by the axis that cuts weights, and gathered whole batches to get from one cut to the other.

The mesh is the one the arguments of a program lie on, which JAX hands on with every traced value. Nothing has to be
in scope, and programs on one device hold no constraint.
"""

import math
from collections.abc import Sequence
from types import EllipsisType
from typing import Final

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

BATCH = ("data", "fsdp")  # the mesh axes that cut the leading axis of batches and activations
# Logical axis → mesh axis, for what parameters and activations have in common (`parallel/rules.py` has the others).
RULES = {"heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "user_mlp": "tensor"}
ANY: Final = "any"  # a dimension that stays as it lies
COPIES: Final = "copies"  # rows of a batch that devices have in common which cut a table's classes
CLASSES: Final = "classes"  # the rows of a table: see `class_axes`
_CUT_BY_CLASS = ("fsdp", "tensor")
LARGE = 2**19  # rows; a table of more, as no vocabulary of text has them, is not gathered
_MULTIPLE = 512  # of rows of large tables: so many devices, or a part of them, can cut one


def padded_rows(classes: int) -> int:
    """How many rows [V] a table of `classes` is made with: a large one has some more, so that meshes divide them.

    That is by its size alone: a checkpoint of one mesh is one of every other. What lies behind the classes is zero, is
    never looked up, and is no class of a softmax.
    """
    return classes if classes <= LARGE else -(-classes // _MULTIPLE) * _MULTIPLE


def class_axes(rows: int, mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """The mesh axes that cut a large table [V, U] of `rows` by its rows alone; none where they do not divide them.

    All other tables are cut by their width over `fsdp`, and gathered for a step.
    """
    shards = math.prod(mesh.shape.get(name, 1) for name in _CUT_BY_CLASS)
    cut = rows > LARGE and mesh.shape.get("fsdp", 1) > 1 and rows % shards == 0
    return _CUT_BY_CLASS if cut else ()


def shard(x: jax.Array, *axes: str | EllipsisType | None) -> jax.Array:
    """`x` [...] whose dimensions lie as `axes` say: "batch", a name in `RULES` or of those above, or None (whole).

    One `...` stands for as many None as `x` has dimensions more. A dimension that the mesh does not divide stays whole.
    Outside of a trace, or where the mesh is one device, `x` itself.
    """
    mesh = jax.typeof(x).sharding.mesh
    if not isinstance(x, jax.core.Tracer) or mesh.size <= 1:
        return x
    named = [axis for axis in axes if axis is not ...]
    if len(named) < len(axes):
        at = axes.index(...)
        named[at:at] = [None] * (x.ndim - len(named))

    def cut(size: int, axis: str | None):
        if axis is None:
            return None
        if axis == ANY:
            return PartitionSpec.UNCONSTRAINED
        if axis == CLASSES:
            return class_axes(size, mesh) or PartitionSpec.UNCONSTRAINED
        wanted = BATCH if axis == "batch" else BATCH[:1] if axis == COPIES else (RULES[axis],)
        names = tuple(name for name in wanted if name in mesh.shape)
        shards = math.prod(mesh.shape[name] for name in names)
        return names if shards > 1 and size % shards == 0 else None

    spec = PartitionSpec(*(cut(size, axis) for size, axis in zip(x.shape, named, strict=True)))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def cut_by_class(x: jax.Array, rows: int) -> tuple[str, ...]:
    """`class_axes` of a table of `rows` on the mesh of a traced `x`; none outside of a trace."""
    return class_axes(rows, jax.typeof(x).sharding.mesh) if isinstance(x, jax.core.Tracer) else ()


def batch_shards(x: jax.Array) -> int:
    """Number of slices that the mesh of a traced `x` cuts batches into; 1 outside of a trace."""
    shape = jax.typeof(x).sharding.mesh.shape
    return math.prod(shape.get(name, 1) for name in BATCH) if isinstance(x, jax.core.Tracer) else 1


def deal(x: jax.Array, sizes: Sequence[int], axis: int = 0) -> list[jax.Array]:
    """Deals the rows of `x` [..., B, ...] by turns to groups [..., size, ...], whose `sizes` sum to B.

    With sizes in the proportion 3 : 1, of every four rows the first three go to the first group. So each device keeps
    its share of every group, where `axis` is cut over devices.
    """
    turns = math.gcd(*sizes)
    shape = (*x.shape[:axis], turns, sum(sizes) // turns, *x.shape[axis + 1 :])
    parts = jnp.split(x.reshape(shape), np.cumsum(sizes)[:-1] // turns, axis + 1)
    return [part.reshape(*x.shape[:axis], size, *x.shape[axis + 1 :]) for part, size in zip(parts, sizes, strict=True)]
