"""A made-up run, and a server of its own on a free port."""

import shutil
import socket
import subprocess
import time

import pytest

from tests.user_models import made_up
from user_llm.store.user_store import UserStore


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A run that nobody trained, whose predictions differ clearly."""
    return made_up(tmp_path_factory.mktemp("user_model"))


@pytest.fixture(scope="session")
def redis_address(tmp_path_factory):
    """The address of a Redis server, which ends with the tests."""
    if not (program := shutil.which("redis-server") or shutil.which("valkey-server")):
        pytest.skip("needs redis-server or valkey-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("redis")
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
    with subprocess.Popen([program, *options], stdout=subprocess.DEVNULL) as server:
        for _ in range(100):
            with socket.socket() as asked:
                if asked.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"redis://127.0.0.1:{port}"
        server.terminate()


@pytest.fixture(params=["lmdb", "redis"])
def where(request, tmp_path):
    """Where a store may be, empty."""
    if request.param == "lmdb":
        return tmp_path / "store"
    import redis

    address = request.getfixturevalue("redis_address") + "/0"
    redis.Redis.from_url(address).flushdb()
    return address


@pytest.fixture
def store(model, where):
    with UserStore(model, where) as opened:
        yield opened
