"""Faults in released files, and in how they are given: refused or counted in words."""

import contextlib
import gzip
import io
import json
import os
import socket
import struct
import threading
import time
import zipfile
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from tests.faults.harness import build
from user_llm.builders import download

MOVIES = b"movieId,title,genres\n10,Heat (1995),Action|Crime\n20,Emma (1996),Comedy\n"
RATINGS = b"userId,movieId,rating,timestamp\n1,10,4.0,1000000000\n1,20,3.5,1000000001\n2,10,5.0,1000000002\n"
SMALL = "movielens/latest_small"
BUILT = "2 users, 3 events, 2 items"


def release(folder: Path, movies: bytes = MOVIES, ratings: bytes = RATINGS) -> Path:
    folder.mkdir()
    (folder / "movies.csv").write_bytes(movies)
    (folder / "ratings.csv").write_bytes(ratings)
    return folder


def assert_nothing_left(data_dir: Path) -> None:
    """But the lock, for which another process may be waiting."""
    assert not {path.name for path in data_dir.rglob("*") if path.is_file()} - {".lock", ".owner.json"}
    assert not (data_dir / "downloads").exists()


# Fault, by its id in the report where it has one → the files, status, what is said.
ROWS = {
    "g1_trunc_last_row": (
        {"ratings": RATINGS[:-6]},
        1,
        "ratings.csv line 4",
        "the last row has no line end, so it may",
    ),
    "a cut title": ({"movies": MOVIES[:-3]}, 1, "movies.csv line 3", "the last row has no line end, so it may be cut"),
    "g1_row_uneg": ({"ratings": RATINGS + b"-1,10,4.0,1000\n"}, 1, "line 5", "userId is not a whole number"),
    "g1_title_ctrl": (
        {"movies": MOVIES.replace(b"Heat", b"\x1b[31mHeat")},
        1,
        "line 2",
        "a control char",
        "\\x1b[31mHeat",
    ),
    "g1_title_nul": (
        {"movies": MOVIES.replace(b"Heat", b"He\0at")},
        1,
        "line 2",
        "a control character in title or genre",
    ),
    "UTF-16": ({"movies": MOVIES.decode().encode("utf-16")}, 1, "movies.csv is UTF-16: save it as UTF-8"),
    "gzip under another name": ({"ratings": gzip.compress(RATINGS)}, 1, "ratings.csv is a gzip file"),
    "good: byte order marks, \\r\\n": (
        {"movies": b"\xef\xbb\xbf" + MOVIES.replace(b"\n", b"\r\n"), "ratings": b"\xef\xbb\xbf" + RATINGS},
        *(0, BUILT),
    ),
}


@pytest.mark.parametrize("fault", ROWS)
def test_released_rows(fault, tmp_path):
    files, status, *words = ROWS[fault]
    arguments = [f"--raw_path={release(tmp_path / 'raw', **files)}", f"--data_dir={tmp_path / 'data'}"]
    build(SMALL, *arguments, folder=tmp_path).check(status, *words)
    if status:
        assert_nothing_left(tmp_path / "data")  # g1_rec_leftover


def packed(**how) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **how) as archive:
        archive.writestr("ml/movies.csv", MOVIES)
        archive.writestr("ml/ratings.csv", RATINGS)
    return file.getvalue()


def marked(offset: int, value: int) -> bytes:
    """The zip with another number, two bytes, in the heads of all members: local at `offset`, central 2 further."""
    content = bytearray(packed())
    for mark, place in ((b"PK\x03\x04", offset), (b"PK\x01\x02", offset + 2)):
        start = content.find(mark)
        while start >= 0:
            struct.pack_into("<H", content, start + place, value)
            start = content.find(mark, start + 1)
    return bytes(content)


PATHS = {
    "g1_zip_encrypted": (marked(6, 1), 1, "raw is encrypted: unpack it, and give the folder"),
    "g1_zip_method99": (marked(8, 99), 1, "raw is packed in a way that is not supported", "unpack it"),
    "g1_single_csv_as_raw": (
        RATINGS,
        1,
        "raw is no zip: expected a zip, or the folder that holds movies.csv, ratings.csv",
    ),
    "an empty file": (b"", 1, "raw is no zip"),
    "a cut zip": (packed()[:-30], 1, "raw is a truncated or damaged zip"),
    "good: a zip": (packed(), 0, BUILT),
    "good: a zip packed by another method": (packed(compression=zipfile.ZIP_LZMA), 0, BUILT),
    "g1_fifo": ("pipe", 1, "raw is neither a file nor a folder: expected a zip"),
    "a device": ("device", 1, "raw is neither a file nor a folder"),
    "an empty folder": ("folder", 1, "raw holds 0 files named movies.csv"),
    "nothing": (None, 1, "raw does not exist: give a zip or a folder"),
}


@pytest.mark.parametrize("fault", PATHS)
def test_raw_paths(fault, tmp_path):
    content, status, *words = PATHS[fault]
    path = tmp_path / "raw"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda path: path.symlink_to("/dev/zero")}.get(content, str)(
            path
        )
    arguments = [f"--raw_path={path}", f"--data_dir={tmp_path / 'data'}"]
    build(SMALL, *arguments, folder=tmp_path, timeout=20).check(status, *words)


