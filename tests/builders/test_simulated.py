"""The simulation: official format, exact sizes, and timelines from which the next movie can be learnt."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from user_llm.builders.movielens import Builder
from user_llm.builders.simulated import SimulatedConfig, write_movielens_csv


class Simulation:
    """The two files of a simulation as arrays: movies from 0, events sorted by (user, time)."""

    def __init__(self, config: SimulatedConfig, folder: Path):
        write_movielens_csv(config, folder)
        with (folder / "movies.csv").open(encoding="utf-8", newline="") as file:
            self.movies = list(csv.DictReader(file))
        with (folder / "ratings.csv").open() as file:
            self.header = file.readline()
            self.rows = np.array([line.split(",") for line in file], dtype=np.float64)
        index = {int(movie["movieId"]): i for i, movie in enumerate(self.movies)}
        order = np.lexsort((self.rows[:, 3], self.rows[:, 0]))
        self.user = self.rows[order, 0].astype(int) - 1
        self.item = np.array([index[int(raw)] for raw in self.rows[order, 1]])
        self.stars = self.rows[order, 2]
        self.lengths = np.bincount(self.user)
        self.timelines = np.split(self.item, np.cumsum(self.lengths)[:-1])


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    return Simulation(SimulatedConfig(), tmp_path_factory.mktemp("simulated"))


def test_files_have_the_published_format(default):
    assert default.header == "userId,movieId,rating,timestamp\n"
    raw_ids = [int(movie["movieId"]) for movie in default.movies]
    assert raw_ids == sorted(set(raw_ids))
    assert raw_ids[-1] > len(raw_ids)  # gaps, as in MovieLens: ids are no positions
    rows = default.rows
    assert (np.lexsort((rows[:, 1], rows[:, 0])) == np.arange(len(rows))).all()
    assert set(default.stars) <= {n / 2 for n in range(1, 11)}


@pytest.mark.parametrize(
    "config",
    [
        SimulatedConfig(),
        SimulatedConfig(num_users=300, num_items=100, mean_events=49.7, min_events=40, seed=5),
        SimulatedConfig(num_users=1, num_items=2, mean_events=1, min_events=1),
        SimulatedConfig(num_users=7, num_items=90, mean_events=45, min_events=45),
    ],
)
def test_sizes_are_as_configured(tmp_path, config):
    simulation = Simulation(config, tmp_path)
    assert len(simulation.movies) == config.num_items
    assert len(simulation.lengths) == config.num_users
    assert len(simulation.item) == round(config.num_users * config.mean_events)
    assert simulation.lengths.min() >= config.min_events
    assert simulation.lengths.max() <= config.num_items // 2
    assert all(len(set(timeline)) == len(timeline) for timeline in simulation.timelines)


def test_same_seed_same_bytes(tmp_path):
    contents = []
    for n, seed in enumerate((1, 1, 2)):
        folder = tmp_path / str(n)
        folder.mkdir()
        write_movielens_csv(SimulatedConfig(num_users=300, num_items=60, mean_events=25, seed=seed), folder)
        contents.append([(folder / name).read_bytes() for name in ("movies.csv", "ratings.csv")])
    assert contents[0] == contents[1]
    assert contents[0][0] != contents[2][0]
    assert contents[0][1] != contents[2][1]


@pytest.mark.parametrize(
    "values",
    [{"num_users": 0}, {"num_items": 60}, {"mean_events": 20}, {"min_events": 0}, {"min_events": 46}],
)
def test_values_that_do_not_fit_are_refused(values):
    with pytest.raises(ValueError, match=r"num_users must be|Expected 1 <= min_events"):
        SimulatedConfig(**values)


def _hits_at_10(scores: np.ndarray, seen: np.ndarray, label: int) -> bool:
    """Whether the label is among the ten best movies the user has not seen, ties counted against it."""
    scores = scores.astype(float)
    scores[seen] = -np.inf
    return (scores >= scores[label]).sum() <= 10


def test_past_predicts_the_next_movie_well_beyond_popularity(default):
    num_items = len(default.movies)
    popularity, follows = np.zeros(num_items), np.zeros((num_items, num_items))
    for timeline in default.timelines:
        popularity[timeline[:-1]] += 1
        np.add.at(follows, (timeline[:-2], timeline[1:-1]), 1)
    by_popularity, by_markov, by_memory = (
        np.mean([_hits_at_10(score(timeline[:-1]), timeline[:-1], timeline[-1]) for timeline in default.timelines])
        for score in (
            lambda history: popularity,
            lambda history: follows[history[-1]] + 1e-6 * popularity,
            lambda history: np.average(follows[history[-8:]], axis=0, weights=0.8 ** np.arange(8)[::-1]),
        )
    )
    assert by_popularity < 0.10
    assert by_markov > 0.30
    # More than the last event matters, or there would be nothing for an encoder to remember.
    assert by_memory > by_markov + 0.05


def test_users_differ_and_their_taste_moves(tmp_path):
    # A catalogue in which nobody runs out of what they like, which would move a taste by itself.
    simulation = Simulation(SimulatedConfig(num_users=600, num_items=6_000), tmp_path)
    genres = sorted({genre for movie in simulation.movies for genre in movie["genres"].split("|")})
    has_genre = np.array([[name in movie["genres"].split("|") for name in genres] for movie in simulation.movies])

    def profiles(start, stop):
        counts = np.array([has_genre[timeline[start:stop]].sum(axis=0) for timeline in simulation.timelines])
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)

    first, second, last = profiles(0, 7), profiles(7, 14), profiles(-7, None)
    same_user_soon, same_user_later = (np.mean(np.sum(second * other, axis=1)) for other in (first, last))
    other_users = np.mean(first @ second.T)
    assert same_user_soon > same_user_later + 0.1
    assert same_user_soon > other_users + 0.3


def test_ratings_follow_taste(default):
    """Users rate movies of the genre they watch most above the others."""
    first_genre = np.array([movie["genres"].split("|")[0] for movie in default.movies])[default.item]
    gaps = []
    for user in range(500):
        mine = default.user == user
        names, counts = np.unique(first_genre[mine], return_counts=True)
        favourite = first_genre[mine] == names[counts.argmax()]
        if 0 < favourite.sum() < mine.sum():
            gaps.append(default.stars[mine][favourite].mean() - default.stars[mine][~favourite].mean())
    assert np.mean(gaps) > 0.2


def test_titles_are_short_mostly_unique_and_tell_series_and_genre(default):
    titles = [movie["title"] for movie in default.movies]
    assert len(set(titles)) > 0.99 * len(titles)
    assert max(len(title.split()) for title in titles) <= 8
    parts = [re.fullmatch(r"The (\S+ \S+(?: of \S+)?)(?: (\d))? \((\d{4})\)", title) for title in titles]
    assert all(parts)
    genres_of_word = {}
    series = {}
    for movie, match in zip(default.movies, parts, strict=True):
        series.setdefault(match[1], []).append((int(match[2] or 1), int(match[3]), movie["genres"]))
        for word in match[1].split()[:2]:
            genres_of_word.setdefault(word, []).append(set(movie["genres"].split("|")))
    assert all(set.intersection(*genres) for genres in genres_of_word.values())
    for movies in series.values():
        numbers, years, genres = zip(*sorted(movies), strict=True)
        assert numbers == tuple(range(1, len(numbers) + 1))
        assert list(years) == sorted(years)
        assert len(set(genres)) == 1


def test_simulated_dataset_goes_through_the_same_builder(tmp_path):
    config = SimulatedConfig(num_users=40, num_items=80, mean_events=25)
    builder = Builder(config="simulated", data_dir=tmp_path, simulated=config)
    builder.download_and_prepare()
    summary = builder.info.metadata["summary"]
    assert summary["events"] == 1000
    assert summary["items"] == 80
    assert summary["windows"]["20"]["test"] == 40
    assert builder.info.splits["users"].num_examples == 40
