"""One of two processes with two devices each, started by `test_processes.py`: prints what it finds as JSON."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from user_llm.errors import UserError
from user_llm.parallel import mesh as meshes
from user_llm.parallel import processes

BATCH = {"whole": np.arange(24, dtype=np.int32).reshape(8, 3)}


def one_mesh(shape: tuple[int, ...], order: list[int]) -> dict:
    """What this process holds of a batch over four devices in this order, and whether all of it can be fetched."""
    devices = np.array(jax.devices())[order].reshape(shape)
    mesh = Mesh(devices, meshes.AXES, axis_types=(AxisType.Auto,) * 3)
    rows = meshes.local_rows(mesh, 8)
    held = {row for device in mesh.local_devices for row in held_by(device, mesh)}
    local = {name: value[rows] for name, value in BATCH.items()}
    batch = meshes.put_batch(local, mesh)["whole"]
    sliced = jax.device_put(BATCH["whole"], NamedSharding(mesh, PartitionSpec("data", None)))
    replicated = jax.device_put(BATCH["whole"], NamedSharding(mesh, PartitionSpec()))
    arrays = [batch, sliced, replicated]
    return {
        "rows": rows.tolist(),
        "held": sorted(held),
        "right": [bool((processes.fetch(array) == BATCH["whole"]).all()) for array in arrays],
        "own": [np.asarray(meshes.own_rows(array, mesh)).tolist() for array in arrays],
        "waits for nobody": all(device in mesh.local_devices for device in meshes.own_mesh(mesh).devices.flat),
        "sum": int(jax.jit(lambda x: x[:3].sum())(batch)),
    }


def held_by(device: jax.Device, mesh: Mesh) -> range:
    """By hand: the place of a device on the axes `data` and `fsdp` is its slice of the batch."""
    data, fsdp, _ = (int(place[0]) for place in np.nonzero(mesh.devices == device))
    rows = 8 // (mesh.shape["data"] * mesh.shape["fsdp"])
    place = data * mesh.shape["fsdp"] + fsdp
    return range(place * rows, (place + 1) * rows)


def refuse():
    error = UserError("somebody is at work: Zoë")
    error.status = 75
    raise error


def main(port: str, process: str, folder: str) -> None:
    processes.start(f"localhost:{port}", 2, int(process))
    shared, calls = Path(folder) / "shared", []
    found = {
        "lead": processes.is_lead(),
        "meshes": {
            "data": one_mesh((4, 1, 1), [0, 1, 2, 3]),
            "data, hosts in turn": one_mesh((4, 1, 1), [0, 2, 1, 3]),
            "data and fsdp": one_mesh((2, 2, 1), [0, 1, 2, 3]),
            "tensor inside a host": one_mesh((2, 1, 2), [0, 1, 2, 3]),
            "tensor across hosts": one_mesh((2, 1, 2), [0, 2, 1, 3]),
            "tensor": one_mesh((1, 1, 4), [0, 1, 2, 3]),
        },
    }
    for _ in range(2):
        processes.lead_makes(shared, lambda: calls.append(shared.write_text("made")))
    found |= {"calls": len(calls), "read": shared.read_text()}
    try:  # a folder of this process alone
        processes._SEEN_SECONDS = 0.2
        own = Path(folder) / process / "file"
        processes.lead_makes(own, lambda: own.parent.mkdir() or own.touch())
    except ValueError as error:
        found["error"] = str(error)
    try:
        processes.check_same("theirs", "words")
        processes.check_same(process, "number")
    except ValueError as error:
        found["other"] = str(error)
    found["said"] = processes.lead_says(lambda: ["by", int(process)])
    try:
        processes.lead_says(lambda: int("no number") if processes.several() and int(process) else refuse())
    except UserError as error:
        found["refused"] = [str(error), error.status]
    print(json.dumps(found))
    processes.wait_for_all("end")
    processes.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
