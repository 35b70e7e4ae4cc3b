"""JSON lines as Python's json module reads them, and every line that is none named with its number."""

import contextlib
import gzip
import json

import numpy as np
import pytest

from user_llm.builders import lines, timelines
from user_llm.builders.json_lines import ID, LIST, TEXT, TEXT_OR_LIST, check_json_lines, read_json_lines
from user_llm.builders.malformed import MalformedSourceError, RowReport

FIELDS = {"user": TEXT, "stars": TEXT, "path": LIST}


def load_rows(connection, path, fields, report):
    """Creates `rows` from a whole file."""
    check_json_lines(path.name, read_json_lines(connection, path, fields, "rows", report, path.name), report)


def load(folder, path, report=None):
    with contextlib.closing(timelines.open_database(folder)) as connection:
        load_rows(connection, path, FIELDS, report or RowReport())
        return connection.execute("SELECT line, user, stars, path FROM rows ORDER BY line").fetchall()


@pytest.mark.parametrize("block", [40, 1 << 24])
@pytest.mark.parametrize("suffix", ["json", "json.gz"])
def test_rows_are_those_of_python(tmp_path, monkeypatch, block, suffix):
    monkeypatch.setattr(lines, "_BLOCK_BYTES", block)
    random = np.random.default_rng(0)
    rows = []
    for _ in range(200):
        row = {"user": "".join(random.choice(list('aé日"\\\n'), 4)), "stars": float(random.integers(1, 6))}
        row |= {"path": random.choice(["a", "b, c", ""], random.integers(0, 3)).tolist(), "more": {"x": [1]}}
        rows.append({key: None if random.random() < 0.1 else row[key] for key in row if random.random() < 0.9})
    text = "".join(json.dumps(row, ensure_ascii=bool(index % 2)) + "\n" for index, row in enumerate(rows))
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    report = RowReport()
    found = load(tmp_path, path, report)
    assert [line for line, *_ in found] == list(range(1, 201))
    for row, (_, user, stars, path_of) in zip(rows, found, strict=True):
        assert user == row.get("user")
        assert stars == (None if row.get("stars") is None else str(row["stars"]))
        assert path_of == row.get("path")
    assert report.rows == {path.name: 200}
    assert not report.rejected(path.name)


@pytest.mark.parametrize("block", [16, 1 << 24])
def test_lines_that_hold_no_object_are_named(tmp_path, monkeypatch, block):
    monkeypatch.setattr(lines, "_BLOCK_BYTES", block)
    path = tmp_path / "rows.json"
    good = b'{"user": "\xc3\xa9"}'
    broken = [b'{"user": "a"', b"[1]", b"7", b'{"user": "\xff\xfe"}', b"{'user': 'a'}"]
    path.write_bytes(b"\r\n".join([good, *broken, b"", good]))
    report = RowReport()
    assert [(line, user) for line, user, *_ in load(tmp_path, path, report)] == [(1, "é"), (8, "é")]
    rejected = report.as_dict()["rows.json"]["rejected"]
    assert {reason: row["rows"] for reason, row in rejected.items()} == {
        "not JSON": 2,
        "not a JSON object": 2,
        "not utf-8": 1,
    }
    assert rejected["not utf-8"]["first"] == ['line 5: {"user": "??"}']
    assert report.rows == {"rows.json": 7}


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_a_file_without_rows_is_refused(tmp_path, content):
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(MalformedSourceError, match=r"rows\.json has no rows"):
        load(tmp_path, path)


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_gzip_file_is_refused(tmp_path, damage):
    path = tmp_path / "rows.json.gz"
    whole = bytearray(gzip.compress(b'{"user": "a"}\n' * 1000))
    if damage == "flipped":
        whole[-6] ^= 255
    path.write_bytes(whole[:-9] if damage == "truncated" else whole)
    with pytest.raises(MalformedSourceError, match=r"rows\.json\.gz is truncated or damaged after line"):
        load(tmp_path, path)


