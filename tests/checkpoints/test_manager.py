"""Which steps are kept, which one is used, and that what comes back is what was saved, on any mesh."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from user_llm.checkpoints import manager
from user_llm.checkpoints.damage import DELETED, put_aside_damaged
from user_llm.checkpoints.manager import StageCheckpoints
from user_llm.parallel.mesh import make_mesh, one_device

EIGHT = {"data": 1, "fsdp": 8, "tensor": 1}


def state_of(step, mesh=None):
    """A training state whose every value tells the step."""
    mesh = mesh or one_device()
    cut, whole = NamedSharding(mesh, PartitionSpec(None, "fsdp")), NamedSharding(mesh, PartitionSpec())
    by_class = NamedSharding(mesh, PartitionSpec(("fsdp", "tensor")))  # as a large table lies
    table = np.random.default_rng(step).normal(size=(3, 16))
    return {
        "parameters": {
            "a/table_VU": jax.device_put(table.astype(np.float32), cut),
            "a/large_VU": jax.device_put(table.T.astype(np.float32), by_class),
            "a/norm": jax.device_put(jnp.asarray(table[0], jnp.bfloat16), whole),
        },
        "optimizer": [{"mu": jax.device_put((table**2).astype(np.float32), cut)}],
        "step": jax.device_put(jnp.int32(step), whole),
    }


def assert_same(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def save(folder, metrics, **options):
    """Saves one step for each of `metrics` (step → metric or None), and closes."""
    checkpoints = StageCheckpoints(folder, **options)
    for step, metric in metrics.items():
        checkpoints.save(step, state_of(step), {"step": step, "seconds": step / 4}, metric)
    checkpoints.close()


def kept(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def reopened(folder, **options):
    """(newest step, step to use) as a later process sees them."""
    checkpoints = StageCheckpoints(folder, **options)
    steps = checkpoints.latest_step(), checkpoints.best_step()
    checkpoints.close()
    return steps


def test_a_folder_without_steps_has_none(tmp_path):
    assert reopened(tmp_path / "encoder", keep_best=True) == (None, None)


def test_the_newest_are_kept(tmp_path):
    save(tmp_path, dict.fromkeys((10, 20, 30, 40)), keep_last=2)
    assert kept(tmp_path) == [30, 40]
    assert reopened(tmp_path, keep_last=2) == (40, 40)


def test_the_newest_and_the_best_are_kept(tmp_path):
    save(tmp_path, {10: -3.0, 20: -1.0, 30: -2.0, 40: -1.5, 50: -4.0}, keep_last=2, keep_best=True)
    assert kept(tmp_path) == [20, 40, 50]
    assert reopened(tmp_path, keep_last=2, keep_best=True) == (50, 20)


def test_the_best_of_an_earlier_process_stays(tmp_path):
    save(tmp_path, {10: 0.1, 20: 0.9}, keep_best=True)
    save(tmp_path, {30: 0.2, 40: 0.3}, keep_best=True)
    assert kept(tmp_path) == [20, 40]
    assert reopened(tmp_path, keep_best=True) == (40, 20)


def test_a_step_saved_without_a_metric_is_the_newest_and_never_the_best(tmp_path):
    """SIGTERM saves between two evaluations."""
    save(tmp_path, {10: 0.5, 15: None}, keep_best=True)
    assert kept(tmp_path) == [10, 15]
    assert reopened(tmp_path, keep_best=True) == (15, 10)
    save(tmp_path, {20: 0.4}, keep_best=True)
    assert kept(tmp_path) == [10, 20]
    assert reopened(tmp_path, keep_best=True) == (20, 10)


def test_without_any_metric_the_newest_is_used(tmp_path):
    save(tmp_path, {5: None}, keep_best=True)
    assert reopened(tmp_path, keep_best=True) == (5, 5)


def test_a_state_comes_back_with_its_note(tmp_path):
    save(tmp_path, {10: None, 20: None}, keep_last=2)
    checkpoints = StageCheckpoints(tmp_path)
    for step in (10, 20):
        state, note = checkpoints.restore(step, state_of(0))
        assert_same(state, state_of(step))
        assert note == {"step": step, "seconds": step / 4}
    checkpoints.close()


def test_what_is_saved_does_not_change_with_the_state_behind_it(tmp_path):
    """The next step reuses the state's buffers while writing goes on."""
    checkpoints = StageCheckpoints(tmp_path)
    state = state_of(1)
    checkpoints.save(1, state, {})
    jax.block_until_ready(jax.jit(lambda x: jax.tree.map(lambda v: v * 0, x), donate_argnums=0)(state))
    checkpoints.close()
    checkpoints = StageCheckpoints(tmp_path)
    assert_same(checkpoints.restore(1, state_of(0))[0], state_of(1))
    checkpoints.close()


