"""Simulated raw files of any number of ratings, in the formats that MovieLens and Amazon publish.

python -m benchmarks.raw_files movielens/20m FOLDER --rows=20000000
"""

import argparse
import dataclasses
import gzip
from collections.abc import Callable
from pathlib import Path

from user_llm.builders.simulated import SimulatedConfig, write_movielens_csv
from user_llm.builders.simulated_json import SIMULATED, write_amazon_json


@dataclasses.dataclass(frozen=True)
class RawFormat:
    """Raw files of a dataset.

    Attributes:
      dataset: that is built of them.
      ratings: the file that has a row a rating.
      bytes_per_row: of that file, roughly.
      full_size: rows of the dataset itself, with `users` and `items`; other sizes are proportional.
    """

    dataset: str
    ratings: str
    bytes_per_row: int
    full_size: int
    users: int
    items: int
    shortest: int
    write: Callable[[SimulatedConfig, Path], None]

    def config(self, rows: int) -> SimulatedConfig:
        """Of about so many rows."""
        mean = self.full_size / self.users
        return SimulatedConfig(
            num_users=max(1, round(rows / mean)),
            # A timeline is at most half of the items.
            num_items=max(round(4 * mean), round(rows / self.full_size * self.items)),
            mean_events=mean,
            min_events=self.shortest,
        )


def _write_movies_and_tv(config: SimulatedConfig, folder: Path) -> None:
    write_amazon_json(config, folder)
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.replace(SIMULATED, "Movies_and_TV"))


MOVIELENS = RawFormat("movielens/20m", "ratings.csv", 27, 20_010_000, 138_000, 27_000, 21, write_movielens_csv)
AMAZON = RawFormat(
    "amazon_reviews/movies_and_tv_2018",
    "Movies_and_TV_5.json.gz",
    30,
    3_410_000,
    297_500,
    60_200,
    5,
    _write_movies_and_tv,
)
FORMATS = {form.dataset: form for form in (MOVIELENS, AMAZON)}


def count_rows(file: Path) -> int:
    """Rows of a raw file, without the header of a CSV; lines are read from gzip where it is one."""
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
        rows = sum(block.count(b"\n") for block in iter(lambda: lines.read(1 << 20), b""))
    return rows - (file.suffix == ".csv")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.raw_files", description=__doc__.splitlines()[0])
    parser.add_argument("dataset", choices=FORMATS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, required=True)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True)
    form = FORMATS[arguments.dataset]
    form.write(form.config(arguments.rows), arguments.folder)


if __name__ == "__main__":
    main()
