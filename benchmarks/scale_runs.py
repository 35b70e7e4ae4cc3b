"""One run of a size, from raw files to vectors: the commands that users start, and what each took."""

import contextlib
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.cached_files import say
from benchmarks.scale_model import Size
from benchmarks.scale_stages import config_of
from benchmarks.trie import Titles
from benchmarks.whole_process import run_whole
from user_llm.builders.simulated import SimulatedConfig, write_movielens_csv
from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.host import Host
from user_llm.run import run

DATASET = "movielens/20m"
RAN, OF_THE_RUN = 2_000, "run"
"""Users of the run that makes vectors of everybody, and its folder."""
_SECONDS = 3_600  # for one command
_INTERVAL = 0.05  # seconds between looks at a folder
_EOS = 1
_COLUMNS = ("user=userId", "item=movieId", "rating=rating", "timestamp=timestamp")


def measure_run(size: Size, folder: Path) -> dict[str, float]:
    """What a run of a size takes, by the names of `scale_model.LINES`.

    Args:
      folder: for its files, which are deleted; `make_run` has been there.
    """
    with tempfile.TemporaryDirectory(dir=folder) as here:
        raw = raw_files(size, Path(here) / "raw")
        say(f"{size.users:,} users, {size.events:,.0f} events: building, training, ranking, auditing …")
        found = _built(raw, Path(here) / "data")
        found |= _trained(raw, Path(here), size.users)
        say(f"{size.users:,} users: vectors and tries …")
        found |= _embedded(raw, folder / OF_THE_RUN, Path(here) / "store")
    return found | _trie(size.users)


def raw_files(size: Size, folder: Path) -> Path:
    """Simulated files in MovieLens' format; as many items mean the same items."""
    folder.mkdir(parents=True)
    write_movielens_csv(
        SimulatedConfig(num_users=size.users, num_items=size.items, mean_events=size.events_per_user), folder
    )
    return folder


def make_run(size: Size, folder: Path) -> None:
    """A finished run on items as `size` has them, which `measure_run` asks for vectors; it has hardly learnt."""
    with tempfile.TemporaryDirectory(dir=folder) as here:
        raw = raw_files(Size(RAN, size.events_per_user, size.items), Path(here) / "raw")
        config = config_of(raw, Path(here) / "data", RAN, ("llm", "encoder", "user_llm"))
        run(config, folder / OF_THE_RUN, Host(tensorboard=False))


def _built(raw: Path, data_dir: Path) -> dict[str, float]:
    data_dir.mkdir()
    with peak_bytes(data_dir) as peak:
        took = run_whole(_module("user_llm.builders.build", DATASET, f"--raw_path={raw}", f"--data_dir={data_dir}"),
                         seconds=_SECONDS)  # fmt: skip
    return {
        "build": took["core_seconds"],
        "build's disk at its peak": max(peak),
        "dataset on disk": bytes_of(data_dir),
        "build's memory at its peak": took["peak_gb"] * 1e9,
    }


def _trained(raw: Path, folder: Path, users: int) -> dict[str, float]:
    out = folder / "phases.json"
    named = {"raw": raw, "data_dir": folder / "data", "workdir": folder / "workdir", "out": out}
    options: dict[str, Any] = {name: str(path) for name, path in named.items()}
    took = run_whole(_module("benchmarks.scale_stages", json.dumps({**options, "users": users})), seconds=_SECONDS)
    phases = json.loads(out.read_text())
    return {
        "open the dataset, count its items": phases["count"],
        "find windows, read 100 a user": phases["read"],
        "train the encoder, a window a user": phases["encoder"],
        "rank every user's label": phases["evaluate"],
        "audit": phases["audit"],
        "memory of training, ranking and audit": took["peak_gb"] * 1e9,
    }


def _embedded(raw: Path, of_run: Path, store: Path) -> dict[str, float]:
    given = [f"--workdir={of_run}", f"--store={store}", "--by=id", "--users", str(raw / "ratings.csv")]
    took = run_whole(_module("user_llm.bulk.embed", *given, "--columns", *_COLUMNS), seconds=_SECONDS)
    return {
        "vectors of all users into a store": took["core_seconds"],
        "memory of making vectors": took["peak_gb"] * 1e9,
        "store on disk": bytes_of(store),
    }


def _trie(titles: int) -> dict[str, float]:
    tokens, lengths = Titles(titles).tokens()
    begin = time.process_time()
    trie = jax.block_until_ready(CatalogueTrie.build(tokens, lengths, _EOS))
    seconds = time.process_time() - begin
    return {
        "trie of as many titles": seconds,
        "trie in memory": float(sum(np.asarray(column).nbytes for column in trie.columns().values())),
    }


def _module(name: str, *arguments: str) -> Sequence[str]:
    return [sys.executable, "-m", name, *arguments]


def bytes_of(folder: Path) -> float:
    """Bytes that the files below a folder take on the disk; files that go meanwhile do not count."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_blocks * 512
    return float(total)


@contextlib.contextmanager
def peak_bytes(folder: Path) -> Iterator[list[float]]:
    """Looks at a folder again and again; the list holds what `bytes_of` was each time."""
    seen, ended = [bytes_of(folder)], threading.Event()

    def look() -> None:
        while not ended.wait(_INTERVAL):
            seen.append(bytes_of(folder))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()
