"""Whatever stands in a file: it is read as plain Python reads it, or counted as malformed; nothing else is raised."""

import csv
import datetime
import io
import json
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from user_llm.builders import rules as rules_lib
from user_llm.builders import timelines
from user_llm.builders.custom import CustomConfig
from user_llm.builders.custom.events import load_interactions
from user_llm.builders.malformed import RowReport
from user_llm.builders.movielens.format import CSV as MOVIELENS
from user_llm.builders.movielens.rules import MovieLensRules
from user_llm.errors import UserError

FEW = settings(max_examples=8, deadline=None)
MANY = settings(max_examples=400, deadline=None)
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
SPACES = " \t\r\n"


def read(name: str, content: bytes, unit: str = "s") -> tuple[dict[int, tuple], RowReport] | None:
    """Line → (user, item, microseconds) of the good rows; None where the file is refused."""
    report = RowReport()
    with tempfile.TemporaryDirectory() as folder, timelines.open_database(Path(folder)) as connection:
        path = Path(folder) / name
        path.write_bytes(content)
        config = CustomConfig(
            "x", files=[path], columns={"user": "u", "item": "i", "timestamp": "t"}, timestamp_unit=unit
        )
        try:
            load_interactions(connection, config.named_files(), config, report)
        except UserError:
            return None
        rows = connection.execute(
            "SELECT line, user_id, item, micros FROM interactions WHERE reason IS NULL"
        ).fetchall()
    assert report.rows[name] == len(rows) + report.rejected(name)
    return {line: tuple(row) for line, *row in rows}, report


def micros(text: str, unit: str) -> int | None:
    """What a timestamp means, or None: by Python's own reading of ISO 8601."""
    text = text.strip(SPACES)
    if re.fullmatch(r"-?[0-9]{1,18}(\.0*)?", text):
        value = int(text.split(".")[0]) * (1_000_000 if unit == "s" else 1_000)
        in_seconds = unit == "ms" and 0 < value < timelines.END_OF_TIME * 1_000
        return None if in_seconds or not 0 <= value <= timelines.END_OF_TIME * 1_000_000 else value
    iso = r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z| UTC|[+-]\d\d(:?\d\d)?)?)?"
    if not re.fullmatch(iso, text, re.ASCII):
        return None
    offset = re.search(r"[T ].*([+-])(\d\d):?(\d\d)?$", text)
    if offset and (int(offset[2]) * 60 + int(offset[3] or 0) > 14 * 60 or int(offset[3] or 0) > 59):
        return None
    try:
        midnight = re.sub(r"(?<=[T ])24(?=:00(:00(\.0+)?)?(?![:\d]))", "00", text)  # of the next day
        time = datetime.datetime.fromisoformat(midnight.replace(" UTC", "Z")) + datetime.timedelta(midnight != text)
    except ValueError:
        return None
    since = (time if time.tzinfo else time.replace(tzinfo=datetime.UTC)) - datetime.datetime(
        1970, 1, 1, tzinfo=datetime.UTC
    )
    value = since // datetime.timedelta(microseconds=1)
    return value if 0 <= value <= timelines.END_OF_TIME * 1_000_000 else None


TIMES = st.builds(
    lambda time, separator, cut, fraction, space, offset: (
        time.strftime(f"%Y-%m-%d{separator}%H:%M:%S")[:cut]
        + (fraction if cut == 19 else "")
        + (space + offset if cut > 10 else "")
    ),
    st.datetimes(datetime.datetime(1960, 1, 1), datetime.datetime(2110, 1, 1)),
    st.sampled_from("T  "),
    st.sampled_from([10, 16, 19, 19]),
    st.sampled_from(["", ".5", ".123456", ".1234567", ".000001"]),
    st.sampled_from(["", "", " "]),
    st.from_regex(r"\A([+-][01][0-9](:?[0-6][0-9])?|Z|UTC|)\Z"),
)
NUMBERS = st.builds(
    lambda number, end: f"{number}{end}",
    st.one_of(st.integers(-10, 5 * 10**12), st.integers(10**9, 2 * 10**9), st.integers()),
    st.sampled_from(["", "", ".", ".0", ".5"]),
)
TIMESTAMPS = st.one_of(
    TIMES, NUMBERS, st.from_regex(r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}\Z"), st.text(max_size=9)
)
IDS = st.text(
    st.one_of(st.sampled_from("ab1é日 ,;'\"|\n\r\t\0\x1b"), st.characters(exclude_categories=["Cs"])), max_size=6
)


def is_id(text: str) -> bool:
    return text.strip(SPACES) != ""


def check_csv(rows: list[tuple[str, str, str]], unit: str, delimiter: str) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)  # else a lone \r is bare
    writer.writerow("uit")
    lines = []
    for row in rows:
        lines.append(1 + len(re.findall("\r\n|\r|\n", text.getvalue())))
        writer.writerow(row)
    found = read("x.csv", text.getvalue().encode(), unit)
    assert found is not None
    expected = {}
    for line, (user, item, time) in zip(lines, rows, strict=True):
        if is_id(user) and is_id(item) and not CONTROL.search(user + item) and micros(time, unit) is not None:
            expected[line] = user.strip(SPACES), item.strip(SPACES), micros(time, unit)
    assert found[0] == expected


CSV_ROWS = st.lists(st.tuples(IDS, IDS, TIMESTAMPS), max_size=30)
UNITS, DELIMITERS = st.sampled_from(["s", "ms"]), st.sampled_from(",;\t|")


