"""Simulated users and items; movies are written as the csv files MovieLens publishes (`simulated_json.py`: others).

What the simulation is made of, and what a model can learn from each part:

- Items come in series ("The Crimson Harbor", "The Crimson Harbor 2"). Who saw a part usually sees the next one
  soon, with other movies in between: sequences beat popularity, and a longer memory beats the last event.
- A series has a genre, often a second one, and a title of the first genre's words: titles carry taste.
- A user's taste lies on few genres, and moves to others half-way: users differ, and late events say more than early.
- Series have a popularity tail; ratings follow taste, the movie's quality and the user's mildness.

A user meets the series in a race: each at the first arrival of a Poisson process whose rate is the user's present
taste for it. This draws without replacement under changing weights in one vectorised step, so that no movie comes
twice in a timeline, and 20 million events take minutes.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from user_llm.builders.simulated_titles import GENRES, series_titles
from user_llm.errors import UserError

_MAX_PARTS = 6
_SEQUEL_CHANCE = 0.7
"""That a series has one more part, after each part."""
_FOLLOW_CHANCE = 0.9
"""That a user who saw a part goes on to the next."""
_SEQUEL_DELAY = 0.6
"""Mean wait for the next part, in units of the user's mean wait for a new series."""
_TASTE_CONCENTRATION = 0.12
"""Dirichlet parameter over genres: most of a taste lies on one or two."""
_OPEN_MINDEDNESS = 0.03
"""Share of a taste that is spread evenly over all genres."""
_POPULARITY_SIGMA = 0.8
_LENGTH_SIGMA = 0.9
_SECONDS_PER_SERIES = 2 * 86_400
_SKIPPED = 1e6
"""Delay of a part that the user does not go on to: it comes after all else, when there is nothing left to choose."""
_USERS_PER_CHUNK = 256


@dataclass(frozen=True)
class SimulatedConfig:
    """Sizes and seed of a simulation; the same values write the same bytes.

    Attributes:
      num_users: timelines.
      num_items: movies in the catalogue.
      mean_events: mean timeline length; there are exactly `round(num_users * mean_events)` ratings.
      min_events: shortest timeline; the default leaves every user a window of 20 events and its label.
      seed: of all randomness.

    Raises:
      UserError: the values do not fit each other.
    """

    num_users: int = 2_000
    num_items: int = 600
    mean_events: float = 45.0
    min_events: int = 21
    seed: int = 0

    def __post_init__(self):
        if self.num_users < 1:
            raise UserError(f"num_users must be at least 1, got {self.num_users}.")
        if self.seed < 0:
            raise UserError(f"seed must be a whole number from 0, got {self.seed}.")
        if not 1 <= self.min_events <= self.mean_events <= self.max_events:
            raise UserError(
                "Expected 1 <= min_events <= mean_events <= num_items / 2 (who has seen most has no choice left), "
                f"got min_events={self.min_events}, mean_events={self.mean_events}, num_items={self.num_items}."
            )

    @property
    def max_events(self) -> int:
        """Longest timeline."""
        return self.num_items // 2


@dataclass(frozen=True)
class Series:
    """The catalogue: items sorted by series and part."""

    num_parts: np.ndarray  # int [series]
    first_item: np.ndarray  # int [series]: part p of series s is item first_item[s] + p
    genres: np.ndarray  # int [series, 2], equal where there is only one
    popularity: np.ndarray  # float32 [series]
    quality: np.ndarray  # float [items], in stars
    raw_ids: np.ndarray  # int [items]: with gaps as in MovieLens, in no relation to the series


class Events(NamedTuple):
    """Events of some users, unsorted; each `[events]` but `mildness`."""

    user: np.ndarray  # int, from 0
    item: np.ndarray  # int, from 0
    half_stars: np.ndarray  # int: rating, 1 to 10
    timestamp: np.ndarray  # int: seconds since 1970
    mildness: np.ndarray  # float [users], in stars: how much better than others a user rates everything


