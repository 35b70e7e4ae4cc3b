"""Faults in files of a user's own, one a build: refused or counted in words, and what only looks odd is read."""

import gzip
import io
import json
import os
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.faults.harness import build

CSV = b"user,item,ts\nann,tea,1600000000\nbob,mug,1600000100\n"
ROWS = [{"user": "ann", "item": "tea", "ts": 1_600_000_000}, {"user": "bob", "item": "mug", "ts": 1_600_000_100}]
BUILT = "2 users, 2 events, 2 items"
COLUMNS = ["--columns", "user=user", "item=item", "timestamp=ts"]


def lines(*changes: dict | str) -> bytes:
    """JSON lines: two good ones, and one for each change of the first, or as it is written."""
    rows = [change if isinstance(change, str) else json.dumps(ROWS[0] | change) for change in changes]
    return "\n".join([*map(json.dumps, ROWS), *rows, ""]).encode()


def parquet(**columns) -> bytes:
    """A file of two rows, with some columns changed."""
    file = io.BytesIO()
    pq.write_table(pa.table({key: [row[key] for row in ROWS] for key in ROWS[0]} | columns), file)
    return file.getvalue()


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("e.csv", content)
    return file.getvalue()


def csv(*rows: str) -> bytes:
    return CSV + "".join(f"{row}\n" for row in rows).encode()


