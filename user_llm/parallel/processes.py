"""Several processes, one run: each host starts the same command, and JAX makes their devices one mesh.

Every process runs the same program in the same order, as collectives must. Process 0 is the lead: it alone writes.
Processes wait for one another through JAX's coordination service, not on their devices, whose own waits time out.
"""

import itertools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from user_llm.errors import UserError

MOST_SAID = np.iinfo(np.int32).max
"""Bytes that a process may tell the others at once."""

_HEARTBEAT_SECONDS = 30  # without a sign of life, after which a process counts as dead
_SHUTDOWN_SECONDS = 20  # that a process which ends waits for the others
_WAIT_MILLISECONDS = 24 * 3600 * 1000  # for the lead, which may have a vocabulary to train; the dead are found anyway
_SEEN_SECONDS = 30.0  # until a network folder shows a new file to all hosts

LOST = (
    "error: another process of this run has ended, has not come or cannot be reached; its own log says more. "
    "Start the same command again on all hosts: it goes on from the last checkpoint."
)

# Of errors that JAX raises when a peer is gone; on CPU (gloo) they are plain ValueErrors.
_BROKEN = ("Gloo", "NCCL", "CoordinationService", "coordination service", "BarrierError")

_logger = logging.getLogger(__name__)
_waits = itertools.count()
_polls = itertools.count(1)  # of all stages and evaluations: JAX agrees on one number of them, and passes it once
_stopping = False  # SIGTERM has come, and nobody has ended because of it yet
_savers = 0  # of `Interrupt`, in use
_witness: subprocess.Popen | None = None


STOPPED = 128 + signal.SIGTERM
"""Exit status of a run that SIGTERM has stopped: it is not finished, and the same command goes on."""


class Preempted(Exception):
    """SIGTERM arrived; everything is saved, and the same command goes on from here."""


def start(
    coordinator: str | None, num_processes: int | None, process_id: int | None, distributed: bool | None = None
) -> None:
    """Joins the other processes of this run, if it has any. To be called before JAX touches a device.

    Args:
      coordinator: `HOST:PORT` of process 0, where it listens; the same for all processes.
      num_processes: how many there are.
      process_id: which of them this one is, from 0. These three are given together, or none of them.
      distributed: without them, whether JAX looks for the others itself (SLURM, Cloud TPU, GKE, Open MPI). None: where
        the environment says that there are several.

    Raises:
      UserError: flags that do not go together, a port that is taken, or no cluster where one was to be found. Where
        another process does not come within five minutes, JAX aborts this one; the witness says what to do.
    """
    options: dict[str, Any] = {}
    if any(value is not None for value in (coordinator, num_processes, process_id)):
        if coordinator is None or num_processes is None or process_id is None or distributed is not None:
            raise UserError(
                "--coordinator, --num_processes and --process_id belong together, without --distributed: give all "
                "three on every host, as in --coordinator=10.0.0.1:8476 --num_processes=2 --process_id=0"
            )
        if not coordinator.rpartition(":")[2].isdecimal() or not 0 <= process_id < num_processes:
            raise UserError(
                f"--coordinator={coordinator} --num_processes={num_processes} --process_id={process_id}: expected "
                "HOST:PORT, and a process_id from 0 to num_processes - 1"
            )
        if process_id == 0:
            _check_port(coordinator)
        options = dict(coordinator_address=coordinator, num_processes=num_processes, process_id=process_id)
        options["cluster_detection_method"] = "deactivate"
    elif not (several_are_announced(os.environ) if distributed is None else distributed):
        return
    _logger.info("Waiting for the other processes of this run, five minutes at most")
    _leave_a_witness()
    try:
        jax.distributed.initialize(
            **options, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS, shutdown_timeout_seconds=_SHUTDOWN_SECONDS
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the processes of this run did not find one another: {_first_line(error)}") from error
    if several():
        wait_for_all("start")
        multihost_utils.sync_global_devices("start")  # CPU: processes connect now, while none is behind the others


def _check_port(coordinator: str) -> None:
    try:
        socket.create_server(("", int(coordinator.rpartition(":")[2]))).close()
    except OSError as error:  # JAX would end in a segmentation fault
        raise UserError(f"--coordinator={coordinator}: process 0 cannot listen there ({error})") from error


def several_are_announced(environment: Any) -> bool:
    """Whether a SLURM step, or a Cloud TPU slice (GKE), says that it has several processes.

    A Cloud TPU VM of Compute Engine says so only to those who ask its metadata server: `--distributed` does.
    """
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in environment for name in slurm) and environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        return True  # of `srun`; a batch script or a shell is a step of one task
    hosts = (environment.get(name, "") for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"))
    return any("," in names for names in hosts) or "MEGASCALE_COORDINATOR_ADDRESS" in environment


def several() -> bool:
    """Whether this run has more than one process."""
    return jax.process_count() > 1


def is_lead() -> bool:
    """Whether this process writes files, tables and progress."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Waits until all processes are here. They must pass these calls in the same order; `name` is for error messages.

    Raises:
      RuntimeError: a process has died; see `end_if_lost`.
      Preempted: see `end_if_preempted`.
    """
    if several():
        key = f"user_llm {next(_waits)}: {name}"
        multihost.get_barrier_sync_fn()(key=key, timeout_ms=_WAIT_MILLISECONDS)
    end_if_preempted()


class Interrupt:
    """Holds SIGTERM back while in use, for what must save first: it asks `received`, and raises `Preempted` itself."""

    def __enter__(self):
        global _savers
        _savers += 1
        if not several():
            self._previous = signal.signal(signal.SIGTERM, _note)
        return self

    def received(self) -> bool:
        """Whether to save and end here. All processes must ask at the same points."""
        return _must_stop()

    def __exit__(self, kind, *_):
        global _savers, _stopping
        _savers -= 1
        if not several():
            signal.signal(signal.SIGTERM, self._previous)
        if kind is Preempted:
            _stopping = False


def end_if_preempted() -> None:
    """Raises `Preempted` where SIGTERM has come and no `Interrupt` is in use. All processes must call it at the same
    points: between the batches of an evaluation, say."""
    global _stopping
    if _must_stop() and not _savers:
        _stopping = False
        raise Preempted("Stopped. The same command goes on from the last checkpoint.")


def _note(*_) -> None:
    global _stopping
    _stopping = True


def _must_stop() -> bool:
    """Of several processes any may get the signal, and all must stop at the same point: JAX, which has its own handler
    then, agrees on one of the next. One process outside of `Interrupt` ends in `main`'s handler."""
    global _stopping
    if several() and multihost_utils.reached_preemption_sync_point(next(_polls)):
        _stopping = True
    return _stopping


def check_same(value: str, what: str) -> None:
    """Raises UserError on all processes where `value`, which is `what`, is not the same for all."""
    if several():
        sums = multihost_utils.process_allgather(np.uint32(zlib.crc32(value.encode())))
        if len({*sums.tolist()}) > 1:
            raise UserError(f"the processes of this run have not got the same {what}: start the same command on all")


def lead_makes(path: Path, make: Callable[[], object]) -> None:
    """Lets the lead call `make`, which writes `path`, where that is not there yet; the others wait for it.

    Raises:
      UserError: another process does not see what the lead has made.
    """
    if is_lead() and not path.exists():
        make()
    wait_for_all(path.name)  # the folder above may have another name on each host
    until = time.monotonic() + _SEEN_SECONDS
    while not is_lead() and not path.exists():
        if time.monotonic() > until:
            raise UserError(
                f"process {jax.process_index()} does not see {path}, which process 0 has written: "
                "--workdir must be a folder that all hosts share"
            )
        time.sleep(0.1)


def lead_says(find: Callable[[], Any]) -> Any:
    """What `find` returns in the lead, where alone it is called: JSON can hold it. All processes must call this.

    Raises:
      UserError: `find` raised one; all processes then raise the same, with the same exit status.
    """
    if not several():
        return find()
    said: dict[str, Any] = {}
    if is_lead():
        try:
            said = {"value": find()}
        except UserError as error:
            said = {"error": str(error), "status": error.status}
    said = json.loads(_from_lead(json.dumps(said).encode()))
    if "error" in said:
        raised = UserError(said["error"])
        raised.status = said["status"]
        raise raised
    return said["value"]


def _from_lead(words: bytes) -> bytes:
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(words))))
    padded = np.frombuffer(words[:size].ljust(size), np.uint8)  # the lead's words alone are read
    return bytes(multihost_utils.broadcast_one_to_all(padded))


