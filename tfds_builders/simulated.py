"""Simulated users and movies, written as the csv files MovieLens publishes.

What the simulation is made of, and what a model can learn from each part:

- movies come in series ("The Crimson Harbor", "The Crimson Harbor 2"); who saw a part usually sees the next one soon, with
  other movies in between: sequence beats popularity, and a longer memory beats the last event;
- each series has a genre (often a second one), and its title is made of that genre's words: titles carry taste;
- each user has a taste over genres that moves to another one on the way: users differ, and recent events say more than old;
- series have a popularity tail, and ratings follow taste, quality and the user's own mildness.

A user meets the series in the order of a race: series s is met at the first arrival of a Poisson process whose rate is the
user's current taste for s. That draws without replacement under changing weights in one vectorised step, so no movie comes
twice in a timeline, and 20 million events take minutes.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from tfds_builders.simulated_titles import GENRES, series_titles

_TASTE_CONCENTRATION = 0.12
"""Dirichlet parameter over genres: most of a taste lies on one or two of them."""
_OFF_TASTE = 0.03
"""Share of taste spread evenly over all genres."""
_POPULARITY_SIGMA = 0.8
_SEQUEL_RATE = 0.7
"""Chance that a series goes on after each part, in the catalogue."""
_FOLLOW_RATE = 0.9
"""Chance that a user who saw a part goes on to the next."""
_SEQUEL_DELAY = 0.6
"""Mean wait for the next part, in units of the user's mean wait between two new series."""
_MAX_PARTS = 6
_LENGTH_SIGMA = 0.9
_SECONDS_PER_SERIES = 86_400 * 2
_USERS_PER_CHUNK = 1024


@dataclass(frozen=True)
class SimulatedConfig:
    """Size and seed of a simulation.

    Attributes:
      num_users: timelines.
      num_items: movies in the catalogue.
      mean_events: mean timeline length; the file has exactly `round(num_users * mean_events)` rows.
      min_events: length of the shortest timeline; the default leaves every user a window of 20 events and a label.
      seed: the same seed and sizes write the same bytes.
    """

    num_users: int = 2_000
    num_items: int = 600
    mean_events: float = 45.0
    min_events: int = 21
    seed: int = 0

    def __post_init__(self):
        if self.num_users < 1:
            raise ValueError(f"num_users must be at least 1, got {self.num_users}.")
        if self.num_items < 20:
            raise ValueError(f"num_items must be at least 20, got {self.num_items}.")
        if not 1 <= self.min_events <= self.mean_events <= self.max_events:
            raise ValueError(
                "Expected 1 <= min_events <= mean_events <= num_items / 2 (a user who has seen most movies has no choice "
                f"left), got min_events={self.min_events}, mean_events={self.mean_events}, num_items={self.num_items}."
            )

    @property
    def max_events(self) -> int:
        return self.num_items // 2


@dataclass(frozen=True)
class _Catalogue:
    """Movies sorted by series and part; `first_item[s]` is the row of part 1 of series s."""

    num_parts: np.ndarray  # [series]
    first_item: np.ndarray  # [series]
    genres: np.ndarray  # [series, 2], equal when there is only one
    popularity: np.ndarray  # [series]
    quality: np.ndarray  # [items]
    movie_ids: np.ndarray  # [items], increasing with gaps as in MovieLens, and in no relation to the series


def write_movielens_csv(config: SimulatedConfig, folder: Path) -> None:
    """Writes `movies.csv` and `ratings.csv` into `folder`, rows sorted by (userId, movieId) as MovieLens does."""
    rng = np.random.default_rng(config.seed)
    catalogue = _simulate_catalogue(config, rng)
    _write_movies(catalogue, rng, folder / "movies.csv")
    lengths = _simulate_lengths(config, rng)
    schema = pa.schema(
        {"userId": pa.int32(), "movieId": pa.int32(), "rating": pa.string(), "timestamp": pa.int64()}
    )
    options = pa_csv.WriteOptions(quoting_header="none", quoting_style="none")
    with pa_csv.CSVWriter(folder / "ratings.csv", schema, write_options=options) as writer:
        for start in range(0, config.num_users, _USERS_PER_CHUNK):
            chunk = lengths[start : start + _USERS_PER_CHUNK]
            users, items, half_stars, timestamps = _simulate_events(catalogue, chunk, rng)
            movie_ids = catalogue.movie_ids[items]
            order = np.lexsort((movie_ids, users))
            stars = pa.array([f"{n / 2:.1f}" for n in range(11)]).take(pa.array(half_stars[order]))
            columns = [users[order] + start + 1, movie_ids[order], stars, timestamps[order]]
            writer.write_table(pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema))


def _simulate_catalogue(config: SimulatedConfig, rng: np.random.Generator) -> _Catalogue:
    parts = np.minimum(rng.geometric(1 - _SEQUEL_RATE, config.num_items), _MAX_PARTS)
    parts = parts[: np.searchsorted(np.cumsum(parts), config.num_items) + 1]
    parts[-1] -= parts.sum() - config.num_items
    num_series = len(parts)
    first_genre = rng.integers(len(GENRES), size=num_series)
    second_genre = np.where(rng.random(num_series) < 0.5, first_genre, rng.integers(len(GENRES), size=num_series))
    raw_ids = 1 + np.cumsum(rng.geometric(0.5, config.num_items))
    return _Catalogue(
        num_parts=parts,
        first_item=np.cumsum(parts) - parts,
        genres=np.stack([first_genre, second_genre], axis=1),
        popularity=np.exp(rng.normal(0, _POPULARITY_SIGMA, num_series)),
        quality=rng.normal(0, 0.4, config.num_items),
        movie_ids=rng.permutation(raw_ids),
    )