# Fault, by its id in the report where it has one → file, its content, status, what is said.
FILES = {
    # JSON values of another type are malformed rows.
    "g2_js_listu": ("e.jsonl", lines({"user": ["a"]}), 1, "e.jsonl line 3", "user is not text or a whole number"),
    "g2_js_nested": ("e.jsonl", lines({"user": {"id": 1}}), 1, "line 3", "user is not text or a whole number"),
    "g2_js_boolu": ("e.jsonl", lines({"user": True}), 1, "line 3", "user is not text or a whole number"),
    "an item that is no whole number": ("e.jsonl", lines({"item": 1.5}), 1, "line 3", "item is not text or a whole"),
    "an id that floating point has rounded": ("e.jsonl", lines({"item": 1e20}), 1, "line 3", "item is not text or"),
    "a list as timestamp": ("e.jsonl", lines({"ts": [1]}), 1, "line 3", "ts is not text or a number"),
    "g2_js_dupkey": ("e.jsonl", lines('{"user": 1, "user": 2, "item": 3, "ts": 4}'), 1, "line 3", "a key stands twice"),
    "g2_js_nulchar": ("e.jsonl", lines({"item": "a\0b"}), 1, "line 3", "a control character in user, item"),
    "good: numbers as ids, more keys, null": (
        *("e.jsonl", lines({"user": 7, "item": 8.0, "more": [1], "ts": "1600000002"}), 0),
        *("3 users, 3 events",),
    ),
    "good: an id of 30 digits stays what it is": ("e.jsonl", lines({"user": 10**30}), 0, "3 users, 3 events"),
    # What is no file of JSON lines is named.
    "g2_js_bom, good: as a CSV's mark": ("e.jsonl", b"\xef\xbb\xbf" + lines(), 0, BUILT),
    "g2_js_wholearray": ("e.json", json.dumps(ROWS).encode(), 1, "e.json is a JSON array: expected one object a line"),
    "an array with an object a line": ("e.json", b"[\n" + lines() + b"]\n", 1, "e.json is a JSON array"),
    "g2_js_pretty": ("e.json", json.dumps(ROWS[0], indent=1).encode(), 1, "is a JSON object over several lines"),
    "a pretty array": ("e.json", json.dumps(ROWS, indent=1).encode(), 1, "e.json is a JSON array"),
    "no row that can be read": ("e.jsonl", b"user,item\n1,2\n", 1, "e.jsonl holds no row that can be read", "line 1"),
    # Parquet is read by its name, and by the types of its columns.
    "g2_pq_float_user, good: whole": ("e.parquet", parquet(user=[0.0, 7.0]), 0, BUILT),
    "floats that are no ids": (
        "e.parquet",
        parquet(user=[0.5, 7.0]),
        1,
        "e.parquet line 1: user=0.5",
        "a whole number",
    ),
    "nan as an id": ("e.parquet", parquet(user=[float("nan"), 7.0]), 1, "e.parquet line 1: user=nan"),
    "an infinite id": ("e.parquet", parquet(item=[1.0, float("inf")]), 1, "e.parquet line 2: item=inf"),
    "g2_pq_list_user": (
        "e.parquet",
        parquet(user=[["a"], ["b"]]),
        1,
        "column user, the user, is of list",
        "text or numb",
    ),
    "g2_pq_struct": ("e.parquet", parquet(item=[{"a": 1}, {"a": 2}]), 1, "column item, the item, is of struct"),
    "booleans as users": ("e.parquet", parquet(user=[True, False]), 1, "column user, the user, is of bool"),
    "g2_pq_notpq": ("e.parquet", CSV, 1, "e.parquet is truncated, damaged or no Parquet file: fetch or write it again"),
    "g2_pq_trunc": ("e.parquet", parquet()[:-20], 1, "e.parquet is truncated, damaged or no Parquet file"),
    "an empty Parquet file": ("e.parquet", b"", 1, "e.parquet is truncated, damaged or no Parquet file"),
    "pages that are damaged": (
        "e.parquet",
        parquet()[:4] + bytes(40) + parquet()[44:],
        1,
        "e.parquet is truncated, dam",
    ),
    "good: bytes and categories as text": (
        *("e.parquet", parquet(user=[b"ann", b"bob"], item=pa.array(["tea", "mug"]).dictionary_encode()), 0, BUILT),
    ),
    "bytes that are no text": (
        "e.parquet",
        parquet(user=[b"\xff", b"bob"]),
        1,
        "column user holds bytes that are no UTF-8",
    ),
    # What is no text is named for what it is.
    "g2_gz_named_csv": ("e.csv", gzip.compress(CSV), 1, "e.csv is a gzip file", "end in .gz"),
    "gzip in gzip": ("e.csv.gz", gzip.compress(gzip.compress(CSV)), 1, "e.csv.gz is a gzip file: unpack it once more"),
    "text named .gz": ("e.csv.gz", CSV, 1, "e.csv.gz is no gzip file"),
    "a cut gzip file": ("e.csv.gz", gzip.compress(CSV)[:-6], 1, "e.csv.gz is truncated or damaged after line"),
    "a zip": ("e.csv", zipped(CSV), 1, "e.csv is a zip: unpack it"),
    "zstd": ("e.jsonl", b"\x28\xb5\x2f\xfd\x24\0", 1, "e.jsonl is packed by zstd: unpack it"),
    "Parquet named .csv": ("e.csv", parquet(), 1, "e.csv is Parquet: let its name end in .parquet"),
    "UTF-16": ("e.csv", CSV.decode().encode("utf-16"), 1, "e.csv is UTF-16: save it as UTF-8"),
    "UTF-16 of JSON": ("e.jsonl", lines().decode().encode("utf-16"), 1, "is UTF-16"),
    # Values.
    "g2_nul": ("e.csv", csv("cy,a\0b,1600000002"), 1, "e.csv line 4", "a control character in user, item"),
    "an escape sequence as user": ("e.csv", csv("\x1b[31m,tea,1600000002"), 1, "e.csv line 4: user=\\x1b[31m"),
    "g2_ts_tz": ("e.csv", csv("cy,tea,2017-07-14T02:40:00+25:00"), 1, "line 4", "neither a whole number nor ISO 8601"),
    "an offset of 14:01": ("e.csv", csv("cy,tea,2017-07-14T02:40:00-14:01"), 1, "line 4", "nor ISO 8601"),
    "minutes of an offset": ("e.csv", csv("cy,tea,2017-07-14T02:40:00+02:60"), 1, "line 4", "nor ISO 8601"),
    "good: gzip, a byte order mark, a line break in quotes, the farthest offsets": (
        "e.csv.gz",
        gzip.compress(b"\xef\xbb\xbf" + csv('cy,"a\nb",2017-07-14T02:40+14:00', "cy,mug,2017-07-14T02:40-1359")),
        0,
        "3 users, 4 events, 3 items",
    ),
    "good, but said: the last row has no line end": (
        *(
            "e.csv",
            CSV[:-4],
            0,
            "the last row has no line end; it may be cut",
            "kept by rule, the last row has no line end",
        ),
    ),
    "a last row that is cut before its end": ("e.csv", CSV[:-12], 1, "e.csv line 3", "not 3 fields"),
    "a row without its last field": ("e.csv", CSV[:-11], 1, "e.csv line 3", "ts is empty"),
}


