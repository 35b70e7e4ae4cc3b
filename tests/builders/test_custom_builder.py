"""The custom builder: a user's own files, column by column, against plain Python and the MovieLens builder."""

import argparse
import csv
import datetime
import gzip
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from tests.built import ReadByTensorFlow, examples, metadata_of
from user_llm.builders import movielens, rules, timelines
from user_llm.builders.custom import Builder, CustomConfig, command, csv_rows
from user_llm.builders.custom.rules import CustomRules
from user_llm.builders.malformed import MalformedSourceError, RowReport

COLUMNS = {"user": "u", "item": "i", "timestamp": "t"}


class CustomTest(ReadByTensorFlow, tfds.testing.DatasetBuilderTestCase):
    """TFDS's checks of a builder folder, over dummy_data/."""

    DATASET_CLASS = Builder
    SPLITS = {"users": 3}  # noqa: RUF012
    SKIP_CHECKSUMS = True  # nothing is downloaded

    test_registered = None  # our builders are kept out of TFDS's registry


def _load(config: CustomConfig, tmp_path: Path) -> tuple[list[tuple], dict, RowReport]:
    """(user_id, raw item id, rating, timestamp, review) of all events in the dataset's order, metadata, report."""
    report = RowReport()
    folder = tmp_path / f"work{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    with timelines.open_database(folder) as connection:
        metadata = rules.load(CustomRules(config), connection, report, max_malformed=1.0)
        events = connection.execute(
            "SELECT user_id, item, rating, timestamp, review FROM events ORDER BY user_id, timestamp, line"
        ).fetchall()
    events = [(user, metadata["raw_ids"][item], *others) for user, item, *others in events]
    return events, metadata, report