def write_movielens_csv(config: SimulatedConfig, folder: Path) -> None:
    """Writes `movies.csv` and `ratings.csv` into `folder`, rows sorted by (userId, movieId) as MovieLens does."""
    rng = np.random.default_rng(config.seed)
    catalogue = simulate_catalogue(config, rng)
    _write_movies(catalogue, rng, folder / "movies.csv")
    stars = pa.array([f"{half_stars / 2:.1f}" for half_stars in range(11)])
    columns = {"userId": pa.int64(), "movieId": pa.int64(), "rating": pa.string(), "timestamp": pa.int64()}
    options = pa_csv.WriteOptions(quoting_header="none", quoting_style="none")
    with pa_csv.CSVWriter(folder / "ratings.csv", pa.schema(columns), write_options=options) as writer:
        for start, events in simulate_events(config, catalogue, rng):
            raw_ids = catalogue.raw_ids[events.item]
            order = np.lexsort((raw_ids, events.user))
            ratings, timestamps = stars.take(events.half_stars[order]), events.timestamp[order]
            rows = (start + 1 + events.user[order], raw_ids[order], ratings, timestamps)
            writer.write_table(pa.table(dict(zip(columns, rows, strict=True))))


def simulate_catalogue(config: SimulatedConfig, rng: np.random.Generator) -> Series:
    """Draws the series."""
    parts = np.minimum(rng.geometric(1 - _SEQUEL_CHANCE, config.num_items), _MAX_PARTS)
    parts = parts[: np.searchsorted(np.cumsum(parts), config.num_items) + 1]
    parts[-1] -= parts.sum() - config.num_items
    num_series = len(parts)
    first, second = rng.integers(len(GENRES), size=(2, num_series))
    return Series(
        num_parts=parts,
        first_item=np.cumsum(parts) - parts,
        genres=np.stack([first, np.where(rng.random(num_series) < 0.5, first, second)], axis=1),
        popularity=rng.lognormal(0, _POPULARITY_SIGMA, num_series).astype(np.float32),
        quality=rng.normal(0, 0.4, config.num_items),
        raw_ids=rng.permutation(np.cumsum(rng.geometric(0.5, config.num_items))),
    )


def _simulate_lengths(config: SimulatedConfig, rng: np.random.Generator) -> np.ndarray:
    """Timeline lengths `[users]` with a log-normal tail and exactly the promised sum."""
    tail = rng.lognormal(-(_LENGTH_SIGMA**2) / 2, _LENGTH_SIGMA, config.num_users)
    lengths = config.min_events + (tail * (config.mean_events - config.min_events)).astype(np.int64)
    lengths = np.minimum(lengths, config.max_events)
    while missing := round(config.num_users * config.mean_events) - lengths.sum():
        # Chance, rounding and the cap leave a difference: one event for, or from, as many users as have room.
        room = lengths < config.max_events if missing > 0 else lengths > config.min_events
        lengths[rng.permutation(np.flatnonzero(room))[: abs(missing)]] += np.sign(missing)
    return lengths


def simulate_events(
    config: SimulatedConfig, catalogue: Series, rng: np.random.Generator
) -> Iterator[tuple[int, Events]]:
    """Draws the timelines, some users at a time: yields the number of the first, from 0, and their events."""
    lengths = _simulate_lengths(config, rng)
    for start in range(0, config.num_users, _USERS_PER_CHUNK):
        yield start, _simulate_chunk(catalogue, lengths[start : start + _USERS_PER_CHUNK], rng)