@pytest.mark.parametrize(("saved_on", "restored_on"), [(EIGHT, None), (None, EIGHT)], ids=["8to1", "1to8"])
def test_a_state_moves_to_another_mesh_bit_for_bit(tmp_path, saved_on, restored_on):
    meshes = [one_device() if sizes is None else make_mesh(sizes) for sizes in (saved_on, restored_on)]
    checkpoints = StageCheckpoints(tmp_path)
    checkpoints.save(3, state_of(3, meshes[0]), {"step": 3})
    checkpoints.close()
    checkpoints = StageCheckpoints(tmp_path, read_only=True)
    like = state_of(0, meshes[1])
    state, _ = checkpoints.restore(3, like)
    checkpoints.close()
    assert_same(state, state_of(3))
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, like)
    held = {path: state["parameters"][path].addressable_shards[0].data.shape for path in ("a/table_VU", "a/large_VU")}
    assert held == {"a/table_VU": (3, 16 // meshes[1].size), "a/large_VU": (16 // meshes[1].size, 3)}


def test_parameters_are_restored_alone(tmp_path):
    save(tmp_path, {10: None})
    checkpoints = StageCheckpoints(tmp_path, read_only=True)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_of(0))
    assert_same(checkpoints.restore_parameters(10, abstract["parameters"]), state_of(10)["parameters"])
    checkpoints.close()


def test_reading_leaves_the_folder_as_it_is(tmp_path):
    save(tmp_path, {10: 0.5, 20: 0.1, 30: 0.2}, keep_last=3, keep_best=True)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert reopened(tmp_path, keep_best=True, read_only=True) == (30, 10)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_reader_makes_no_folder_and_saves_nothing(tmp_path):
    assert reopened(tmp_path / "encoder", read_only=True) == (None, None)
    save(tmp_path / "encoder", {10: None}, read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_a_half_written_step_is_no_step(tmp_path):
    """What a process killed while writing leaves: the step's folder under the name it has until it is complete."""
    save(tmp_path, {10: 0.5})
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "10", folder / "20.orbax-checkpoint-tmp")
    assert reopened(tmp_path, read_only=True) == (10, 10)
    save(tmp_path, {20: None})  # the run goes on, and comes to that step again
    assert kept(tmp_path) == [20]
    checkpoints = StageCheckpoints(tmp_path)
    assert_same(checkpoints.restore(20, state_of(0))[0], state_of(20))
    checkpoints.close()


def test_a_kill_in_a_deletion_leaves_no_half_a_step(tmp_path, monkeypatch):
    """A step is moved away as a whole before anything of it is deleted; the next process deletes the rest."""
    folder = tmp_path / "encoder"
    monkeypatch.setattr(manager, "clear_deleted", lambda _: None)  # killed before it
    save(folder, {1: None, 2: None, 3: None}, keep_last=2)
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {DELETED, "2", "3"}
    (folder / "checkpoints" / DELETED / "1" / "_CHECKPOINT_METADATA").unlink()  # or in the middle of it
    monkeypatch.undo()
    put_aside_damaged(folder, last=9)
    assert reopened(folder, keep_last=2) == (3, 3)
    assert kept(folder) == [2, 3]