def _csv(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def _rules(report: RowReport) -> dict[str, dict[str, int]]:
    return {
        file: {rule: applied["rows"] for rule, applied in rows["rules"].items()}
        for file, rows in report.as_dict().items()
    }


@pytest.fixture(scope="module")
def real(shared_dir, tmp_path_factory):
    packed = shared_dir / "data" / "ml-latest-small.zip"
    if not packed.exists():
        pytest.skip(f"{packed} is absent: put MovieLens latest-small there")
    folder = tmp_path_factory.mktemp("real")
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(folder)
    return folder / "ml-latest-small"


def test_real_ratings_give_the_bytes_of_the_movielens_builder(real, tmp_path):
    expected = movielens.Builder(config="latest_small", raw_path=real, data_dir=tmp_path)
    expected.download_and_prepare()
    config = CustomConfig(
        name="small",
        files=[real / "ratings.csv"],
        columns={"user": "userId", "item": "movieId", "timestamp": "timestamp", "rating": "rating"},
        items=[real / "movies.csv"],
        item_columns={"item": "movieId", "title": "title", "category": "genres"},
    )
    built = Builder(config=config, data_dir=tmp_path)
    built.download_and_prepare()
    mine, theirs = (sorted(Path(builder.data_dir).glob("*.array_record*")) for builder in (built, expected))
    assert [path.read_bytes() for path in mine] == [path.read_bytes() for path in theirs]
    for key in ("titles", "raw_ids", "category_names", "item_categories", "rating_names", "summary"):
        assert metadata_of(built)[key] == metadata_of(expected)[key]
    assert built.info.metadata["summary"]["windows"]["50"] == {
        "users": 378, "windows": 74_562, "train": 74_184, "test": 378
    }  # fmt: skip


def test_six_faults_in_ten_lines_give_six_messages_and_no_dataset(tmp_path):
    faulty = _csv(
        tmp_path / "shop.csv",
        "user,item,when,stars",
        "ann,tea,1600000000,5",
        "ann,mug,1600000100",
        ",mug,1600000200,4",
        "bob,,1600000300,4",
        "bob,tea,yesterday,4",
        "bob,tea,1600000400,four",
        'cy,"tea,1600000500,4',
        "cy,tea,1600000600,4",
        "cy,mug,1600000700,3",
    )
    config = CustomConfig(
        name="shop", files=[faulty], columns={"user": "user", "item": "item", "timestamp": "when", "rating": "stars"}
    )
    with pytest.raises(MalformedSourceError) as raised:
        Builder(config=config, data_dir=tmp_path / "data").download_and_prepare()
    message = str(raised.value)
    assert "shop.csv: 9 rows read, 3 kept, 6 rejected" in message
    for reason, line in {
        "not 4 fields": 3,
        "user is empty": 4,
        "item is empty": 5,
        "when is neither a whole number nor ISO 8601": 6,
        "stars is not a number": 7,
        "quotes do not pair up within 131,072 characters": 8,
    }.items():
        assert message.count(f"  {reason}: 1\n    shop.csv line {line}: ") == 1
    assert not list((tmp_path / "data").rglob("*.array_record*"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("1,2", "not 4 fields"),
        ("1,2,3,4,5", "not 4 fields"),
        (" ,2,3,4", "u is empty"),
        ('1,"",3,4', "i is empty"),
        ("1,2,,4", "t is empty"),
        ("1,2,noon,4", "t is neither"),
        ("1,2,2019-13-01,4", "t is neither"),
        ("1,2,2019-03-04T25:00,4", "t is neither"),
        ("1,2,1.5,4", "t is neither"),
        ("1,2,1e9,4", "t is neither"),
        ("1,2,-1,4", "t is not from 1970 to 2100 (whole numbers are read as timestamp_unit=s)"),
        ("1,2,1600000000000,4", "t is not from 1970 to 2100 (whole numbers are read as timestamp_unit=s)"),
        ("1,2,999999999999999999,4", "t is not from 1970 to 2100"),
        ("1,2,9999999999999999999,4", "t is neither"),
        ("1,2,1969-12-31,4", "t is not from 1970 to 2100"),
        ("1,2,3,", "r is not a number"),
        ("1,2,3,nan", "r is not a number"),
        ("1,2,3,1e999", "r is not a number"),
        ("1,2,3,0x1", "r is not a number"),
        ('1,2,3,"4', "quotes do not pair up"),
        ('1,2,3,"4"x', "quotes do not pair up"),
        (b"1,\xff,3,4", "not utf-8"),
    ],
)
def test_malformed_row_is_named_with_its_line_and_costs_no_other(tmp_path, row, reason):
    path = tmp_path / "events.csv"
    row = row if isinstance(row, bytes) else row.encode()
    path.write_bytes(b'u,i,t,r\n1,"2\n2",3,4\n\n' + row + b"\n5,6,7,4\n")
    events, _, report = _load(CustomConfig("x", files=[path], columns={**COLUMNS, "rating": "r"}), tmp_path)
    assert events == [(1, "2\n2", 1, 3, ""), (5, "6", 1, 7, "")]
    assert "events.csv: 3 rows read, 2 kept, 1 rejected" in report.text()
    assert f"\n  {reason}" in report.text()
    assert "events.csv line 5: " in report.text()


@pytest.mark.parametrize(
    ("text", "unit", "seconds"),
    [
        ("1600000000", "s", 1_600_000_000),
        ("1600000000.0", "s", 1_600_000_000),
        ("1600000000999", "ms", 1_600_000_000),
        ("2020-09-13", "s", 1_599_955_200),
        ("2020-09-13T12:26:40Z", "ms", 1_600_000_000),
        ("2020-09-13 12:26:40.999", "s", 1_600_000_000),
        ("2020-09-13T14:26:40+02:00", "s", 1_600_000_000),
        ("2020-09-13 12:26:40 UTC", "s", 1_600_000_000),
    ],
)
def test_timestamps(tmp_path, text, unit, seconds):
    path = _csv(tmp_path / "events.csv", "u,i,t", f"1,2,{text}")
    events, _, _ = _load(CustomConfig("x", files=[path], columns=COLUMNS, timestamp_unit=unit), tmp_path)
    assert events == [(1, "2", 0, seconds, "")]


def test_order_within_a_second_is_the_finer_time_and_then_the_rows(tmp_path):
    day = "16000000"
    first = _csv(tmp_path / "b.csv", "u,i,t", f"1,c,{day}05900", f"1,a,{day}05100", f"1,d,{day}05900")
    second = _csv(tmp_path / "a.csv", "u,i,t", f"1,e,{day}05900", f"1,b,{day}05100", f"1,z,{day}04999")
    config = CustomConfig("x", files=[first, second], columns=COLUMNS, timestamp_unit="ms")
    events, _, _ = _load(config, tmp_path)
    assert [item for _, item, *_ in events] == ["z", "a", "b", "c", "d", "e"]


def test_ids_sort_as_numbers_only_where_all_are(tmp_path):
    def order(*users):
        rows = [f"{user},{user},{n}" for n, user in enumerate(users)]
        config = CustomConfig("x", files=[_csv(tmp_path / "ids.csv", "u,i,t", *rows)], columns=COLUMNS)
        events, metadata, _ = _load(config, tmp_path)
        assert [item for _, item, *_ in events] == metadata["raw_ids"][1:] == [str(event[0]) for event in events]
        return [event[0] for event in events]

    assert order(10, 9, -1) == [-1, 9, 10]
    assert order("10", "9", "x") == ["10", "9", "x"]
    assert order("7", "007") == ["007", "7"]  # two users, not one
    assert order("é", "z", "A") == ["A", "z", "é"]


def test_ratings_are_classes_in_ascending_order(tmp_path):
    def ratings(*texts):
        rows = [f"1,2,{n},{text}" for n, text in enumerate(texts)]
        config = CustomConfig(
            "x", files=[_csv(tmp_path / "r.csv", "u,i,t,r", *rows)], columns={**COLUMNS, "rating": "r"}
        )
        events, metadata, _ = _load(config, tmp_path)
        return [event[2] for event in events], metadata["rating_names"]

    assert ratings("5.0", "1", "3e0", "5") == ([3, 1, 2, 3], ["", "1", "3", "5"])
    assert ratings("-.5", "10", "2.50") == ([1, 3, 2], ["", "-0.5", "2.5", "10.0"])
    assert ratings(*range(100))[0] == list(range(1, 101))
    with pytest.raises(MalformedSourceError, match="more than 100 different ratings"):
        ratings(*range(101))


def test_without_ratings_titles_and_categories(tmp_path):
    config = CustomConfig("x", files=[_csv(tmp_path / "e.csv", "t,u,i", "3,ann,b", "4,ann,a")], columns=COLUMNS)
    events, metadata, report = _load(config, tmp_path)
    assert events == [("ann", "b", 0, 3, ""), ("ann", "a", 0, 4, "")]
    assert metadata["titles"] == metadata["raw_ids"] == ["", "a", "b"]
    assert metadata["category_names"] == [""]
    assert metadata["item_categories"] == [[], [], []]
    assert metadata["rating_names"] == [""]
    assert _rules(report) == {"e.csv": {}}


def test_items_described_by_events_keep_their_first_title_and_category(tmp_path):
    columns = {**COLUMNS, "title": "name", "category": "kind"}
    files = [
        _csv(tmp_path / "1.csv", "u;i;t;name;kind", "1;a;9;;", '1;a;8;"Tea,\n green";hot>leaf>hot', "2;b;1;;"),
        _csv(tmp_path / "2.csv", "u;i;t;name;kind", "1;a;7;Coffee; leaf > hot", "1;c;2;Mug;> cup >", "1;a;3;;leaf"),
    ]
    _, metadata, report = _load(CustomConfig("x", files=files, columns=columns, category_separator=">"), tmp_path)
    assert metadata["titles"] == ["", "Tea, green", "b", "Mug"]
    assert metadata["category_names"] == ["", "(no category)", "cup", "hot", "leaf"]
    assert metadata["item_categories"] == [[], [3, 4], [1], [2]]
    assert _rules(report) == {
        "1.csv": {
            "no title for the item: its id stands for it": 1,
            "no category for the item: it is in (no category)": 1,
        },
        "2.csv": {
            "another title than the item's first, which stays": 1,
            "another category than the item's first, which stays": 2,
        },
    }


def test_files_of_items_come_first_and_repeated_items_count(tmp_path):
    events = _csv(tmp_path / "e.csv", "u,i,t", "1,2,1", "1,30,2", "1,4,3", "1,30,4")
    items = _csv(tmp_path / "i.csv", "i,name", "9,Nine", "2,", "9,Other", ",Nobody", "1,One")
    config = CustomConfig(
        "x", files=[events], columns=COLUMNS, items=[items], item_columns={"item": "i", "title": "name"}
    )
    _, metadata, report = _load(config, tmp_path)
    assert metadata["raw_ids"] == ["", "9", "2", "1", "4", "30"]
    assert metadata["titles"] == ["", "Nine", "2", "One", "4", "30"]
    assert _rules(report) == {
        "e.csv": {"the item is in no file of items: it comes after those that are": 3},
        "i.csv": {"an item of an earlier row": 1, "no title for the item: its id stands for it": 1},
    }
    assert report.as_dict()["i.csv"]["kept"] == 3
    assert "  i is empty: 1\n    i.csv line 5: " in report.text()


def _random_table(rng: np.random.Generator, rows: int) -> list[list[str]]:
    pieces = ["a", "é", "漢", '"', '""', ",", ";", "\n", "\r\n", "\t", " ", "|", "'", "7"]
    return [["".join(rng.choice(pieces, size=rng.integers(1, 6))) for _ in range(3)] for _ in range(rows)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_csv_is_read_as_pythons_csv_module_writes_it(tmp_path, monkeypatch, delimiter, ends):
    monkeypatch.setattr(csv_rows, "_BATCH_RECORDS", 7)
    table = _random_table(np.random.default_rng(0), 100)
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=ends)
    writer.writerow(["u", "note", "i"])
    lines = []
    for row in table:
        lines.append(1 + sum(map(len, [text.getvalue().splitlines()])))
        writer.writerow(row)
    path = tmp_path / "table.csv.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.getvalue().encode()))
    report = RowReport()
    reader = csv_rows.CsvRows("table.csv.gz", path, {"item": "i", "user": "u"}, report)
    read = pa.Table.from_batches(reader.batches(), reader.schema)
    reader.finish()
    assert read.column("user").to_pylist() == [row[0] for row in table]
    assert read.column("item").to_pylist() == [row[2] for row in table]
    assert read.column("line").to_pylist() == lines
    assert report.rows == {"table.csv.gz": 100}


def test_open_quote_costs_its_own_line_and_no_other(tmp_path):
    path = _csv(tmp_path / "e.csv", "u,i,t", '1,"2,3', "4,5,6", '7,"8', '",9', '1,"x,2', "3,3,3", "4,4,4")
    report = RowReport()
    reader = csv_rows.CsvRows("e.csv", path, {"item": "i"}, report)
    read = pa.Table.from_batches(reader.batches(), reader.schema)
    assert read.to_pydict() == {"line": [3, 4, 7, 8], "item": ["5", "8\n", "3", "4"]}
    assert report.as_dict()["e.csv"]["rejected"] == {
        "quotes do not pair up within 131,072 characters": {
            "rows": 2,
            "first": ["line 2: '1,\"2,3'", "line 6: '1,\"x,2'"],
        }
    }


def test_parquet_json_and_csv_of_the_same_rows_are_the_same(tmp_path):
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "u": rng.integers(1, 9, 50),
            "i": [f"item {n}" for n in rng.integers(20, size=50)],
            "t": pa.array(1_500_000_000_123 + rng.integers(10**9, size=50), pa.timestamp("ms", "Europe/Paris")),
            "r": rng.integers(1, 6, 50).astype(np.float32),
            "kind": [[f"k{n}" for n in rng.integers(4, size=size)] for size in rng.integers(3, size=50)],
        }
    )
    rows = [{**row, "t": row["t"].astimezone(datetime.UTC).isoformat()} for row in table.to_pylist()]
    pq.write_table(table, tmp_path / "e.parquet", row_group_size=7)
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    with (tmp_path / "e.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, table.column_names)
        writer.writeheader()
        writer.writerows({**row, "kind": "|".join(row["kind"])} for row in rows)
    columns = {**COLUMNS, "rating": "r", "category": "kind"}
    built = [
        _load(CustomConfig("x", files=[tmp_path / name], columns=columns), tmp_path)[:2]
        for name in ("e.parquet", "e.jsonl.gz", "e.csv")
    ]
    assert len(built[0][0]) == 50
    assert built[1] == built[0]
    assert built[2] == built[0]


def test_json_lines_are_read_as_they_are_written(tmp_path):
    rows = [
        '{"u": 7, "i": "a", "t": 5, "name": "[1] A", "kind": "x|y"}',
        '{"t": "6", "i": 12, "u": "seven", "kind": ["y", null, " z "], "other": {"u": 1}}',
        '{"u": 7, "i": "b", "t": null}',
        "{",
        '{"u": 7, "i": "c"}',
    ]
    config = CustomConfig(
        "x", files=[_csv(tmp_path / "e.json", *rows)], columns={**COLUMNS, "title": "name", "category": "kind"}
    )
    events, metadata, report = _load(config, tmp_path)
    assert events == [("7", "a", 0, 5, ""), ("seven", "12", 0, 6, "")]
    assert metadata["titles"] == ["", "12", "[1] A"]
    assert metadata["category_names"] == ["", "x", "y", "z"]
    assert metadata["item_categories"] == [[], [2, 3], [1, 2]]
    assert "e.json: 5 rows read, 2 kept, 3 rejected" in report.text()
    assert "not JSON: 1\n    e.json line 4: " in report.text()
    assert "t is empty: 2\n    e.json line 3: u=7, i=b, t=\n    e.json line 5: " in report.text()


def test_faults_of_parquet_are_named_with_their_row(tmp_path):
    table = pa.table({"u": ["ann", None, "bob"], "i": [1, 2, None], "t": [5, 6, 7]})
    pq.write_table(table, tmp_path / "e.parquet")
    events, _, report = _load(CustomConfig("x", files=[tmp_path / "e.parquet"], columns=COLUMNS), tmp_path)
    assert events == [("ann", "1", 0, 5, "")]
    assert "u is empty: 1\n    e.parquet line 2: u=, i=2, t=6" in report.text()
    assert "i is empty: 1\n    e.parquet line 3: u=bob, i=, t=7" in report.text()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("e.csv", b"", r"e\.csv line 1: there are no columns"),
        ("e.csv", b"u,I,t\n1,2,3\n", r"e\.csv line 1: not exactly one column for item=i; .* are u, I, t\."),
        ("e.csv", b"u,i,t,i\n1,2,3,4\n", r"for item=i; .* are u, i, t, i\."),
        ("e.csv", "u,i,t\n1,2,3\n".encode("utf-16"), "is UTF-16: save it as UTF-8"),
        ("e.csv.gz", b"u,i,t\n1,2,3\n", "is no gzip file"),
        (
            "e.csv.gz",
            gzip.compress(np.random.default_rng(0).bytes(99).hex().encode(), mtime=0)[:-40],
            "is truncated or damaged",
        ),
        (
            "e.json",
            b'{"u": 1, "i": 2, "time": 3}\n[]',
            r"e\.json: not exactly one column for t.*=t; .* are u, i, time\.",
        ),
        ("e.json", b"", "e.json has no rows"),
        ("e.parquet", b"PAR1", "is truncated, damaged or no Parquet file"),
        ("e.xlsx", b"", r"of no known kind: expected a name that ends in \.csv"),
        ("e.csv", None, "does not exist"),
    ],
)
def test_unusable_file_stops_the_build(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(MalformedSourceError, match=message):
        _load(CustomConfig("x", files=[tmp_path / name], columns=COLUMNS), tmp_path)


def test_gzip_that_breaks_off_stops_the_build(tmp_path):
    rows = [f"{n % 9},{n * 7919 % 100},{n}" for n in range(20_000)]
    packed = gzip.compress("\n".join(["u,i,t", *rows]).encode())
    (tmp_path / "e.csv.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(MalformedSourceError, match=r"e\.csv\.gz is truncated or damaged after line [0-9,]+ "):
        _load(CustomConfig("x", files=[tmp_path / "e.csv.gz"], columns=COLUMNS), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "My Shop"}, r"a name is of a-z, 0-9 and _"),
        ({"name": "simulated"}, "not 'simulated'"),
        ({"columns": {"user": "u", "item": "i"}}, "columns lacks timestamp: expected user=<name of a column>"),
        ({"columns": {**COLUMNS, "price": "p"}}, "columns does not know price"),
        ({"columns": {**COLUMNS, "rating": "u"}}, "user and rating are both column 'u'; a column has one role"),
        ({"columns": {}}, "files and columns go together"),
        ({"files": ()}, "files and columns go together"),
        ({"items": ["i.csv"]}, "items and item_columns go together"),
        ({"files": (), "columns": {}, "items": ["i.csv"], "item_columns": {"item": "i"}}, "give files and columns too"),
        ({"items": ["i.csv"], "item_columns": {"title": "i"}}, "item_columns lacks item"),
        ({"items": ["i.csv"], "item_columns": {"item": "i", "rating": "r"}}, "does not know rating"),
        (
            {"columns": {**COLUMNS, "title": "n"}, "items": ["i.csv"], "item_columns": {"item": "i", "title": "n"}},
            "title: in columns and in item_columns",
        ),
        ({"files": ["a.csv", "./a.csv"]}, "given twice"),
        ({"timestamp_unit": "us"}, "timestamp_unit must be one of s, ms"),
        ({"category_separator": ""}, "category_separator must not be empty"),
    ],
)
def test_config_that_makes_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        CustomConfig(**{"name": "shop", "files": ["a.csv"], "columns": COLUMNS, **settings})


