"""Every kind of damage is named with its file and line, counted, and stops the build unless it is allowed."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from user_llm.builders import lines as lines_lib
from user_llm.builders import rules, timelines
from user_llm.builders.malformed import MalformedSourceError, RowReport
from user_llm.builders.movielens import Builder
from user_llm.builders.movielens.catalogue import read_movies
from user_llm.builders.movielens.format import CSV, DAT
from user_llm.builders.movielens.rules import MovieLensRules

HEADER = b"userId,movieId,rating,timestamp\n"
GOOD = b"1,10,4.0,1000\n"
MOVIES_HEADER = b"movieId,title,genres\n"


def _load(tmp_path: Path, content: bytes, form=CSV) -> tuple[list[tuple], RowReport]:
    """Loads a ratings file over the movies 10 and 20; returns (user_id, item, rating, timestamp) and the report."""
    path = tmp_path / form.ratings_file
    path.write_bytes(content)
    report = RowReport()
    with timelines.open_database(tmp_path) as connection:
        rules.load(MovieLensRules(path, form, {"raw_ids": ["", "10", "20"]}), connection, report, max_malformed=1.0)
        events = connection.execute("SELECT user_id, item, rating, timestamp FROM events ORDER BY line").fetchall()
    return events, report


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"1,20,4.0", "not 4 fields: 1"),
        (b"1,20,4.0,1000,9", "not 4 fields: 1"),
        (b"1,20,4.0,1000,", "not 4 fields: 1"),
        (b"x,20,4.0,1000", "userId is not a whole number: 1"),
        (b"1.5,20,4.0,1000", "userId is not a whole number: 1"),
        (b"1,,4.0,1000", "movieId is not a whole number: 1"),
        (b"1,2e1,4.0,1000", "movieId is not a whole number: 1"),
        (b"1,20,good,1000", "rating is not a number: 1"),
        (b"1,20,,1000", "rating is not a number: 1"),
        (b"1,20,nan,1000", "rating is not a number: 1"),
        (b"1,20,inf,1000", "rating is not a number: 1"),
        (b"1,20,4.2,1000", "rating is not one of 0.5, 1.0"),
        (b"1,20,0.0,1000", "rating is not one of 0.5, 1.0"),
        (b"1,20,4.0,noon", "timestamp is not a whole number: 1"),
        (b"1,20,4.0,1000.5", "timestamp is not a whole number: 1"),
        (b"1,20,4.0,99999999999999999999", "timestamp is not a whole number: 1"),
        (b"1,20,4.0,-5", "timestamp is not in seconds from 1970 to 2100: 1"),
        (b"1,20,4.0,1500000000000", "timestamp is not in seconds from 1970 to 2100: 1"),
        (b"1,30,4.0,1000", "movieId is not in movies.csv: 1"),
        (b"1,\xe9\xff20,4.0,1000", "movieId is not a whole number: 1"),
        (b"1,20,4.\x000,1000", "rating is not a number: 1"),
        (b"-1,20,4.0,1000", "userId is not a whole number: 1"),
        (b"1,-20,4.0,1000", "movieId is not a whole number: 1"),
    ],
)
def test_malformed_rating_is_named_with_its_line(tmp_path, row, reason):
    events, report = _load(tmp_path, HEADER + GOOD + b"\n" + row + b"\r\n" + GOOD)
    assert events == [(1, 1, 8, 1000)] * 2
    assert "ratings.csv: 3 rows read, 2 kept, 1 rejected" in report.text()
    assert reason in report.text()
    assert "ratings.csv line 4: " in report.text()
    with pytest.raises(MalformedSourceError, match=r"ratings\.csv line 4: "):
        report.check(max_malformed=0.3)
    report.check(max_malformed=0.34)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"20,Two", "not 3 fields: 1"),
        (b"20,Two, really,Drama", "not 3 fields: 1"),
        (b'20,"Two,Drama', "quotes do not pair up: 1"),
        (b"twenty,Two,Drama", "movieId is not a whole number: 1"),
        (b"20,,Drama", "title is empty: 1"),
        (b"10,Two,Drama", "movieId repeated: 1"),
        (b"20,Caf\xe9,Drama", "not utf-8: 1"),
        (b"-20,Two,Drama", "movieId is not a whole number: 1"),
        (b"20,Two\x1b[31m,Drama", "a control character in title or genres: 1"),
        (b"20,Two,Dra\x00ma", "a control character in title or genres: 1"),
    ],
)
def test_malformed_movie_is_named_with_its_line(tmp_path, row, reason):
    path = tmp_path / "movies.csv"
    path.write_bytes(MOVIES_HEADER + b"10,One,Drama\n" + row + b"\n30,Three,\n")
    report = RowReport()
    movies = read_movies(path, CSV, report)
    assert movies.titles == ["", "One", "Three"]
    assert movies.genres == [[], ["Drama"], ["(no genres listed)"]]
    assert "movies.csv: 3 rows read, 2 kept, 1 rejected" in report.text()
    assert reason in report.text()
    assert "movies.csv line 3: " in report.text()


def test_utf8_in_a_latin1_file_is_caught(tmp_path):
    path = tmp_path / "movies.dat"
    path.write_bytes("10::Café::Drama\n".encode("latin-1") + "20::Café::Drama\n".encode())
    report = RowReport()
    assert read_movies(path, DAT, report).titles == ["", "Café"]
    assert "utf-8 where latin-1 is expected: 1\n    movies.dat line 2" in report.text()


def test_what_is_unusual_but_clear_is_read(tmp_path):
    mark = b"\xef\xbb\xbf"
    events, report = _load(
        tmp_path,
        mark + b"timestamp,note,rating,movieId,userId\r\n7,x,5,20,3\r\n\r\n8,,0.5,10,3\n\n9,y,4.50,10,4\n",
    )
    assert events == [(3, 2, 10, 7), (3, 1, 1, 8), (4, 1, 9, 9)]
    assert report.rejected("ratings.csv") == 0
    path = tmp_path / "movies.csv"
    path.write_bytes(mark + MOVIES_HEADER + b'7,"Comma, The ""Great"" (1999)",Drama|Drama|War\r\n\r\n')
    movies = read_movies(path, CSV, report)
    assert movies.titles == ["", 'Comma, The "Great" (1999)']
    assert movies.genres == [[], ["Drama", "War"]]


def test_line_numbers_hold_across_blocks_and_any_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(lines_lib, "_BLOCK_BYTES", 100)
    ends = [(b"\n", b"\r\n", b"\n\n", b"\r\n\r\n")[i] for i in np.random.default_rng(0).integers(4, size=500)]
    rows = [b"%d,10,4.0,%d" % (i, 1000 + i) if i % 50 else b"%d,?" % i for i in range(500)]
    content = HEADER + b"".join(row + end for row, end in zip(rows, ends, strict=True))
    events, report = _load(tmp_path, content.rstrip() + b"\n")
    assert events == [(i, 1, 8, 1000 + i) for i in range(500) if i % 50]
    lines = content.splitlines()
    expected = [f"line {lines.index(b'%d,?' % i) + 1}: '{i},?'" for i in range(0, 250, 50)]
    assert report.as_dict()["ratings.csv"]["rejected"]["not 4 fields"] == {"rows": 10, "first": expected}


def test_a_line_longer_than_a_block_is_one_malformed_row(tmp_path):
    events, report = _load(tmp_path, HEADER + GOOD + b"0" * (1 << 25) + b"\n" + GOOD)
    assert len(events) == 2
    assert report.rejected("ratings.csv") == 1
    assert len(report.text()) < 1000


def test_summary_quotes_a_few_rows_and_counts_all(tmp_path):
    _, report = _load(tmp_path, HEADER + b"broken\n" * 12 + GOOD)
    assert "not 4 fields: 12" in report.text()
    assert "ratings.csv line 6: 'broken'\n    … and 7 more" in report.text()
    assert "line 7" not in report.text()
    rejected = report.as_dict()["ratings.csv"]["rejected"]["not 4 fields"]
    assert rejected["rows"] == 12
    assert rejected["first"][0] == "line 2: 'broken'"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ratings.csv is empty"),
        (HEADER, "ratings.csv has no rows"),
        (b"userId,movieId,timestamp\n1,10,1000\n", "line 1: the header lacks column 'rating'"),
        (b"userId,movieId,rating,rating,timestamp\n1,10,4.0,4.0,1000\n", "line 1: the header repeats column 'rating'"),
        ((HEADER + GOOD).decode().encode("utf-16"), "ratings.csv is UTF-16"),
    ],
)
def test_unusable_ratings_file(tmp_path, content, message):
    with pytest.raises(MalformedSourceError, match=message):
        _load(tmp_path, content)


def _cut(path: Path, keep: float) -> None:
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


def _damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)


def _drop_movies(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ml/ratings.csv", HEADER + GOOD)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: _cut(path, 0.7), "truncated or damaged zip"),
        (_damage, "truncated or damaged zip"),
        (_drop_movies, "holds 0 files named movies.csv"),
        (lambda path: path.write_bytes(HEADER + GOOD), "is no zip: expected a zip, or the folder that holds movies"),
        (lambda path: path.unlink(), "does not exist"),
    ],
)
def test_unusable_zip(tmp_path, spoil, message):
    path = tmp_path / "ml.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ml/movies.csv", MOVIES_HEADER + b"10,One,Drama\n")
        rows = [f"{user},10,4.0,{user * 7919 % 10_007}\n".encode() for user in range(2000)]
        archive.writestr("ml/ratings.csv", HEADER + b"".join(rows))
    spoil(path)
    with pytest.raises(MalformedSourceError, match=message):
        Builder(config="latest_small", data_dir=tmp_path / "data", raw_path=path).download_and_prepare()
    _assert_no_dataset(tmp_path / "data")


def _assert_no_dataset(data_dir: Path) -> None:
    """Only the lock stays, as another process may wait for it."""
    assert not {path.name for path in data_dir.rglob("*") if path.is_file()} - {".lock", ".owner.json"}
    assert not (data_dir / "downloads").exists()


def test_failed_build_leaves_nothing_and_succeeds_when_repaired(tmp_path, write_release):
    bad = ["userId,movieId,rating,timestamp", "1,10,4.0,1000", "1,20,4.0", "1,99,4.0,1000"]
    movies = ["movieId,title,genres", "10,One,Drama", "20,Two"]
    folder = write_release(movies=movies, ratings=bad)
    builder = Builder(config="latest_small", data_dir=tmp_path / "data", raw_path=folder)
    with pytest.raises(MalformedSourceError) as raised:
        builder.download_and_prepare()
    for named in ("movies.csv line 3", "ratings.csv line 3", "ratings.csv line 4", "1 kept, 2 rejected"):
        assert named in str(raised.value)
    _assert_no_dataset(tmp_path / "data")
    folder = write_release(movies=movies[:2], ratings=bad[:2])
    Builder(config="latest_small", data_dir=tmp_path / "data", raw_path=folder).download_and_prepare()


def test_allowed_malformed_rows_are_left_out_said_and_recorded(tmp_path, write_release, caplog):
    bad = ["userId,movieId,rating,timestamp", "1,10,4.0,1000", "1,20,4.0", "1,99,4.0,1000", "2,20,1.5,900"]
    folder = write_release(ratings=bad)
    builder = Builder(config="latest_small", data_dir=tmp_path / "data", raw_path=folder, max_malformed=0.5)
    builder.download_and_prepare()
    assert "ratings.csv line 3: '1,20,4.0'" in caplog.text
    summary = builder.info.metadata["summary"]
    assert summary["events"] == 2
    assert summary["files"]["ratings.csv"] == {
        "read": 4,
        "kept": 2,
        "rejected": {
            "not 4 fields": {"rows": 1, "first": ["line 3: '1,20,4.0'"]},
            "movieId is not in movies.csv": {"rows": 1, "first": ["line 4: '1,99,4.0,1000'"]},
        },
        "rules": {},
    }


def test_nothing_left_to_build_from(tmp_path, write_release):
    ratings = ["userId,movieId,rating,timestamp", "1,99,4.0,1000"]
    folder = write_release(ratings=ratings)
    with pytest.raises(MalformedSourceError, match=r"more malformed rows than max_malformed=0\.99"):
        Builder(
            config="latest_small", data_dir=tmp_path / "data", raw_path=folder, max_malformed=0.99
        ).download_and_prepare()
    _assert_no_dataset(tmp_path / "data")
