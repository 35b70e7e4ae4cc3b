"""A made-up run, and where a store of it may be."""

import pytest

from tests.user_models import made_up
from user_llm.store.user_store import UserStore


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A run that nobody trained, whose predictions differ clearly."""
    return made_up(tmp_path_factory.mktemp("user_model"))


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
