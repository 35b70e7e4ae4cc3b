"""Ratings come out the same whether plain rows are parsed at once or all go the careful way."""

from pathlib import Path

import numpy as np
import pytest

from user_llm.builders import lines as lines_lib
from user_llm.builders import rules, timelines
from user_llm.builders.ahead import one_ahead
from user_llm.builders.malformed import MalformedSourceError, RowReport
from user_llm.builders.movielens.format import CSV, DAT, RATINGS_COLUMNS
from user_llm.builders.movielens.plain_rows import PLAIN_ROWS, PlainRows
from user_llm.builders.movielens.rules import MovieLensRules

RAW_IDS = ["", "10", "20", "7"]
NUMBERS = ["0", "007", "10", "20", "7", "30", "4102444800", "4102444801", "9" * 18, "9" * 19, "0" * 19, "-5", "1.5", ""]
NUMBERS += ["1e3", " 7", "7 ", "+7", "0x10", '"7"', "nan", "null", "٣", "7\r", "1_0", "7\0"]
RATINGS = ["4.0", "0.5", "4", "4.50", "5.0", "05.0", ".5", "6.0", "", "x", "nan", "3.", "1.0 ", "2,5"]
NOTES = ["", "a", "a,b", "a:b", "a::b", '"', '"a', "é", "\0", " "]


def load(folder: Path, form, content: bytes):
    path = folder / form.ratings_file
    path.write_bytes(content)
    report = RowReport()
    with timelines.open_database(folder) as connection:
        try:
            rules.load(MovieLensRules(path, form, {"raw_ids": RAW_IDS}), connection, report, max_malformed=1.0)
        except MalformedSourceError as error:
            return str(error)
        rows = connection.execute("SELECT line, user_id, item, rating, timestamp FROM events ORDER BY line").fetchall()
    (folder / "build.duckdb").unlink()
    return rows, report.as_dict()


def content_of(form, random: np.random.Generator, damage: float) -> bytes:
    columns = [*RATINGS_COLUMNS, "note", "more"][: 6 if form.has_header else 4]
    columns = random.permutation(columns).tolist() if form.has_header else columns
    text = form.delimiter.join(columns) + "\n" if form.has_header else ""
    for _ in range(300):
        row = {
            "userId": str(random.integers(1, 50)),
            "movieId": str(random.choice(RAW_IDS[1:])),
            "note": "x",
            "more": "",
        }
        row |= {"rating": str(random.choice(form.rating_names)), "timestamp": str(random.integers(2_000_000_000))}
        for column, values in {**dict.fromkeys(row, NUMBERS), "rating": RATINGS, "note": NOTES}.items():
            if random.random() < damage:
                row[column] = str(random.choice(values))
        fields = [row[column] for column in columns]
        if random.random() < damage / 2:
            fields = fields[: random.integers(len(fields))] if random.random() < 0.5 else [*fields, "1"]
        text += form.delimiter.join(fields) + str(random.choice(["\n", "\n", "\n", "\r\n", "\r\r\n", "\n\n"]))
    content = text.encode()
    return content if random.random() < 0.5 else content.rstrip(b"\r\n").replace("é".encode(), b"\xe9")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("form", [CSV, DAT])
def test_both_ways_agree(tmp_path, monkeypatch, form, seed):
    random = np.random.default_rng(seed)
    monkeypatch.setattr(lines_lib, "_BLOCK_BYTES", (200, 1 << 24)[seed % 2])
    content = content_of(form, random, damage=(0, 0.02, 0.3)[seed % 3])
    found = load(tmp_path, form, content)
    monkeypatch.setattr(PlainRows, "split", lambda self, lines: (PLAIN_ROWS.empty_table(), lines))
    assert load(tmp_path, form, content) == found
    assert len(found[0]) > 10


def test_published_spelling_is_plain(tmp_path):
    path = tmp_path / "ratings.csv"
    path.write_bytes(b"1,10,4.0,1000\n1,20,0.5,4102444800\r\n1,30,4.0,7\n1,7,4,7\n2,7,5.0,0\n")
    (lines,) = lines_lib.read_lines(path)
    rows, others = PlainRows(CSV, [0, 1, 2, 3], 4, RAW_IDS).split(lines)
    assert [tuple(row.values()) for row in rows.to_pylist()] == [
        (1, 1, 1, 8, 1000),
        (2, 1, 2, 1, 4102444800),
        (5, 2, 3, 10, 0),
    ]
    assert sorted(others["line"].to_pylist()) == [3, 4]


def test_one_ahead_keeps_the_order_and_raises_what_it_meets():
    assert list(one_ahead(iter(range(100)))) == list(range(100))

    def pieces():
        yield 1
        raise MalformedSourceError("damaged")

    found = one_ahead(pieces())
    assert next(found) == 1
    with pytest.raises(MalformedSourceError, match="damaged"):
        next(found)
