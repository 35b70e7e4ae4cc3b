"""Long drills: kills at any moment, starts at once, full disks, every file of a run damaged in turn.

`make drill` runs them; `docs/robustness.md` says what they promise.
"""

import concurrent.futures
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

import user_llm
from tests.faults.harness import build, results, train

pytestmark = [pytest.mark.drill, pytest.mark.timeout(1800)]

KILLS = 20
DISKS = ("40k", "120k", "300k", "500k", "700k")  # an encoder's run takes about 900 KB
RUN_FILES = ("predictions.jsonl", "catalogue/title_bytes.npy", "vocabulary/tokenizer.model")
ENCODER = ("--config.stages=('encoder',)", "--config.evaluation.max_users=6")


def assert_same_run(workdir: Path, reference: Path, files=RUN_FILES) -> None:
    assert results(workdir) == results(reference)
    for name in files:
        assert (workdir / name).read_bytes() == (reference / name).read_bytes(), name


def assert_same_parameters(workdir: Path, reference: Path) -> None:
    ours, theirs = (user_llm.load(folder).contextualised.parameters for folder in (workdir, reference))
    for path, value in theirs.items():
        np.testing.assert_array_equal(np.asarray(ours[path]).view(np.uint8), np.asarray(value).view(np.uint8), path)


def test_a_run_killed_at_random_moments_ends_with_the_same_bits(mini, finished, tmp_path, moments):
    workdir = tmp_path / "run"
    begun = time.monotonic()
    train(*mini, f"--workdir={tmp_path / 'undisturbed'}", folder=tmp_path, timeout=400).check(0)
    seconds = time.monotonic() - begun
    for _ in range(KILLS):
        # What is done needs no time again: a start has a share of a whole run, from its first moment to its last.
        done = train(*mini, f"--workdir={workdir}", folder=tmp_path, timeout=moments.uniform(0, seconds / 3))
        assert done.status in (0, 137), done.text[-4000:]
    train(*mini, f"--workdir={workdir}", folder=tmp_path, timeout=400).check(0)
    assert_same_run(workdir, finished)
    assert_same_parameters(workdir, finished)
    assert not list(workdir.rglob("*.partial"))


def dataset_files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_a_build_killed_at_random_moments_ends_with_the_same_bytes(tmp_path, moments):
    flags = ["movielens/simulated", "--simulated", "num_users=300", "num_items=200"]
    begun = time.monotonic()
    build(*flags, "--data_dir", tmp_path / "undisturbed", folder=tmp_path, timeout=400).check(0)
    seconds = time.monotonic() - begun
    for _ in range(KILLS):
        limit = moments.uniform(0, seconds)
        done = build(*flags, "--data_dir", tmp_path / "data", folder=tmp_path, timeout=limit)
        assert done.status in (0, 137), done.text[-4000:]
        if done.status == 0:  # the next kills meet a build from its start
            shutil.rmtree(tmp_path / "data")
    build(*flags, "--data_dir", tmp_path / "data", folder=tmp_path, timeout=400).check(0)
    found, expected = dataset_files(tmp_path / "data"), dataset_files(tmp_path / "undisturbed")
    assert found.keys() == expected.keys()
    assert found == expected


def test_of_three_starts_at_once_one_runs_and_two_say_who(mini, finished, tmp_path):
    workdir = tmp_path / "run"
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        starts = [pool.submit(train, *mini, f"--workdir={workdir}", folder=tmp_path, timeout=400) for _ in range(3)]
        ends = sorted((start.result() for start in starts), key=lambda end: end.status)
    ends[0].check(0)
    for end in ends[1:]:
        end.check(75, f"{workdir} is in use by process ")
    assert_same_run(workdir, finished)


@pytest.mark.parametrize("size", DISKS)
def test_a_full_disk_is_one_message_and_the_same_command_goes_on(size, mini, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs root, to mount a small disk")
    try:
        flags = [*mini, *ENCODER, f"--workdir={disk / 'run'}"]
        full = train(*flags, folder=tmp_path, timeout=400)
        full.check(1, "No space left on device", "start the same command again")
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        train(*flags, folder=tmp_path, timeout=400).check(0)
        train(*mini, *ENCODER, f"--workdir={tmp_path / 'undisturbed'}", folder=tmp_path, timeout=400).check(0)
        assert_same_run(disk / "run", tmp_path / "undisturbed", RUN_FILES[:2])
    finally:
        subprocess.run(["umount", disk], check=False)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


DAMAGES = (truncate, flip, Path.unlink)


def damaged(workdir: Path, scratch: Path):
    """Copies of `workdir`, each with one file damaged in one way: the copy and the file."""
    for path in sorted(workdir.rglob("*")):
        if not path.is_file() or path.name in (".lock", ".owner.json"):
            continue
        for damage in DAMAGES:
            if path.stat().st_size or damage is Path.unlink:
                shutil.rmtree(scratch, ignore_errors=True)
                shutil.copytree(workdir, scratch)
                damage(scratch / path.relative_to(workdir))
                yield scratch, path.relative_to(workdir)


def assert_refused_or_repaired(done, workdir: Path, file: Path, reference: Path) -> None:
    if done.status:
        done.check(1, str(file))
    else:
        done.check(0)
        assert_same_run(workdir, reference, ("predictions.jsonl",))


def test_a_finished_run_with_any_file_damaged_is_refused_by_name_or_repaired(mini, finished, tmp_path):
    for workdir, file in damaged(finished, tmp_path / "run"):
        done = train(*mini, f"--workdir={workdir}", folder=tmp_path, timeout=400)
        assert_refused_or_repaired(done, workdir, file, finished)


def test_a_stage_restored_from_damaged_files_is_refused_by_name_or_repaired(mini, tmp_path):
    """As above, with results that must be made again from the checkpoints."""
    flags = [*mini, *ENCODER]
    train(*flags, f"--workdir={tmp_path / 'whole'}", folder=tmp_path, timeout=400).check(0)
    unfinished = Path(shutil.copytree(tmp_path / "whole", tmp_path / "unfinished"))
    (unfinished / "results.json").unlink()
    for workdir, file in damaged(unfinished, tmp_path / "run"):
        done = train(*flags, f"--workdir={workdir}", folder=tmp_path, timeout=400)
        assert_refused_or_repaired(done, workdir, file, tmp_path / "whole")
