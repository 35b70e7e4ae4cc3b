"""A drill: processes that append to the same users and are killed at random moments, and what a store has then."""

import concurrent.futures
import json
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.user_models import made_up
from user_llm.store.user_store import UserStore

pytestmark = [pytest.mark.drill, pytest.mark.timeout(1800)]

ROUNDS, WRITERS, USERS, EVENTS = 6, 3, 20, 20  # of a round; events of a writer for each user
HISTORY = WRITERS * EVENTS  # nothing is dropped for being old
APPEND = 0.02  # seconds that one may take

_APPENDS = f"""
import json, pathlib, sys
from tests.user_models import made_up
from user_llm.store.user_store import UserStore
model = made_up(pathlib.Path(sys.argv[1]), {HISTORY})
with UserStore(model, sys.argv[2]) as store:
    for user, title in json.loads(sys.argv[3]):
        store.append(user, {{"item": title, "rating": 4.0}})
        print(flush=True)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return made_up(tmp_path_factory.mktemp("user_model"), HISTORY)


def appending(where, plan, folder):
    """A process that appends the events of a plan one by one, and says so after each."""
    folder.mkdir(exist_ok=True)
    asked = [sys.executable, "-c", _APPENDS, str(folder), str(where), json.dumps(plan)]
    return subprocess.Popen(asked, stdout=subprocess.PIPE)


def killed(writer, after, pause) -> int:
    """Kills a writer so many seconds after it has said so many events; how many it has said."""
    for _ in range(after):
        writer.stdout.readline()
    time.sleep(pause)
    writer.kill()
    more = writer.communicate()[0].count(b"\n")
    assert writer.returncode in (0, -9)
    return after + more


def test_writers_killed_at_random_moments_lose_nothing_that_they_have_said(model, where, tmp_path, moments):
    titles = list(dict.fromkeys(model.catalogue.titles[1:]))
    own = [titles[writer * EVENTS : (writer + 1) * EVENTS] for writer in range(WRITERS)]
    for number in range(ROUNDS):
        users = [f"{number}: {user}" for user in range(USERS)]
        plans = [[(user, title) for title in of_writer for user in users] for of_writer in own]
        writers = [appending(where, plan, tmp_path / f"writer_{index}") for index, plan in enumerate(plans)]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            killing = [
                pool.submit(killed, writer, moments.randrange(USERS, len(plan)), moments.uniform(0, APPEND))
                for writer, plan in zip(writers, plans, strict=True)
            ]
        with UserStore(model, where) as store:
            store.compact()
            kept = store.get_many(users)
        events = [[model.catalogue.titles[item] for item in items if item] for items in kept.items]
        for plan, of_writer, said in zip(plans, own, killing, strict=True):
            found = [[title for title in of_user if title in of_writer] for of_user in events]
            written = sum(map(len, found))
            assert written - said.result() in (0, 1)  # the one that it could not say any more
            assert found == [[title for name, title in plan[:written] if name == user] for user in users]
        made = model.encode([[{"item": title, "rating": 4.0} for title in of_user] for of_user in events])
        np.testing.assert_allclose(kept.embeddings, made.embeddings, atol=1e-5)
        for name in ("items", "mask", "encoder", "catalogue"):
            np.testing.assert_array_equal(getattr(kept, name), getattr(made, name), err_msg=name)
