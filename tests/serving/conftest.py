"""A made-up run, services of it, and who asks them."""

import contextlib
import copy
import time

import pytest
from starlette.testclient import TestClient

from tests.user_models import made_up
from user_llm.serving.app import create_app
from user_llm.serving.service import Service
from user_llm.serving.settings import Settings
from user_llm.store.user_store import UserStore


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A run that nobody trained, whose predictions differ clearly. What may be answered stays as it is."""
    return made_up(tmp_path_factory.mktemp("served"))


def anew(model, encoder=None):
    """The same run with items of its own to answer; as if other parameters had made its embeddings."""
    other = copy.copy(model)
    other.items = copy.copy(model.items)
    other.items._changes = type(model.items.state)()
    if encoder is not None:
        other.__dict__["fingerprints"] = encoder, model.fingerprints[1]
    return other


@pytest.fixture(scope="module")
def serving(model, tmp_path_factory):
    """Serves the run in this process: a context manager → its service, and a client."""

    @contextlib.contextmanager
    def start(*, store=None, token=None, load=None, ready=True, **settings):
        # The smallest sizes, and the two ways to answer that this run has: each is compiled.
        settings = Settings(**{"batch": 8, "answers": ("beams", "exact"), **settings})
        own = anew(model)
        with contextlib.ExitStack() as opened:
            kept = opened.enter_context(UserStore(own, store)) if store else None
            service = Service("made_up", own, kept, settings, load)
            client = TestClient(create_app(service, token), raise_server_exceptions=False)
            opened.enter_context(client)  # which ends the service, too
            if ready:
                service.start()
                wait_until(lambda: client.get("/readyz").status_code == 200)
            yield service, client

    return start


def wait_until(true, seconds=120.0):
    """Waits until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
