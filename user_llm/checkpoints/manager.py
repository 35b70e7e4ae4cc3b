"""Checkpoints of one stage: written in the background, the newest and the best kept, restored to any mesh."""

import contextlib
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from user_llm.checkpoints.damage import DELETED, STEPS, clear_deleted, keep_checksums
from user_llm.files import full_disk, naming_full_disk
from user_llm.models.parameters import Parameters, Shaped
from user_llm.parallel.processes import is_lead
from user_llm.quiet import absl_warnings_unsaid

_METADATA_BYTES = 1 << 18  # of a checkpoint, beside its values
_METRIC = "keep_best"  # the name the kept metric has beside a checkpoint; higher is better


class StageCheckpoints:
    """The checkpoints under `<folder>/checkpoints/`, one per saved step.

    A step holds the parameters, the rest of the training state, and a JSON note (iterator position, clock). A
    step that was being written when the process died is no step: Orbax commits by renaming. The lead process keeps
    the checksums of a committed step's files (`damage.py`), while training goes on.
    """

    def __init__(self, folder: Path, *, keep_last: int = 1, keep_best: bool = False, read_only: bool = False):
        keep: list[Any] = [policies.LatestN(keep_last)]
        if keep_best:
            keep.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics[_METRIC], n=1, keep_checkpoints_without_metrics=False
                )
            )
        self._folder, self._keep_best, self._read_only = folder, keep_best, read_only
        self._thread = ThreadPoolExecutor(1)
        self._checksums: Future[None] | None = None
        with absl_warnings_unsaid() if read_only else contextlib.nullcontext():  # that it will write nothing
            self._manager = ocp.CheckpointManager(
                (folder / STEPS).resolve(),
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=policies.AnyPreservationPolicy(keep),
                    best_fn=(lambda metrics: metrics[_METRIC]) if keep_best else None,
                    read_only=read_only,
                    create=not read_only,
                    todelete_subdir=None if read_only else DELETED,
                ),
                item_names=("parameters", "rest", "note"),
            )

    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step later stages use: the best by the kept metric, or the newest where none is kept."""
        best = self._manager.best_step() if self._keep_best else None
        return self.latest_step() if best is None else best

    def save(self, step: int, state: Mapping[str, Any], note: Mapping[str, Any], metric: float | None = None) -> None:
        """Copies `state` (its `parameters`, and the rest) off the devices and returns; writing goes on behind."""
        if not self._read_only:
            self._check_room(state)
        rest = {key: value for key, value in state.items() if key != "parameters"}
        with naming_full_disk(self._folder):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    parameters=ocp.args.StandardSave(state["parameters"]),
                    rest=ocp.args.StandardSave(rest),
                    note=ocp.args.JsonSave(dict(note)),
                ),
                metrics=None if metric is None else {_METRIC: metric},
            )
        self._keep_checksums()  # of the step before, which is committed now

    def restore(self, step: int, like: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Restores (state, note) of `step` to the shapes, dtypes and shardings of `like` (arrays or abstract)."""
        rest = {key: value for key, value in like.items() if key != "parameters"}
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                parameters=_restore(like["parameters"]), rest=_restore(rest), note=ocp.args.JsonRestore()
            ),
        )
        return {"parameters": restored["parameters"], **restored["rest"]}, restored["note"]

    def restore_parameters(self, step: int, like: Mapping[str, Shaped]) -> Parameters:
        """Restores the parameters of `step` alone."""
        return self._manager.restore(step, args=ocp.args.Composite(parameters=_restore(like)))["parameters"]

    def close(self) -> None:
        """Waits for what is being written."""
        with naming_full_disk(self._folder):
            self._manager.wait_until_finished()
            self._manager.close()
        self._keep_checksums()
        if self._checksums is not None:
            self._checksums.result()
            with contextlib.suppress(OSError):  # there is none, or something is in it
                (self._folder / STEPS / DELETED).rmdir()
        self._thread.shutdown()

    def _check_room(self, state: Mapping[str, Any]) -> None:
        """Raises OSError before a disk is full: Orbax' threads would say so each in its own way, at length."""
        needed = sum(value.nbytes for value in jax.tree.leaves(state)) + _METADATA_BYTES
        if shutil.disk_usage(self._folder).free < needed:
            raise full_disk(self._folder, needed=f" for a checkpoint of {needed / 1e6:,.1f} MB")

    def _keep_checksums(self) -> None:
        if self._read_only or not is_lead():
            return
        if self._checksums is not None and self._checksums.done():
            self._checksums.result()  # raises what was wrong
        self._checksums = self._thread.submit(self._tidy)

    def _tidy(self) -> None:
        keep_checksums(self._folder)
        clear_deleted(self._folder)


def _restore(like: Any) -> ocp.args.StandardRestore:
    return ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like))
