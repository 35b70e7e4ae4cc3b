"""Users that are kept: how fast a run's users are encoded, written, read and brought up to date, and what they take.

    python -m benchmarks --only=store --run=RUN [--store_users=1000000] [--store=redis://localhost:6379/9]

The users are made up, of the run's items. On a server they stay: give them a database of their own.
"""

import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import user_llm
from user_llm.api import UserModel
from user_llm.asking import BATCHES

_PART = 4096  # users written at once
_READ = 1000  # records read at once
_APPENDED = 300  # events added one by one


def measure_store(run: Path, users: int, where: str | None, folder: Path) -> dict[str, Any]:
    """Of a finished run.

    Args:
      users: how many are written.
      where: a server; None: a new folder below `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = user_llm.load(run)
    random = np.random.default_rng(0)
    read = _read(model, random, BATCHES[-1])
    model.encode_arrays(read)  # compiled
    encode = median(_seconds(lambda: model.encode_arrays(read)) for _ in range(20))
    before = _peak()
    with tempfile.TemporaryDirectory(dir=folder) as own, user_llm.UserStore(model, where or own) as store:
        written = _seconds(lambda: [store.put_arrays(*part) for part in _parts(model, random, users)])
        names = [_name(number) for number in random.integers(0, users, 20 * _READ)]
        batches = [names[start : start + _READ] for start in range(0, len(names), _READ)]
        store.get_many(batches[0])
        reading = median(_seconds(lambda batch=batch: store.get_many(batch)) for batch in batches)
        title, rating = model.catalogue.titles[1], next(iter(model.events.ratings))
        event = {"item": title, "rating": rating, "time": 2_000_000_000}
        store.append(names[0], event)
        one = [_seconds(lambda name=name: store.append(name, event)) for name in names[:_APPENDED]]
        many = _seconds(lambda: store.append_many({name: [event] for name in names[:_READ]}))
        size = sum(path.stat().st_size for path in Path(own).rglob("*.mdb"))
        record = store.layout.columns.itemsize
    return {
        "run": model.config.name,
        "vectors": [store.layout.slots, store.layout.width],
        "where": "Redis" if where else "LMDB",
        "users": users,
        "encoded_per_second": round(BATCHES[-1] / encode),
        "written_per_second": round(users / written),
        "read_per_second": round(_READ / reading),
        "appended_per_second": round(1 / median(one)),
        "appended_together_per_second": round(_READ / many),
        "record_bytes": record,
        "file_bytes_per_user": round(size / users),
        "peak_mb_more": round(_peak() - before),
    }


def _read(model: UserModel, random: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    """Full histories of users."""
    shape = count, model.config.data.history_length
    items = random.integers(1, model.catalogue.num_items + 1, shape, dtype=np.int32)
    ratings = random.integers(1, max(1, len(model.events.ratings)) + 1, shape, dtype=np.int32)
    read = {"history/item": items, "history/rating": ratings}
    if model.events.reads_times:
        read["history/ago"] = np.sort(random.integers(0, 10**7, shape, dtype=np.int32), axis=1)[:, ::-1]
        read["history/newest"] = np.full(count, 1_000_000_000)
    return read


def _parts(model, random: np.random.Generator, users: int) -> Iterator[tuple[list[str], dict]]:
    for start in range(0, users, _PART):
        names = [_name(number) for number in range(start, min(start + _PART, users))]
        yield names, _read(model, random, len(names))


def _name(number: int) -> str:
    return f"user-{number:09}"


def _seconds(act: Callable[[], Any]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
