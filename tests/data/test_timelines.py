import random
import zipfile

import numpy as np
import pytest

from user_llm.data.timelines import load_timelines
from user_llm.locks import owned

MOVIES = [(10, "Heat (1995)", "Action|Crime"), (7, "Emma (1996)", "Comedy"), (9, "Emma (1996)", "(no genres listed)")]
RATINGS = [
    # user, movie, rating, timestamp: users interleaved, times unsorted, a tie (user 2 at time 5)
    (2, 9, 4.5, 5),
    (11, 10, 3.0, 8),
    (2, 10, 0.5, 9),
    (2, 7, 5.0, 5),
    (11, 7, 1.0, 2),
    (2, 10, 2.0, 1),
]


def write_release(folder, ratings):
    folder.mkdir(parents=True)
    rows = ["movieId,title,genres", *(f"{movie},{title},{genres}" for movie, title, genres in MOVIES)]
    (folder / "movies.csv").write_text("\n".join(rows) + "\n")
    rows = ["userId,movieId,rating,timestamp", *(",".join(map(str, rating)) for rating in ratings)]
    (folder / "ratings.csv").write_text("\n".join(rows) + "\n")
    return folder


def load(raw, data_dir):
    return load_timelines("movielens/latest_small", raw_path=raw, data_dir=data_dir)


COLUMNS = ("item", "rating", "timestamp", "offsets")


def assert_same(one, other):
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert list(one.user_ids) == list(other.user_ids)


def test_columns_are_the_release_in_user_and_time_order(tmp_path):
    table = load(write_release(tmp_path / "raw", RATINGS), tmp_path / "data")
    assert table.name == "movielens/latest_small"
    assert list(table.user_ids) == ["2", "11"]
    assert table.num_users == 2
    assert table.offsets.tolist() == [0, 4, 6]
    assert table.timestamp.tolist() == [1, 5, 5, 9, 2, 8]
    assert table.item.tolist() == [1, 3, 2, 1, 2, 1]  # ids in movies.csv's order; ties in ratings.csv's
    assert [table.rating_names[rating] for rating in table.rating] == ["2.0", "4.5", "5.0", "0.5", "1.0", "3.0"]
    assert list(table.catalogue.titles) == ["", "Heat (1995)", "Emma (1996)", "Emma (1996) [2]"]
    assert list(table.catalogue.raw_ids) == ["", "10", "7", "9"]
    names = [[table.catalogue.category_names[i] for i in row if i] for row in table.catalogue.item_categories]
    assert names == [[], ["Action", "Crime"], ["Comedy"], ["(no genres listed)"]]
    assert table.summary["users"] == 2
    assert len(table.fingerprint) == 64
    assert [getattr(table, name).dtype for name in COLUMNS[:2]] == [np.dtype(np.int32), np.dtype(np.uint8)]
    assert {getattr(table, name).dtype for name in COLUMNS[2:]} == {np.dtype(np.int64)}


def test_row_order_matters_only_among_equal_times(tmp_path):
    table = load(write_release(tmp_path / "raw", RATINGS), tmp_path / "data")
    ties = [RATINGS[0], RATINGS[3]]
    for seed in range(2):
        shuffled = random.Random(seed).sample(RATINGS, len(RATINGS))
        in_order = iter(ties)
        shuffled = [next(in_order) if row in ties else row for row in shuffled]
        folder = tmp_path / str(seed)
        assert_same(load(write_release(folder / "raw", shuffled), folder / "data"), table)
    swapped = [ties[1], *RATINGS[1:3], ties[0], *RATINGS[4:]]
    assert load(write_release(tmp_path / "swapped", swapped), tmp_path / "other").item.tolist() == [1, 2, 3, 1, 2, 1]


def test_real_release(shared_dir, tmp_path):
    table = load(shared_dir / "data" / "ml-latest-small.zip", tmp_path)
    assert (table.num_users, len(table.item), table.catalogue.num_items) == (610, 100_836, 9_742)
    assert table.window_counts(history_length=50) == {"users": 378, "train": 74_184, "test": 378}
    assert table.window_counts(50, min_history=5, validation=True)["test"] == 610
    assert table.catalogue.duplicates == 5
    assert len(set(table.catalogue.titles)) == 9_743
    for user in range(table.num_users):
        assert np.all(np.diff(table.timestamp[table.offsets[user] : table.offsets[user + 1]]) >= 0)
    archive = zipfile.ZipFile(shared_dir / "data" / "ml-latest-small.zip")
    with archive, archive.open("ml-latest-small/ratings.csv") as file:
        raw = np.loadtxt(file, delimiter=",", skiprows=1)
    items = np.array([int(raw_id or 0) for raw_id in table.catalogue.raw_ids])[table.item]
    users = np.repeat(np.array(table.user_ids, np.int64), np.diff(table.offsets))
    stars = np.array([0, *map(float, table.rating_names[1:])])[table.rating]
    ours = np.stack([users, items, stars, table.timestamp], axis=1)
    order = np.lexsort((raw[:, 3], raw[:, 0]))  # stable: equal times keep the file's order
    np.testing.assert_array_equal(ours, raw[order])


def test_what_is_built_is_only_read(tmp_path):
    raw = write_release(tmp_path / "raw", RATINGS)
    table = load(raw, tmp_path / "data")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    assert_same(load(raw, tmp_path / "data"), table)
    with owned(tmp_path / "data" / "movielens" / "latest_small"):  # no lock is taken
        before |= {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob(".*")}
        assert_same(load(raw, tmp_path / "data"), table)
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == before


def test_another_source_under_the_same_name_is_refused(tmp_path):
    load(write_release(tmp_path / "raw", RATINGS), tmp_path / "data")
    other = write_release(tmp_path / "other", RATINGS[1:])
    with pytest.raises(ValueError, match="built from other data"):
        load(other, tmp_path / "data")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("movielens", "movielens/20m"), ("movielens/20x", "mean movielens/20m"), ("netflix/2", "families are movielens")],
)
def test_unknown_datasets_are_refused(name, hint, tmp_path):
    with pytest.raises(ValueError, match=rf"unknown dataset .*{hint}"):
        load_timelines(name, data_dir=tmp_path)


def test_simulated_timelines_load(tmp_path):
    options = dict(num_users=30, num_items=60, mean_events=22, seed=3)
    table = load_timelines("movielens/simulated", data_dir=tmp_path, simulated=options)
    assert (table.num_users, table.catalogue.num_items, len(table.item)) == (30, 60, 660)
    assert table.item.min() >= 1
    assert table.item.max() <= 60
