"""RecTools' dataset from a raw file of ratings, by pandas; prints how many events it has.

    python -m benchmarks.contenders.rectools_raw FILE    # ratings.csv of MovieLens, or Amazon's reviews in JSON lines

Runs in the environment of `requirements-peers.txt`.
"""

import sys
from pathlib import Path

import pandas as pd
from rectools.dataset import Dataset

MOVIELENS = {"userId": "user_id", "movieId": "item_id", "rating": "weight", "timestamp": "datetime"}
AMAZON = {"reviewerID": "user_id", "asin": "item_id", "overall": "weight", "unixReviewTime": "datetime"}


def construct(file: Path) -> Dataset:
    """Reads all, sorts each user's events by time, and numbers users and items."""
    if file.suffix == ".csv":
        frame = pd.read_csv(file).rename(columns=MOVIELENS)
    else:
        frame = pd.read_json(file, lines=True, convert_dates=False).rename(columns=AMAZON)
    frame = frame[["user_id", "item_id", "weight", "datetime"]]
    frame["datetime"] = pd.to_datetime(frame["datetime"], unit="s")
    return Dataset.construct(frame.sort_values(["user_id", "datetime"], kind="stable"))


if __name__ == "__main__":
    print(len(construct(Path(sys.argv[1])).interactions.df))