ARGUMENTS = {
    "g1_rawpath_empty": ([SMALL, "--raw_path="], "raw_path is empty"),
    "a bucket as raw_path": ([SMALL, "--raw_path=gs://b/ml.zip"], "raw_path=gs://b/ml.zip: gs:// is an address"),
    "a bucket as data_dir": (
        [SMALL, "--data_dir=gs://b/data"],
        "data_dir=gs://b/data: gs:// is an address",
    ),
    "a file as data_dir": ([SMALL, "--data_dir=setup.py"], "data_dir setup.py is a file"),
    "a manual_dir that is not there": ([SMALL, "--manual_dir=nowhere"], "manual_dir 'nowhere' is no folder"),
    "an empty manual_dir": ([SMALL, "--manual_dir="], "manual_dir '' is no folder"),
    "g1_sim_seedneg": (["movielens/simulated", "--simulated", "seed=-1"], "seed must be a whole number from 0, got -1"),
    "mean_events that is no number": (["movielens/simulated", "--simulated", "mean_events=nan"], "mean_events=nan"),
    "g1a_opt_neg": (
        ["amazon_reviews/simulated", "--option", "category_level=-1"],
        "category_level must be a whole number",
    ),
}


@pytest.mark.parametrize("fault", ARGUMENTS)
def test_arguments(fault, tmp_path):
    arguments, *words = ARGUMENTS[fault]
    build(f"--data_dir={tmp_path / 'data'}", *arguments, folder=tmp_path).check(1, *words)
    assert not (tmp_path / "data").exists()


REVIEW = {"reviewerID": "u", "asin": "a", "overall": 5.0, "unixReviewTime": 1_400_000_000, "summary": "Nice"}
PRODUCT = {"asin": "a", "title": "Card", "category": ["Gifts"]}

AMAZON = {
    "g1a_listuser": ({"reviewerID": ["u"]}, {}, 1, "Gift_Cards_5.json.gz line 2", "reviewerID is not text or a whole"),
    "g1a_dictasin": ({"asin": {"a": 1}}, {}, 1, "line 2", "asin is not text or a whole number"),
    "g1a_summary_list": ({"summary": ["a", "b"]}, {}, 1, "line 2", "summary is not text or a number"),
    "g1a_summary_dict": ({"summary": {"a": 1}}, {}, 1, "line 2", "summary is not text or a number"),
    "a control character in an id": ({"asin": "a\0"}, {}, 1, "line 2", "a control character in reviewerID or asin"),
    "g1a_meta_titlelist": ({}, {"title": ["x"]}, 1, "meta_Gift_Cards.json.gz line 2", "title is not text or a number"),
    "categories of another kind": ({}, {"category": "Gifts"}, 1, "line 2", "category is not a list of text"),
    "a list in categories": ({}, {"category": [["Gifts"]]}, 1, "line 2", "category is not a list of text"),
    "good, but said: control characters in a title": (
        *({}, {"title": "A\x07B", "category": []}, 0),
        *("kept by rule, control characters in a title are taken as spaces: 1", "2 events"),
    ),
    "good: what may be missing": ({"summary": None}, {"title": None, "category": None}, 0, "2 users, 2 events"),
}


@pytest.mark.parametrize("fault", AMAZON)
def test_amazon_values(fault, tmp_path):
    review, product, status, *words = AMAZON[fault]
    rows = {
        "Gift_Cards_5.json.gz": [REVIEW, {**REVIEW, "reviewerID": "v", "asin": "b", **review}],
        "meta_Gift_Cards.json.gz": [PRODUCT, {**PRODUCT, "asin": "b", **product}],
    }
    (tmp_path / "raw").mkdir()
    for name, values in rows.items():
        (tmp_path / "raw" / name).write_bytes(gzip.compress("".join(f"{json.dumps(row)}\n" for row in values).encode()))
    arguments = ["amazon_reviews/gift_cards_2018", f"--raw_path={tmp_path / 'raw'}", f"--data_dir={tmp_path / 'data'}"]
    build(*arguments, folder=tmp_path).check(status, *words)


PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
DOWN = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


@contextlib.contextmanager
def answering(answer: bytes):
    """A server that gives every request the same answer; or none, where it is empty. Gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with contextlib.suppress(OSError):  # closed
                while answer:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(1 << 16)
                        connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def test_a_server_that_is_down_is_said_at_once(tmp_path):
    with answering(DOWN) as address:
        before = time.monotonic()
        env = dict.fromkeys(PROXIES, address)
        outcome = build(SMALL, f"--data_dir={tmp_path / 'data'}", folder=tmp_path, env=env, timeout=60)
    outcome.check(1, "ml-latest-small.zip cannot be fetched", "503", "Fetch it elsewhere and give raw_path")
    assert time.monotonic() - before < 20
    assert_nothing_left(tmp_path / "data")


def test_no_server_is_said_at_once(tmp_path):
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # and does not listen
        env = dict.fromkeys(PROXIES, f"http://127.0.0.1:{unheard.getsockname()[1]}")
        outcome = build(SMALL, f"--data_dir={tmp_path / 'data'}", folder=tmp_path, env=env, timeout=20)
    outcome.check(1, "ml-latest-small.zip cannot be fetched", "refused", "Fetch it elsewhere and give raw_path")


def test_a_server_that_keeps_silent_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_SECONDS_TO_ANSWER", 0.2)
    manager = tfds.download.DownloadManager(download_dir=tmp_path)
    with answering(b"") as address, pytest.raises(ConnectionError, match="timed out"):
        download.download(manager, f"{address}/ml.zip")


def test_what_is_fetched_asks_no_server(tmp_path):
    manager = tfds.download.DownloadManager(download_dir=tmp_path)
    with answering(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nmovie") as address:
        path = download.download(manager, f"{address}/ml.zip")
    assert path.read_text() == "movie"
    assert download.download(tfds.download.DownloadManager(download_dir=tmp_path), f"{address}/ml.zip") == path
