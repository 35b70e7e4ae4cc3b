"""Random timelines of any size, written straight as the columns that a build leaves: a billion events take a minute.

    python -m benchmarks.event_columns FOLDER --events=1000000000

The same numbers give the same bytes. Timelines are at least 21 events long with a long tail, items have a popularity
tail, and there is nothing to learn: this is for speed and memory.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from user_llm.builders.built import CATALOGUE, COLUMNS, METADATA
from user_llm.builders.catalogue import write_catalogue
from user_llm.columns import ColumnWriter, Texts, write_column
from user_llm.data.timelines import TimelineTable, open_timelines

NAME = "benchmark/random"
EVENTS_PER_USER, SHORTEST, RATINGS = 145, 21, 10  # MovieLens-20M's mean; half stars
_BLOCK = 1 << 24


def random_timelines(folder: Path, events: int, *, num_items: int = 100_000, seed: int = 0) -> TimelineTable:
    """The timelines in `folder`, written there first where they are not yet.

    Args:
      folder: of this dataset alone.
      events: how many.
      num_items: of the catalogue.
      seed: of everything.
    """
    if not (folder / METADATA).exists():
        _write(folder, events, num_items, seed)
    return open_timelines(folder, NAME)


def _write(folder: Path, events: int, num_items: int, seed: int) -> None:
    columns = folder / COLUMNS
    columns.mkdir(parents=True)
    lengths = _lengths(events, np.random.default_rng((seed, 0)))
    write_column(columns, "offsets", np.concatenate([[0], np.cumsum(lengths)]))
    users = np.arange(len(lengths))
    digits = np.char.mod("%010d", users[: 1 << 20])  # the rest have the same, which nobody reads
    Texts(
        np.tile(np.frombuffer("".join(digits).encode(), np.uint8), -(-len(users) // len(digits)))[: 10 * len(users)],
        10 * np.arange(len(users) + 1),
    ).save(columns, "user_id")
    with (
        ColumnWriter(columns, "item", np.int32) as item,
        ColumnWriter(columns, "rating", np.uint8) as rating,
        ColumnWriter(columns, "timestamp", np.int64) as timestamp,
        tqdm(desc="writing", total=events, unit=" events", unit_scale=True, disable=None) as progress,
    ):
        for block, start in enumerate(range(0, events, _BLOCK)):
            size, rng = min(_BLOCK, events - start), np.random.default_rng((seed, 1, block))
            item.append(1 + (num_items * rng.random(size, np.float32) ** 3 * 0.999999).astype(np.int32))
            rating.append(rng.integers(1, RATINGS + 1, size, np.uint8))
            timestamp.append(np.arange(start, start + size) + 10**9)
            progress.update(size)
    names = [f"item {number}" for number in range(1, num_items + 1)]
    categories = ["", *(f"category {number}" for number in range(1, 21))]
    write_catalogue(
        {
            "titles": ["", *names],
            "raw_ids": ["", *map(str, range(1, num_items + 1))],
            "category_names": categories,
            "item_categories": [[], *([1 + number % 20] for number in range(num_items))],
        },
        folder / CATALOGUE,
    )
    metadata = {
        "rating_names": ["", *(f"{half / 2:.1f}" for half in range(1, RATINGS + 1))],
        "has_reviews": False,
        "fingerprint": f"random {events} {num_items} {seed}",
        "duplicates": 0,
        "summary": {},
    }
    (folder / METADATA).write_text(json.dumps(metadata))


def _lengths(events: int, rng: np.random.Generator) -> np.ndarray:
    """int64 [users], which sum to `events`."""
    users = max(1, events // EVENTS_PER_USER)
    tail = rng.pareto(2.5, users)
    lengths = SHORTEST + np.floor(tail / tail.sum() * (events - SHORTEST * users)).astype(np.int64)
    lengths[: events - int(lengths.sum())] += 1  # what rounding has left, fewer than users
    return lengths


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.event_columns", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    begin = time.perf_counter()
    table = random_timelines(arguments.folder, arguments.events, num_items=arguments.items, seed=arguments.seed)
    seconds = time.perf_counter() - begin
    print(f"{len(table.item):,} events of {table.num_users:,} users in {arguments.folder}: {seconds:.1f} s")


if __name__ == "__main__":
    main()
