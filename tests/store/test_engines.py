"""Databases used by several processes, some of which are killed."""

import concurrent.futures
import os
import signal
import subprocess
import sys

import pytest

from user_llm.errors import UserError
from user_llm.locks import Busy
from user_llm.store.lmdb_engine import LMDBEngine
from user_llm.store.redis_engine import RedisEngine

_ADDS = """
import sys
from user_llm.store.{module} import {engine}
engine = {engine}(sys.argv[1])
for n in range(int(sys.argv[2])):
    while True:
        (old,) = engine.get_many([b"user"])
        if engine.replace(b"user", old, (old or b"") + sys.argv[3].encode()):
            break
    print(n, flush=True)
"""


def adding(where, count, letter):
    """A process that adds so many letters to a record, one by one, and says so after each."""
    names = ("redis_engine", "RedisEngine") if "://" in str(where) else ("lmdb_engine", "LMDBEngine")
    code = _ADDS.format(module=names[0], engine=names[1])
    return subprocess.Popen([sys.executable, "-c", code, str(where), str(count), letter], stdout=subprocess.PIPE)


def opened(where):
    return RedisEngine(where) if "://" in str(where) else LMDBEngine(where)


def test_writers_in_several_processes_lose_nothing(where):
    writers = [adding(where, 100, letter) for letter in "abc"]
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    (record,) = opened(where).get_many([b"user"])
    assert {letter: record.count(letter.encode()) for letter in "abc"} == dict.fromkeys("abc", 100)


def test_a_process_that_is_killed_loses_nothing_that_it_has_said(where):
    writer = adding(where, 10_000, "a")
    for _ in range(50):
        said = int(writer.stdout.readline())
    os.kill(writer.pid, signal.SIGKILL)
    said = int((writer.communicate()[0].split() or [said])[-1])
    (record,) = opened(where).get_many([b"user"])
    assert said + 1 <= len(record) <= said + 2


def test_names_are_all_there_is(where):
    engine = opened(where)
    wanted = [b"%d" % number for number in range(25_000)]
    engine.put_many((name, b"x") for name in wanted)
    assert sorted(set(engine.names())) == sorted(wanted)
    assert engine.count() == len(wanted)
    assert engine.get_many([b"7", b"none"]) == [b"x", None]
    assert engine.delete_many([b"7", b"none"]) == 1
    assert not engine.replace(b"8", b"y", b"z")
    assert not engine.replace(b"8", None, b"z")
    assert engine.replace(b"7", None, b"z")
    assert engine.get_many([b"7", b"8"]) == [b"z", b"x"]
    engine.close()


_COMPACTS = """
import sys
from user_llm.locks import Busy
from user_llm.store.lmdb_engine import LMDBEngine
engine = LMDBEngine(sys.argv[1])
for line in sys.stdin:
    try:
        engine.compact()
        print("done", flush=True)
    except Busy:
        print("busy", flush=True)
"""


def test_a_folder_that_others_have_open_is_not_compacted(tmp_path):
    engine = LMDBEngine(tmp_path)
    asked = [sys.executable, "-c", _COMPACTS, str(tmp_path)]
    with subprocess.Popen(asked, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:

        def elsewhere():
            print(file=other.stdin, flush=True)
            return other.stdout.readline().strip()

        for _ in range(2):  # who has failed still keeps the other from it
            assert elsewhere() == "busy"
            with pytest.raises(Busy, match="is open elsewhere"):
                engine.compact()
        other.stdin.close()
    engine.compact()  # alone
    engine.put_many([(b"a", b"b")])
    assert engine.get_many([b"a"]) == [b"b"]
    engine.close()


def test_what_other_threads_write_meanwhile_is_there_after_it_was_compacted(where):
    engine = opened(where)
    names = [b"%d" % number for number in range(400)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(engine.put_many, [(name, b"x")]) for name in names]
        for _ in range(5):
            engine.compact()
        for written in writing:
            written.result()
    assert engine.get_many(names) == [b"x"] * len(names)
    engine.close()


def test_what_is_no_store_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file: expected the folder of a store"):
        LMDBEngine(tmp_path / "file")
    with pytest.raises(UserError, match="holds file, so it is no store"):
        LMDBEngine(tmp_path)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "data.mdb").write_bytes(b"nothing of the kind" * 1000)
    with pytest.raises(UserError, match="cannot be opened as a store"):
        LMDBEngine(tmp_path / "damaged")
    with pytest.raises(UserError, match=r"redis://127\.0\.0\.1:1: .*(refused|connect)"):
        RedisEngine("redis://127.0.0.1:1")
    with pytest.raises(UserError, match="is no store: user-llm embed"):
        LMDBEngine(tmp_path / "nowhere", create=False)
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(UserError, match="nothing://here"):
        RedisEngine("nothing://here")
