"""Faults of a built dataset: damage is named, two builders never meet, and what a killed one leaves is completed."""

import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.faults.harness import Outcome, build
from user_llm.builders.built import CHECKSUMS
from user_llm.data.timelines import load_timelines
from user_llm.locks import LOCK, OWNER, owned

DATASET = "amazon_reviews/simulated"
SIMULATED = ["num_users=30", "num_items=80", "mean_events=24"]
RECORDS = "amazon_reviews-users.array_record-00000-of-00001"


def start(data_dir: Path, *arguments: str, **options) -> Outcome:
    """The command that builds the dataset, or opens it where it is built."""
    whole = [DATASET, f"--data_dir={data_dir}", "--simulated", *SIMULATED, *arguments]
    return build(*whole, folder=data_dir.parent, **options)


def config_folder(data_dir: Path) -> Path:
    return data_dir / DATASET


def version_folder(data_dir: Path) -> Path:
    (folder,) = config_folder(data_dir).glob("[0-9]*")
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("built") / "data"
    start(data_dir).check(0, "30 users, ")
    return data_dir


@pytest.fixture
def data_dir(built, tmp_path):
    """A copy, to spoil."""
    return Path(shutil.copytree(built, tmp_path / "data"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change(column):
    """Writes a column anew, changed."""

    def rewrite(path: Path) -> None:
        np.save(path, column(np.load(path)))

    return rewrite


# Fault → the file it is in, what is done to it, what is said of it.
DAMAGE = {
    "g5_npz_oor": ("columns/item.npy", change(lambda items: items + 5000), "has changed at bytes 0 to "),
    "g5_npz_short": ("columns/item.npy", change(lambda items: items[:100]), "bytes, held"),
    "g5_npz_shuffled": ("columns/item.npy", change(lambda items: items[::-1].copy()), "has changed at bytes 0 to "),
    "offsets of other users": ("columns/offsets.npy", change(lambda offsets: offsets[::-1].copy()), "has changed"),
    "another letter of a review": ("columns/review_bytes.npy", flip, "has changed"),
    "a column that is gone": ("columns/rating.npy", Path.unlink, "is missing"),
    "g5_rec_trunc": (RECORDS, cut, "bytes, held"),
    "g5_rec_flip": (RECORDS, flip, "has changed"),
    "g5_rec_gone": (RECORDS, Path.unlink, "is missing"),
    "g5_data_nometa": ("metadata.json", Path.unlink, "is missing"),
    "another title": ("catalogue/title_bytes.npy", flip, "has changed"),
    "titles that are gone": ("catalogue/title_offsets.npy", Path.unlink, "is missing"),
    "g5_data_infotrunc": ("dataset_info.json", cut, "bytes, held"),
    "features that are gone": ("features.json", Path.unlink, "is missing"),
    "checksums that are cut": (CHECKSUMS, cut, "is damaged"),
    "checksums of nothing": (CHECKSUMS, lambda path: path.write_text("[1]"), "is damaged"),
    "checksums without blocks": (CHECKSUMS, lambda path: path.write_text('{"metadata.json": {}}'), "is damaged"),
}


@pytest.mark.parametrize("fault", DAMAGE)
def test_damage_is_named_with_what_to_do(fault, data_dir):
    name, spoil, said = DAMAGE[fault]
    folder = version_folder(data_dir)
    spoil(folder / name)
    words = [
        f"{folder / name} {said}".removesuffix("bytes, held"),
        f"delete {folder} and build anew with user-llm build",
    ]
    start(data_dir).check(1, "error: ", *words)


def test_damage_is_found_when_python_opens_the_dataset(data_dir):
    flip(version_folder(data_dir) / "metadata.json")
    with pytest.raises(ValueError, match=r"metadata\.json has changed .*: delete .* and build anew"):
        load_timelines(DATASET, data_dir=data_dir)


def test_verify_reads_every_byte(data_dir):
    folder = version_folder(data_dir)
    start(data_dir, "--verify").check(0, f"{folder}: ", " files, ", "as they were built")
    (folder / "notes.txt").write_text("not ours")
    start(data_dir, "--verify").check(0)
    big = folder / "columns" / "user_id_bytes.npy"
    big.write_bytes(bytes(64 << 20))
    start(data_dir, "--verify").check(1, f"{DATASET} was not verified: {big} holds")
    start(data_dir.parent / "elsewhere", "--verify").check(1, "is not there, or was not built to its end")
    assert not (data_dir.parent / "elsewhere").exists()


def test_a_start_beside_another_ends_at_once_and_names_it(tmp_path):
    data_dir = tmp_path / "data"
    with owned(config_folder(data_dir)):
        start(data_dir).check(75, f"{config_folder(data_dir)} is in use by process {os.getpid()} on ", "wait for it")
    start(data_dir).check(0)
    with owned(config_folder(data_dir)):  # what is finished is only read
        start(data_dir).check(0, "30 users, ")
        start(data_dir, "--verify").check(0)


def test_of_two_at_once_one_builds_and_none_fails_otherwise(tmp_path):
    data_dir = tmp_path / "data"
    with ThreadPoolExecutor() as pool:
        outcomes = list(pool.map(lambda _: start(data_dir), range(2)))
    for outcome in outcomes:
        outcome.check(outcome.status if outcome.status in (0, 75) else 0)
    assert 0 in [outcome.status for outcome in outcomes]
    start(data_dir, "--verify").check(0)


def test_processes_of_one_run_wait_for_each_other(tmp_path, built):
    data_dir, taken = tmp_path / "data", threading.Event()

    def other():
        """Builds the dataset, as it were."""
        copy = Path(shutil.copytree(version_folder(built), tmp_path / "copy"))
        with owned(config_folder(data_dir)):
            taken.set()
            time.sleep(0.5)  # the builder below is made, and waits
            copy.rename(config_folder(data_dir) / version_folder(built).name)

    thread = threading.Thread(target=other)
    thread.start()
    taken.wait()
    simulated = dict(num_users=30, num_items=80, mean_events=24.0)
    table = load_timelines(DATASET, data_dir=data_dir, simulated=simulated, wait=True)
    thread.join()
    assert table.num_users == 30
    assert not list(data_dir.rglob("incomplete*"))


UNFINISHED = {
    "within the checksums": lambda folder: (folder / CHECKSUMS).rename(folder / f"{CHECKSUMS}.77.partial"),
    "within TFDS": lambda folder: folder.rename(folder.parent / f"incomplete.ABC123_{folder.name}"),
}


@pytest.mark.parametrize("fault", UNFINISHED)
def test_what_a_killed_build_leaves_is_completed_or_cleared(fault, data_dir):
    whole = {path.relative_to(data_dir): path.read_bytes() for path in version_folder(data_dir).rglob("*.npy")}
    UNFINISHED[fault](version_folder(data_dir))
    start(data_dir).check(0, "30 users, ")
    start(data_dir, "--verify").check(0)
    assert {path.relative_to(data_dir): path.read_bytes() for path in version_folder(data_dir).rglob("*.npy")} == whole
    assert {path.name for path in config_folder(data_dir).iterdir()} == {
        *(LOCK, OWNER, version_folder(data_dir).name),
    }
    assert not list(data_dir.rglob("*.partial"))


def test_an_emptied_folder_is_no_dataset(data_dir):
    shutil.rmtree(folder := version_folder(data_dir))
    folder.mkdir()
    start(data_dir).check(1, f"{folder} is there but holds no dataset. Use another data_dir, or delete")


@pytest.mark.parametrize(
    "seconds", [0.5, *(pytest.param(tenths / 10, marks=pytest.mark.drill) for tenths in range(1, 31))]
)
def test_a_killed_build_is_built_anew(seconds, tmp_path):
    data_dir = tmp_path / "data"
    outcome = start(data_dir, timeout=seconds)
    assert outcome.status in (0, 128 + signal.SIGKILL)
    start(data_dir).check(0, "30 users, ")
    start(data_dir, "--verify").check(0)
    assert len(list(config_folder(data_dir).iterdir())) == 3
