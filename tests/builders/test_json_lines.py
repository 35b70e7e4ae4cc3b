"""JSON lines as Python's json module reads them, and every line that is none named with its number."""

import contextlib
import gzip
import json

import numpy as np
import pytest

from user_llm.builders import lines, timelines
from user_llm.builders.json_lines import LIST, TEXT, load_json_lines
from user_llm.builders.malformed import MalformedSourceError, RowReport

FIELDS = {"user": TEXT, "stars": TEXT, "path": LIST}


def load(folder, path, report=None):
    with contextlib.closing(timelines.open_database(folder)) as connection:
        load_json_lines(connection, path, FIELDS, "rows", report or RowReport())
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