# A value as JSON, and what it is as TEXT and as ID; False: of another kind.
VALUES = [
    ('"a"', "a", "a"),
    ("null", None, None),
    ("7", "7", "7"),
    ("-7", "-7", "-7"),
    ("7.0", "7.0", "7"),
    ('"7.0"', "7.0", "7.0"),
    ("7.5", "7.5", False),
    ('"7.5"', "7.5", "7.5"),
    ("1e-9", "1e-9", False),
    ('"1e-9"', "1e-9", "1e-9"),
    ("1e22", "1e22", False),
    ("12345678901234567.0", "12345678901234568.0", False),
    ("123456789012345678901", "123456789012345678901", "123456789012345678901"),
    ("NaN", "NaN", False),
    ('"NaN"', "NaN", "NaN"),
    ("-Infinity", "-Infinity", False),
    ("true", False, False),
    ('"true"', "true", "true"),
    ("false", False, False),
    ('"false"', "false", "false"),
    ("{}", False, False),
    ('{"text": 1, "id": 2}', False, False),
    ('"{}"', "{}", "{}"),
    ("[]", False, False),
    ('["a"]', False, False),
    ('"[a]"', "[a]", "[a]"),
    ('"true\\n"', "true\n", "true\n"),
    ('"7.5\\u0000"', "7.5\0", "7.5\0"),
    ('"\\u0041\\u65e5"', "A日", "A日"),
]


@pytest.mark.parametrize(("kind", "place"), [(TEXT, 1), (ID, 2)])
def test_text_is_told_from_what_looks_like_it(tmp_path, kind, place):
    random = np.random.default_rng(1)
    rows = [VALUES[index] for index in random.integers(len(VALUES), size=3000)]
    keys = np.where(random.random(len(rows)) < 0.1, "\\u0078", "x")  # an escape spells the same key
    path = tmp_path / "rows.json"
    path.write_text("".join(f'{{"{key}": {row[0]}}}\n' for key, row in zip(keys, rows, strict=True)), "utf-8")
    report = RowReport()
    with contextlib.closing(timelines.open_database(tmp_path)) as connection:
        load_rows(connection, path, {"x": kind}, report)
        found = connection.execute("SELECT line, x FROM rows ORDER BY line").fetchall()
    assert found == [(line, row[place]) for line, row in enumerate(rows, start=1) if row[place] is not False]
    (rejected,) = report.as_dict()[path.name]["rejected"].items()
    assert rejected[0] == f"x is not {kind.expected}"
    assert rejected[1]["rows"] == len(rows) - len(found)


@pytest.mark.parametrize(
    ("line", "is_good"),
    [
        ('{"x": 1, "x": 2}', False),
        ('{"x": null, "x": null}', False),
        ('{"x": 1, "\\u0078": 2, "y": 3}', False),
        ('{"x": 1, "other": 1, "other": 2}', True),
        ('{"x": null, "other": {"x": 1}}', True),
        ('{"x": 1, "X": 2}', True),
        ("{}", True),
    ],
)
def test_a_key_stands_once(tmp_path, line, is_good):
    path = tmp_path / "rows.json"
    path.write_text('{"x": 0}\n' + line + "\n")
    report = RowReport()
    with contextlib.closing(timelines.open_database(tmp_path)) as connection:
        load_rows(connection, path, {"x": TEXT, "y": TEXT_OR_LIST}, report)
        lines_found = connection.execute("SELECT line FROM rows ORDER BY line").fetchall()
    assert lines_found == ([(1,), (2,)] if is_good else [(1,)])
    assert list(report.as_dict()[path.name]["rejected"]) == ([] if is_good else ["a key stands twice"])


def test_lines_of_spaces_hold_no_row(tmp_path):
    path = tmp_path / "rows.json"
    path.write_bytes('\u3000 \n \r\n\r\r\n\u00a0\n\t\n{"user": "a"}\n   '.encode())
    report = RowReport()
    assert [line for line, *_ in load(tmp_path, path, report)] == [6]
    assert report.as_dict()["rows.json"]["rejected"]["not JSON"] == {"rows": 1, "first": ["line 5: \\t"]}