@pytest.mark.parametrize("fault", FILES)
def test_a_file_is_read_or_refused_in_words(fault, tmp_path):
    name, content, status, *words = FILES[fault]
    (tmp_path / name).write_bytes(content)
    arguments = ["custom/t", f"--data_dir={tmp_path / 'data'}", "--files", tmp_path / name, *COLUMNS]
    build(*arguments, folder=tmp_path).check(status, *words)
    assert not list((tmp_path / "data").rglob("incomplete*"))


ARGUMENTS = {
    "g2_same_col_twice": (
        ["--columns", "user=user", "item=user", "timestamp=ts"],
        1,
        "user and item are both column 'user'",
    ),
    "g2_ts_s_as_ms": ([*COLUMNS, "--timestamp_unit=ms"], 1, "line 2", "it is in seconds, not in timestamp_unit=ms"),
    "an unknown unit": ([*COLUMNS, "--timestamp_unit=us"], 2, "--timestamp_unit", "'s', 'ms'"),
    "g2_items_nomatch, said": (
        *([*COLUMNS, "--items", "OTHERS", "--item_columns", "item=id"], 0),
        *("None of the 2 items that files of items describe", "have 'x1'", "the events 'mug'"),
    ),
    "g2_items_empty, said": ([*COLUMNS, "--items", "NONE", "--item_columns", "item=id"], 0, "None of the 0 items"),
    "a control character in a title": (
        *([*COLUMNS, "--items", "CONTROL", "--item_columns", "item=id", "title=name"], 1),
        *("control.csv line 2: id=tea", "a control character in item, title or category"),
    ),
    "good: items that match": ([*COLUMNS, "--items", "GOOD", "--item_columns", "item=id", "title=name"], 0, BUILT),
    "names that ask for quotes": (
        ["--columns", "user=it's", 'item="i"', "timestamp=ts"],
        1,
        'user=it\'s, item="i"',
        "are user",
    ),
    "an empty data_dir": ([*COLUMNS, "--data_dir="], 1, "data_dir is empty"),
}
ITEMS = {
    "OTHERS": ("others.csv", b"id\nx1\nx2\n"),
    "NONE": ("none.csv", b"id\n"),
    "CONTROL": ("control.csv", b"id,name\ntea,Te\x07a\nmug,Mug\n"),
    "GOOD": ("good.csv", b"id,name\ntea,Tea\nmug,Mug\n"),
}


@pytest.mark.parametrize("fault", ARGUMENTS)
def test_arguments_are_taken_or_refused_in_words(fault, tmp_path):
    arguments, status, *words = ARGUMENTS[fault]
    (tmp_path / "e.csv").write_bytes(CSV)
    for name, content in ITEMS.values():
        (tmp_path / name).write_bytes(content)
    arguments = [tmp_path / ITEMS[word][0] if word in ITEMS else word for word in arguments]
    whole = ["custom/t", f"--data_dir={tmp_path / 'data'}", "--files", tmp_path / "e.csv", *arguments]
    build(*whole, folder=tmp_path).check(status, *words)


@pytest.mark.parametrize("name", ["b[1].parquet", "a*.parquet", "it's {a,b}?.parquet"])
def test_a_name_is_no_pattern(name, tmp_path):  # g2_glob_b1, g2_glob_star
    (tmp_path / name).write_bytes(parquet())
    for other in ("b1.parquet", "ax.parquet", "a.parquet", "b.parquet"):
        (tmp_path / other).write_bytes(parquet(user=["x", "y"], item=["one", "one"]))
    arguments = ["custom/t", f"--data_dir={tmp_path / 'data'}", "--files", tmp_path / name, *COLUMNS]
    build(*arguments, folder=tmp_path).check(0, f"{name}: 2 rows read, 2 kept", BUILT)


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "pipe") for name in ("e.csv", "e.jsonl", "e.parquet")]
    + [("e.csv", kind) for kind in ("folder", "device", "missing")],
)
def test_what_is_no_file_is_said(name, kind, tmp_path):
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    arguments = ["custom/t", f"--data_dir={tmp_path / 'data'}", "--files", path, *COLUMNS]
    build(*arguments, folder=tmp_path, timeout=20).check(1, f"{path} does not exist or is no file")