def all_say(words: bytes) -> list[bytes]:
    """What each process says, by its number. All processes must call it.

    Raises:
      UserError: in all of them, where one says more than `MOST_SAID` bytes.
    """
    wait_for_all("words of all")  # whoever is behind may need longer than a device waits
    # In two numbers: JAX hands on 32 bits of an integer.
    high, low = multihost_utils.process_allgather(np.array(divmod(len(words), 1 << 30), np.int32)).reshape(-1, 2).T
    sizes = (high.astype(np.int64) << 30) + low
    if sizes.max() > MOST_SAID:
        raise UserError(
            f"a process has {sizes.max():,} bytes for the others, and {MOST_SAID:,} at most can be sent at once: "
            "lower config.evaluation.max_users, or start more processes."
        )
    said = multihost_utils.process_allgather(np.frombuffer(words.ljust(int(sizes.max())), np.uint8))
    return [row[:size].tobytes() for row, size in zip(said, sizes.tolist(), strict=True)]


def fetch(array: Any) -> np.ndarray:
    """The whole of an array on every host, wherever its slices lie. All processes must call it."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def end_if_lost(error: BaseException) -> None:
    """Ends this process at once where `error` comes of a broken connection: an orderly exit would wait for the dead."""
    if several() and any(word in str(error) for word in _BROKEN):
        _logger.debug("Where it happened:", exc_info=error)
        _end(_first_line(error))


def leave() -> None:
    """Says that this process ends by its own will, and has said why."""
    if _witness is not None:
        _witness.communicate(b"\n")


def _end(reason: str) -> NoReturn:
    print(reason, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _leave_a_witness() -> None:
    """A child that says what to do when this process ends without `leave`.

    JAX's coordination client aborts a process whose peers are gone; neither `except` nor `atexit` sees that.
    """
    global _witness
    script = 'read -r _ || echo "$0" >&2'
    _witness = subprocess.Popen(["sh", "-c", script, LOST], stdin=subprocess.PIPE, start_new_session=True)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
