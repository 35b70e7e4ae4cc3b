"""The device mesh: axes `data` (batch), `fsdp` (batch, and parameters in slices), `tensor` (inside a layer)."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from user_llm.errors import UserError
from user_llm.models import sharding

Tree = TypeVar("Tree")

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(sharding.BATCH)  # the leading axis of every batch array


def make_mesh(sizes: Mapping[str, int], among: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over all devices with `sizes` devices along each of `AXES`; one size may be -1 (the rest).

    Args:
      among: other devices than those of this run.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    shape = [sizes[axis] for axis in AXES]
    devices = jax.device_count() if among is None else len(among)
    if shape.count(-1) == 1:
        shape[shape.index(-1)] = devices // max(1, math.prod(size for size in shape if size != -1))
    if math.prod(shape) != devices or min(shape) < 1:
        raise UserError(
            f"config.compute.mesh = {dict(sizes)} does not cover the {devices} devices of this run: the sizes must "
            f"multiply to {devices}, and at most one may be -1 (take what is left)."
        )
    return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=among)


def one_device() -> Mesh:
    """The mesh of the first device alone."""
    return Mesh(np.array(jax.local_devices()[:1]).reshape(1, 1, 1), AXES)


def batch_shards(mesh: Mesh) -> int:
    """Number of slices a batch is cut into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def own_mesh(mesh: Mesh) -> Mesh:
    """The part of a mesh that is this process' own, where every process has whole models (`data` alone cuts none).

    The mesh itself where a model lies on devices of several processes.
    """
    owners = [{device.process_index for device in copy.flat} for copy in mesh.devices]  # along `data`
    if any(len(processes) > 1 for processes in owners):
        return mesh
    return Mesh(mesh.devices[[jax.process_index() in processes for processes in owners]], AXES)


def local_rows(mesh: Mesh, batch_size: int, process: int | None = None) -> np.ndarray:
    """The rows int64 `[rows]` of a global batch that a process' devices hold, in order.

    Processes that share slices of a batch (a `tensor` axis across hosts) hold the same rows.

    Args:
      process: its number; None: this one.

    Raises:
      UserError: a batch that does not divide among `batch_shards`.
    """
    process = jax.process_index() if process is None else process
    slices = NamedSharding(mesh, BATCH).devices_indices_map((batch_size,)).items()
    held = [np.arange(batch_size)[at] for device, at in slices if device.process_index == process]  # type: ignore[attr-defined]
    return np.unique(np.concatenate(held))


def put_whole(values: Tree, mesh: Mesh) -> Tree:
    """A pytree of arrays that every process has, on every device of the mesh."""
    everywhere = NamedSharding(mesh, PartitionSpec())

    def put(x):
        local = np.asarray(x)
        return jax.make_array_from_callback(local.shape, everywhere, lambda at: local[at])

    return jax.tree.map(put, values)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process' rows of a batch on its devices, as slices of the global batch. Does not wait for the copy.

    Args:
      batch: arrays `[rows, …]` of the rows that `local_rows` names, and of groups that they are cut to alike.

    Raises:
      UserError: rows that do not divide among the slices that this process holds.
    """
    shards = batch_shards(mesh)
    blocks = local_rows(mesh, shards)  # slices of the global batch, as many rows each

    def put(local: np.ndarray) -> jax.Array:
        size, rest = divmod(len(local), len(blocks))
        if rest:
            raise UserError(f"a batch of {len(local)} rows: expected a multiple of the {len(blocks)} slices held here.")

        def read(index: tuple[slice, ...]) -> np.ndarray:
            first = np.searchsorted(blocks, index[0].indices(size * shards)[0] // size) * size
            return local[first : first + size]

        shape, sharding = (size * shards, *local.shape[1:]), NamedSharding(mesh, BATCH)
        return jax.make_array_from_callback(shape, sharding, read)  # type: ignore[arg-type]  # an index is never None

    return jax.tree.map(put, dict(batch))


def own_rows(values: np.ndarray | jax.Array, mesh: Mesh) -> np.ndarray | jax.Array:
    """This process' rows `[rows, …]` of what was computed of a batch `[B, …]` over the mesh; they stay on its devices.

    What lies on no other process' devices is its own already.
    """
    if isinstance(values, np.ndarray) or values.is_fully_addressable:
        return values
    cut = jax.device_put(values, NamedSharding(mesh, BATCH))
    slices = {shard.index[0].start or 0: shard.data for shard in cut.addressable_shards}  # of copies the last
    parts = [slices[first] for first in sorted(slices)]
    shape = (sum(len(part) for part in parts), *values.shape[1:])
    devices = Mesh(np.array([part.device for part in parts]), ("rows",))
    return jax.make_array_from_single_device_arrays(shape, NamedSharding(devices, PartitionSpec("rows")), parts)
