"""A server of the made-up run: `python -m tests.serving.made_up_server FOLDER PORT [STORE [SETTINGS]]`."""

import json
import sys
from pathlib import Path

from tests.user_models import made_up
from user_llm.serving.serve import logged, serve
from user_llm.serving.service import Service
from user_llm.serving.settings import Settings
from user_llm.store.user_store import UserStore

if __name__ == "__main__":
    logged()
    folder, port, *more = sys.argv[1:]
    where, *settings = more or [None]
    Path(folder).mkdir(parents=True, exist_ok=True)
    model = made_up(Path(folder))
    store = UserStore(model, where) if where else None
    options = {"batch": 8, **json.loads(*settings or ["{}"])}
    serve(Service("made_up", model, store, Settings(**options)), "127.0.0.1", int(port), None)
