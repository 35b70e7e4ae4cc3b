"""RecTools' dataset of a data frame of the same events, as its models are fitted on: one round.

Runs in the environment of `requirements-peers.txt`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rectools.dataset import Dataset

from benchmarks.protocol import serve


def construct(columns: Path) -> Dataset:
    """From columns that our build left; read, not mapped, since a data frame lies in memory."""
    item, rating, timestamp, offsets = (
        np.load(columns / f"{name}.npy") for name in ("item", "rating", "timestamp", "offsets")
    )
    users = np.repeat(np.arange(len(offsets) - 1, dtype=np.int32), np.diff(offsets))
    times = pd.to_datetime(timestamp, unit="s")
    return Dataset.construct(pd.DataFrame({"user_id": users, "item_id": item, "weight": rating, "datetime": times}))


def setup(options: dict[str, Any]):
    """`options`: columns, a folder."""
    datasets = []

    def read() -> float:
        datasets.append(construct(Path(options["columns"])))  # kept, for the memory that it holds
        return float(len(datasets[-1].interactions.df))

    return read


if __name__ == "__main__":
    serve(setup, ("rectools", "pandas", "numpy"), warm=False)