def test_files_of_one_name_are_told_apart(tmp_path):
    config = CustomConfig("x", files=[tmp_path / "2020" / "e.csv", tmp_path / "2021" / "e.csv"], columns=COLUMNS)
    assert list(config.named_files()) == ["2020/e.csv", "2021/e.csv"]


def test_built_dataset_is_read_by_its_name_and_never_from_other_data(tmp_path):
    path = _csv(tmp_path / "e.csv", "u,i,t", "1,2,3", "1,4,5")
    config = {"name": "shop", "files": [path], "columns": COLUMNS}
    with pytest.raises(ValueError, match=r"custom/shop is not in .*: build it first: user-llm build"):
        Builder(config="shop", data_dir=tmp_path / "data").download_and_prepare()
    Builder(config=CustomConfig(**config), data_dir=tmp_path / "data").download_and_prepare()
    Builder(config=CustomConfig(**config), data_dir=tmp_path / "data").download_and_prepare()  # the same: no objection
    named = Builder(config="shop", data_dir=tmp_path / "data")
    named.download_and_prepare()
    (example,) = examples(named)
    assert example["events"]["item"].tolist() == [1, 2]
    other = CustomConfig(**{**config, "columns": {**COLUMNS, "user": "i", "item": "u"}})
    with pytest.raises(ValueError, match="was built with"):
        Builder(config=other, data_dir=tmp_path / "data").download_and_prepare()
    _csv(path, "u,i,t", "1,2,3")
    with pytest.raises(ValueError, match=r"built from other data than .*e\.csv"):
        Builder(config=CustomConfig(**config), data_dir=tmp_path / "data").download_and_prepare()
    with pytest.raises(ValueError, match="leave raw_path out"):
        Builder(config="shop", data_dir=tmp_path / "data", raw_path=tmp_path)


def test_command_line_makes_the_config(tmp_path):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    files = ["--files", "a.csv", "b.csv", "--columns", "user=u", "item=the item", "timestamp=t=0"]
    items = ["--items", "i.csv", "--item_columns", "item=i", "title=n", "--category_separator=;", "--timestamp_unit=ms"]
    config = command.config_from_arguments("shop", parser.parse_args([*files, *items]))
    assert config.name == "shop"
    assert [Path(file) for file in (*config.files, *config.items)] == [Path("a.csv"), Path("b.csv"), Path("i.csv")]
    assert config.meaning() == {
        "columns": {"user": "u", "item": "the item", "timestamp": "t=0"},
        "item_columns": {"item": "i", "title": "n"},
        "category_separator": ";",
        "timestamp_unit": "ms",
    }
    assert command.given(parser.parse_args(files))
    assert not command.given(parser.parse_args([]))
    for words, message in ((["user"], "expected role=column"), (["user=u", "user=v"], "user is given twice")):
        with pytest.raises(ValueError, match=message):
            command.config_from_arguments("shop", parser.parse_args(["--files", "a.csv", "--columns", *words]))