def _simulate_lengths(config: SimulatedConfig, rng: np.random.Generator) -> np.ndarray:
    """Timeline lengths `[users]` with a log-normal tail, of exactly the promised total."""
    total = round(config.num_users * config.mean_events)
    tail = rng.lognormal(0, _LENGTH_SIGMA, config.num_users)
    tail *= (config.mean_events - config.min_events) / np.exp(_LENGTH_SIGMA**2 / 2)
    lengths = np.minimum(config.min_events + tail.astype(np.int64), config.max_events)
    while missing := total - lengths.sum():
        # Sampling, rounding and the cap leave a rest: one event each for, or from, as many users as can take it.
        step = np.sign(missing)
        able = np.flatnonzero(lengths < config.max_events if step > 0 else lengths > config.min_events)
        lengths[rng.permutation(able)[: abs(missing)]] += step
    return lengths


def _simulate_events(catalogue: _Catalogue, lengths: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Simulates some users' events.

    Args:
      catalogue: what they can watch.
      lengths: `[users]` timeline lengths.
      rng: source of randomness.

    Returns:
      user (from 0), item row, rating in half stars, and timestamp in seconds, each `[sum(lengths)]`.
    """
    num_users, num_series = len(lengths), len(catalogue.num_parts)
    before, after = (_tastes(catalogue, num_users, rng) for _ in range(2))
    # In a race with rates that sum to 1, about one series arrives per unit of time; tastes change half-way.
    mean_parts = catalogue.num_parts.mean() * _FOLLOW_RATE
    change = (lengths / mean_parts / 2)[:, None].astype(np.float32)
    need = rng.standard_exponential((num_users, num_series), dtype=np.float32)
    arrival = np.where(need < before * change, need / before, change + (need - before * change) / after)
    # Every series gives at least one event, so as many series as events are enough.
    candidates = min(int(lengths.max()), num_series)
    series = np.argpartition(arrival, candidates - 1, axis=1)[:, :candidates]
    arrival = np.take_along_axis(arrival, series, axis=1)

    shape = (num_users, candidates, _MAX_PARTS)
    delay = rng.standard_exponential(shape, dtype=np.float32) * _SEQUEL_DELAY
    delay[..., 0] = 0
    seen = rng.random(shape, dtype=np.float32) < _FOLLOW_RATE
    seen[..., 0] = True
    seen = np.logical_and.accumulate(seen, axis=2)
    seen &= np.arange(_MAX_PARTS) < catalogue.num_parts[series][..., None]
    # A part left out still comes, after everything else: a user who runs out of choice has a full timeline all the same.
    late = np.where(seen, 0, 1e6).astype(np.float32)
    exists = np.arange(_MAX_PARTS) < catalogue.num_parts[series][..., None]
    moment = np.where(exists, arrival[..., None] + np.cumsum(delay, axis=2) + late, np.inf).reshape(num_users, -1)
    order = np.argsort(moment, axis=1)[:, : lengths.max()]
    position = np.arange(order.shape[1])
    kept = position < lengths[:, None]

    users = np.broadcast_to(np.arange(num_users)[:, None], kept.shape)[kept]
    pick = order[kept]
    chosen = series[users, pick // _MAX_PARTS]
    items = catalogue.first_item[chosen] + pick % _MAX_PARTS
    moments = np.take_along_axis(moment, order, axis=1)[kept]
    is_after = moments > change[users, 0]
    taste = np.where(is_after, after[users, chosen], before[users, chosen]) / catalogue.popularity[chosen]
    half_stars = _rate(np.log(taste), catalogue.quality[items], rng.normal(0, 0.5, num_users)[users], rng)
    began = rng.integers(800_000_000, 1_400_000_000, num_users)
    timestamps = began[users] + (np.minimum(moments, 1e4) * _SECONDS_PER_SERIES).astype(np.int64)
    return users, items, half_stars, timestamps


def _tastes(catalogue: _Catalogue, num_users: int, rng: np.random.Generator) -> np.ndarray:
    """Rates `[users, series]` at which users meet series, summing to 1 a user."""
    genres = rng.dirichlet(np.full(len(GENRES), _TASTE_CONCENTRATION), num_users).astype(np.float32)
    genres = (1 - _OFF_TASTE) * genres + _OFF_TASTE / len(GENRES)
    rates = genres[:, catalogue.genres].mean(axis=2) * catalogue.popularity.astype(np.float32)
    return rates / rates.sum(axis=1, keepdims=True)


def _rate(log_taste: np.ndarray, quality: np.ndarray, mildness: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Ratings in half stars from 1 to 10, of mean about 3.5 stars, `[events]`."""
    liking = (log_taste - log_taste.mean()) / log_taste.std()
    stars = 3.5 + 0.6 * liking + quality + mildness + rng.normal(0, 0.4, len(quality))
    return np.clip(np.rint(2 * stars), 1, 10).astype(np.int64)


def _write_movies(catalogue: _Catalogue, rng: np.random.Generator, path: Path) -> None:
    titles = series_titles(catalogue.genres[:, 0], rng)
    years = rng.integers(1950, 2010, len(titles))
    rows = []
    for series, num_parts in enumerate(catalogue.num_parts):
        genres = "|".join(sorted({GENRES[genre] for genre in catalogue.genres[series]}))
        for part in range(num_parts):
            number = f" {part + 1}" if part else ""
            title = f"{titles[series]}{number} ({years[series] + 2 * part})"
            rows.append((int(catalogue.movie_ids[catalogue.first_item[series] + part]), title, genres))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("movieId", "title", "genres"))
        writer.writerows(sorted(rows))