def _simulate_chunk(catalogue: Series, lengths: np.ndarray, rng: np.random.Generator) -> Events:
    """Simulates some users' timelines.

    Args:
      catalogue: what they can watch.
      lengths: `[users]` events each of them has.
      rng: source of randomness.
    """
    num_users, num_series = len(lengths), len(catalogue.num_parts)
    early, late = (_tastes(catalogue, num_users, rng) for _ in range(2))
    # Rates sum to 1, so about one series arrives per unit of time: tastes change after half of the events.
    change = (lengths / catalogue.num_parts.mean() / 2)[:, None].astype(np.float32)
    demand = rng.standard_exponential((num_users, num_series), dtype=np.float32)
    met_by_change = early * change
    arrival = np.where(demand < met_by_change, demand / early, change + (demand - met_by_change) / late)
    # Each series gives at least one event, so that as many series as events are enough.
    candidates = min(int(lengths.max()), num_series)
    series = np.argpartition(arrival, candidates - 1, axis=1)[:, :candidates]

    shape = (num_users, candidates, _MAX_PARTS)
    wait = rng.standard_exponential(shape, dtype=np.float32) * np.float32(_SEQUEL_DELAY)
    wait[rng.random(shape, dtype=np.float32) > _FOLLOW_CHANCE] += np.float32(_SKIPPED)
    wait[..., 0] = np.take_along_axis(arrival, series, axis=1)
    moment = np.cumsum(wait, axis=2)
    moment[np.arange(_MAX_PARTS) >= catalogue.num_parts[series][..., None]] = np.inf
    moment = moment.reshape(num_users, -1)
    order = np.argsort(moment, axis=1)[:, : lengths.max()]

    user, position = np.nonzero(np.arange(order.shape[1]) < lengths[:, None])
    pick = order[user, position]
    seen_series = series[user, pick // _MAX_PARTS]
    item = catalogue.first_item[seen_series] + pick % _MAX_PARTS
    when = moment[user, pick]
    rate = np.where(when < change[user, 0], early[user, seen_series], late[user, seen_series])
    liking = np.log(rate / catalogue.popularity[seen_series])
    liking = (liking - liking.mean()) / (liking.std() + 1e-6)
    mildness = rng.normal(0, 0.5, num_users)
    stars = 3.5 + 0.6 * liking + catalogue.quality[item] + mildness[user] + rng.normal(0, 0.4, len(item))
    half_stars = np.clip(np.rint(2 * stars), 1, 10).astype(np.int64)
    start = rng.integers(800_000_000, 1_400_000_000, num_users)[user]
    # Position breaks the ties that seconds would make, and skipped parts are brought within reach.
    seconds = (np.minimum(when, 2 * change[user, 0]) * _SECONDS_PER_SERIES).astype(np.int64) + position
    return Events(user, item, half_stars, start + seconds, mildness)


def _tastes(catalogue: Series, num_users: int, rng: np.random.Generator) -> np.ndarray:
    """Rates at which users meet series, `[users, series]`, of sum 1 a user."""
    tastes = rng.dirichlet(np.full(len(GENRES), _TASTE_CONCENTRATION), num_users)
    tastes = (1 - _OPEN_MINDEDNESS) * tastes + _OPEN_MINDEDNESS / len(GENRES)
    share = np.eye(len(GENRES), dtype=np.float32)[catalogue.genres].mean(axis=1)
    rates = tastes.astype(np.float32) @ (share.T * catalogue.popularity)
    return rates / rates.sum(axis=1, keepdims=True)


def _write_movies(catalogue: Series, rng: np.random.Generator, path: Path) -> None:
    titles = series_titles(catalogue.genres[:, 0], rng)
    years = rng.integers(1950, 2010, len(titles))
    rows = []
    for series, num_parts in enumerate(catalogue.num_parts):
        genres = "|".join(sorted({GENRES[genre] for genre in catalogue.genres[series]}))
        for part in range(num_parts):
            number = f" {part + 1}" if part else ""
            title = f"{titles[series]}{number} ({years[series] + 2 * part})"
            rows.append((int(catalogue.raw_ids[catalogue.first_item[series] + part]), title, genres))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("movieId", "title", "genres"))
        writer.writerows(sorted(rows))
