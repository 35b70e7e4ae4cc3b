"""Checksums find every change, in full always and in samples where they look; a lock has one owner."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from user_llm import checksums as sums
from user_llm.errors import UserError
from user_llm.locks import LOCK, OWNER, Busy, clear_partial, owned


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name, size in {"empty": 0, "one": 1, "block": sums.BLOCK_BYTES, "deep/more": 12 * sums.BLOCK_BYTES + 5}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(rng.bytes(size))
    return tmp_path


def test_what_is_unchanged_is_so_and_names_are_relative(folder):
    kept = sums.checksums(folder)
    assert set(kept) == {"empty", "one", "block", "deep/more"}
    assert [len(one["blocks"]) for one in kept.values()] == [1, 13, 0, 1]
    assert list(sums.changed(folder, json.loads(json.dumps(kept)))) == []
    assert list(sums.changed(folder, kept, sampled=True)) == []


@pytest.mark.parametrize("place", [0, sums.BLOCK_BYTES, 7 * sums.BLOCK_BYTES + 3, -1])
def test_a_flipped_bit_is_found_where_it_is(folder, place):
    kept, path = sums.checksums(folder), folder / "deep/more"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    (line,) = sums.changed(folder, kept)
    begin = place % len(data) // sums.BLOCK_BYTES * sums.BLOCK_BYTES
    assert line.startswith(f"{path} has changed at bytes {begin:,} to ")
    sampled = sum(bool(list(sums.changed(folder, kept, sampled=True))) for _ in range(40))
    # 8 of 13 blocks: the first and the last always, each other in 6 of 11 cases.
    assert sampled == 40 if place in (0, -1) else 5 < sampled < 38


def test_what_is_missing_or_cut_is_named(folder):
    kept = sums.checksums(folder)
    (folder / "one").unlink()
    (folder / "block").write_bytes(b"short")
    assert list(sums.changed(folder, kept)) == [
        f"{folder / 'block'} holds 5 bytes, held {sums.BLOCK_BYTES:,}",
        f"{folder / 'one'} is missing",
    ]


def test_a_signed_file_that_changes_is_refused_by_name(folder):
    path, value = folder / "sums.json", {"files": sums.checksums(folder)}
    sums.write_signed(path, value)
    assert sums.read_signed(path, "delete it") == value
    path.write_text(path.read_text().replace('"bytes": 1,', '"bytes": 2,'))
    with pytest.raises(UserError, match=r"sums\.json is damaged: delete it"):
        sums.read_signed(path, "delete it")


HOLD = "import sys; from user_llm.locks import owned\nwith owned(sys.argv[1]): print('held', flush=True); input()"


def test_a_folder_has_one_owner_until_its_process_dies(tmp_path):
    folder = tmp_path / "new"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    with (
        pytest.raises(Busy, match=f"is in use by process {other.pid} on {socket.gethostname()}") as error,
        owned(folder),
    ):
        pass
    assert error.value.status == 75
    other.kill()
    other.wait()
    with owned(folder, wait=True):
        assert json.loads((folder / OWNER).read_text()) == {"host": socket.gethostname(), "pid": os.getpid()}
    assert {path.name for path in folder.iterdir()} == {LOCK, OWNER}


def test_a_file_is_no_folder_to_own(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"), owned(tmp_path / "file"):
        pass


def test_half_written_files_of_the_dead_are_cleared_and_no_others(tmp_path):
    for name in ("a.json.12.partial", "deep/b.3.partial/inside", "notes.partial", "c.partial.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    clear_partial(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["c.partial.txt", "deep", "notes.partial"]
