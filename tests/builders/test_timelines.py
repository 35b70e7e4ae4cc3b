"""The shared schema and the grouping, against TFDS's own feature and a plain Python sort."""

import numpy as np
import pyarrow as pa
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer

from user_llm.builders import timelines
from user_llm.builders.columns import EventColumns
from user_llm.columns import Texts, open_column


def _serialise(features: tfds.features.FeaturesDict, example: dict) -> bytes:
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    return serializer.get_tf_example(features.encode_example(example)).SerializeToString(deterministic=True)


def _example(num_events: int) -> dict:
    rng = np.random.default_rng(num_events)
    return {
        "user_id": "ü 7",
        "events": {
            "item": rng.integers(1, 100_000, num_events).astype(np.int32),
            "rating": rng.integers(1, 10, num_events).astype(np.int32),
            "timestamp": rng.integers(0, 2**40, num_events),
            "review": np.array(["süß", "", "fine"] * num_events, dtype=object)[:num_events],
        },
    }


@pytest.mark.parametrize("num_events", [1, 2, 50])
def test_event_sequence_writes_what_the_stock_sequence_writes(num_events):
    stock = tfds.features.FeaturesDict(
        {
            "user_id": tfds.features.Text(),
            "events": tfds.features.Sequence(
                {"item": np.int32, "rating": np.int32, "timestamp": np.int64, "review": tfds.features.Text()}
            ),
        }
    )
    example = _example(num_events)
    assert _serialise(timelines.FEATURES, example) == _serialise(stock, example)


def test_event_sequence_is_described_as_the_stock_sequence():
    restored = tfds.features.FeaturesDict.from_json(timelines.FEATURES.to_json())
    assert type(restored["events"]) is tfds.features.Sequence
    assert restored["events"].keys() == timelines.FEATURES["events"].keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rating": np.ones(3, np.int32)}, "equally long"),
        ({"stars": np.ones(4, np.int32)}, "needs the columns"),
        ({name: np.ones((4, 1)) for name in ("item", "rating", "timestamp", "review")}, "one-dimensional"),
    ],
)
def test_event_sequence_refuses_columns_that_do_not_fit(change, message):
    example = _example(4)
    example["events"] |= change
    with pytest.raises(ValueError, match=message):
        timelines.FEATURES.encode_example(example)


@pytest.fixture
def rows():
    """(user_id, item, rating, timestamp, line) in file order, with many equal timestamps and repeated pairs."""
    rng = np.random.default_rng(3)
    columns = [rng.integers(*limits, 400) for limits in ((1, 30), (1, 9), (1, 6), (0, 12))]
    return [(*map(int, row), line) for line, row in enumerate(zip(*columns, strict=True))]


@pytest.fixture
def connection(tmp_path, rows):
    """A database that holds `rows`, stored in another order, as `events`."""
    shuffled = np.random.default_rng(4).permutation(len(rows))
    columns = [pa.array(column) for column in zip(*(rows[i] for i in shuffled), strict=True)]
    events = pa.table(columns, names=["user_id", "item", "rating", "timestamp", "line"])
    connection = timelines.open_database(tmp_path)
    connection.register("loaded", events)
    connection.execute("CREATE TABLE events AS SELECT * FROM loaded")
    yield connection
    connection.close()


def _naive_timelines(rows: list[tuple]) -> dict[int, list[tuple]]:
    users = {}
    for user, item, rating, timestamp, _ in rows:
        users.setdefault(user, []).append((item, rating, timestamp))
    return {user: sorted(events, key=lambda event: event[2]) for user, events in sorted(users.items())}


def _records(connection, batch_rows=1 << 20):
    """(user_id, events) of every record."""
    blocks = timelines.read_blocks(connection, batch_rows)
    return [(example["user_id"], example["events"]) for block in blocks for example in block.examples()]


@pytest.mark.parametrize("batch_rows", [1, 7, 10_000])
def test_timelines_are_a_stable_sort_by_time(connection, rows, batch_rows):
    built = [
        (int(user_id), list(zip(*(events[name].tolist() for name in ("item", "rating", "timestamp")), strict=True)))
        for user_id, events in _records(connection, batch_rows)
    ]
    assert built == list(_naive_timelines(rows).items())


@pytest.mark.parametrize("batch_rows", [1, 50, 10_000])
def test_reviews_are_none_without_a_column_and_kept_with_one(connection, rows, batch_rows):
    for _, events in _records(connection, batch_rows):
        assert events["review"].tolist() == []
    connection.execute("ALTER TABLE events ADD COLUMN review VARCHAR")
    connection.execute("UPDATE events SET review = 'review of line ' || line")
    for user_id, events in _records(connection, batch_rows):
        in_time_order = sorted((row for row in rows if row[0] == int(user_id)), key=lambda row: row[3])
        assert events["review"].tolist() == [f"review of line {row[4]}".encode() for row in in_time_order]


@pytest.mark.parametrize("batch_rows", [1, 50, 10_000])
def test_columns_are_the_records_one_behind_the_other(connection, tmp_path, batch_rows):
    connection.execute("ALTER TABLE events ADD COLUMN review VARCHAR")
    connection.execute("UPDATE events SET review = CASE WHEN line % 3 > 0 THEN repeat('ü' || line, line % 3) END")
    connection.execute("CREATE TABLE named AS SELECT * REPLACE ('Ä' || user_id AS user_id) FROM events")
    connection.execute("DROP TABLE events; ALTER TABLE named RENAME TO events")
    folder = tmp_path / "columns"
    with EventColumns(folder, ratings=10, reviews=True) as columns:
        for block in timelines.read_blocks(connection, batch_rows):
            columns.append(block)
    records = _records(connection)
    assert list(Texts.open(folder, "user_id")) == [user_id for user_id, _ in records]
    for name, dtype in (("item", np.int32), ("rating", np.uint8), ("timestamp", np.int64)):
        column = open_column(folder, name)
        assert column.dtype == dtype
        np.testing.assert_array_equal(column, np.concatenate([events[name] for _, events in records]))
    reviews = [review.decode() for _, events in records for review in events["review"]]
    assert list(Texts.open(folder, "review")) == reviews
    assert "" in reviews
    lengths = [len(events["item"]) for _, events in records]
    assert open_column(folder, "offsets").tolist() == [0, *np.cumsum(lengths)]


def test_text_user_ids_are_kept(connection):
    connection.execute("CREATE TABLE named AS SELECT * REPLACE ('A' || user_id AS user_id) FROM events")
    connection.execute("DROP TABLE events; ALTER TABLE named RENAME TO events")
    user_ids = [user_id for user_id, _ in _records(connection, 50)]
    assert user_ids == sorted(f"A{user}" for user in range(1, 30))


def test_summary_counts_what_a_loop_counts(connection, rows, monkeypatch):
    monkeypatch.setattr(timelines, "WINDOW_LENGTHS", (3, 14))
    users = _naive_timelines(rows)
    summary = timelines.summarise_timelines(timelines.measure(connection))
    assert summary["events"] == 400
    assert summary["users"] == len(users)
    assert summary["items_with_events"] == 8
    assert summary["repeated_user_item_rows"] == 400 - len({(row[0], row[1]) for row in rows})
    assert summary["timeline_length"]["max"] == max(map(len, users.values()))
    for history_length in (3, 14):
        windows = [
            (user, position) for user, events in users.items() for position in range(history_length, len(events))
        ]
        with_windows = len({user for user, _ in windows})
        assert summary["windows"][str(history_length)] == {
            "users": with_windows,
            "windows": len(windows),
            "train": len(windows) - with_windows,
            "test": with_windows,
        }