@FEW
@given(CSV_ROWS, UNITS, DELIMITERS)
def test_csv(rows, unit, delimiter):
    check_csv(rows, unit, delimiter)


@pytest.mark.drill
@MANY
@given(CSV_ROWS, UNITS, DELIMITERS)
def test_csv_at_length(rows, unit, delimiter):
    check_csv(rows, unit, delimiter)


VALUES = st.one_of(
    *(IDS, TIMESTAMPS, st.integers(), st.integers(0, 2 * 10**9), st.floats(), st.floats(0, 100).map(round).map(float)),
    *(st.none(), st.booleans(), st.lists(st.integers(), max_size=2), st.dictionaries(IDS, st.integers(), max_size=2)),
)
OBJECTS = st.dictionaries(st.sampled_from("uitx"), VALUES, max_size=4)


def text_of(value: object, *, whole: bool) -> str | None:
    """A JSON value as text; None where it is none, or no whole number where it must be one."""
    if isinstance(value, str):
        return value.strip(SPACES)
    if type(value) is int:
        return str(value)
    if type(value) is float and value.is_integer() and 0 <= value < 1e15:
        return f"{value:.0f}" if whole else f"{value:.0f}.0"
    return None


def check_json(objects: list[dict]) -> None:
    found = read("x.jsonl", "".join(f"{json.dumps(row)}\n" for row in objects).encode())
    if found is None:
        return
    for line, row in enumerate(objects, start=1):
        user, item = (text_of(row.get(key), whole=True) for key in "ui")
        time = text_of(row.get("t"), whole=False)
        good = bool(user and item and time) and not CONTROL.search(user + item) and micros(time, "s") is not None
        if any(type(row.get(key)) is float and (row[key] <= 0 or row[key] >= 1e15) for key in "uit"):
            continue  # written in many ways
        assert found[0].get(line) == ((user, item, micros(time, "s")) if good else None)


@FEW
@given(st.lists(OBJECTS, max_size=30))
def test_json_lines(objects):
    check_json(objects)


@pytest.mark.drill
@MANY
@given(st.lists(OBJECTS, max_size=30))
def test_json_lines_at_length(objects):
    check_json(objects)


BYTES = st.tuples(
    st.sampled_from(["x.csv", "x.csv.gz", "x.jsonl", "x.jsonl.gz", "x.parquet"]),
    st.one_of(
        st.binary(max_size=60),
        st.lists(
            st.sampled_from([b"u,i,t\n", b"1,2,3", b'"', b"\n", b"\r", b"\0", b"\xff", b'{"u":1,"i":2,"t":3}', b"{"])
        ).map(lambda parts: b"u,i,t\n" + b"".join(parts)),
        st.lists(
            st.sampled_from([b'{"u":1,"i":2,"t":3}', b'"u":', b"\n", b"[", b"}", b"\xef\xbb\xbf", b"\xff", b" "])
        ).map(b"".join),
    ),
)


@settings(FEW, max_examples=40)
@given(BYTES)
def test_any_bytes(named):
    read(*named)  # raises nothing, and has counted all rows


@pytest.mark.drill
@settings(MANY, max_examples=1000)
@given(BYTES)
def test_any_bytes_at_length(named):
    read(*named)  # raises nothing, and has counted all rows


FIELDS = st.one_of(
    st.integers(-2, 40).map(str), st.sampled_from(["4.0", "0.5", "5", "x", "", "1e1", " 7", "+7", "\0", "nan", "1000"])
)


def check_movielens(rows: list[list[str]], ended: bool) -> None:
    report = RowReport()
    with tempfile.TemporaryDirectory() as folder, timelines.open_database(Path(folder)) as connection:
        path = Path(folder) / "ratings.csv"
        text = "userId,movieId,rating,timestamp\n" + "\n".join(",".join(row) for row in rows)
        path.write_text(text + "\n" * ended)
        rules_lib.load(MovieLensRules(path, MOVIELENS, {"raw_ids": ["", "10", "20"]}), connection, report, 1.0)
        found = connection.execute("SELECT line, user_id, item, rating, timestamp FROM events ORDER BY line").fetchall()
    expected = []
    for line, row in enumerate(rows, start=2):
        whole = len(row) == 4 and all(re.fullmatch("[0-9]{1,18}", row[place]) for place in (0, 1, 3))
        if whole and row[1] in ("10", "20") and (ended or line <= len(rows)):
            stars = [float(name) for name in MOVIELENS.rating_names]
            if row[2] not in ("", "x", "\0", "nan") and float(row[2]) in stars:
                expected.append(
                    (line, int(row[0]), ("10", "20").index(row[1]) + 1, stars.index(float(row[2])) + 1, int(row[3]))
                )
    assert found == expected
    assert report.rows["ratings.csv"] == len(found) + report.rejected("ratings.csv")


MOVIELENS_ROWS = st.lists(
    st.one_of(
        st.lists(FIELDS, min_size=2, max_size=5).filter(lambda row: row != [""]),
        st.tuples(FIELDS, st.sampled_from(["10", "20"]), st.sampled_from(["4.0", "0.5", "3"]), FIELDS).map(list),
    ),
    min_size=1,
    max_size=20,
)


@FEW
@given(MOVIELENS_ROWS, st.booleans())
def test_movielens(rows, ended):
    check_movielens(rows, ended)


@pytest.mark.drill
@MANY
@given(MOVIELENS_ROWS, st.booleans())
def test_movielens_at_length(rows, ended):
    check_movielens(rows, ended)
