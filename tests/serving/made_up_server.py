"""A server of the made-up run: `python -m tests.serving.made_up_server FOLDER PORT [STORE]`, as `user-llm serve`."""

import sys
from pathlib import Path

from tests.serving import stand_ins
from tests.user_models import made_up

stand_ins.install()

from user_llm.serving.serve import logged, serve  # noqa: E402
from user_llm.serving.service import Service  # noqa: E402
from user_llm.serving.settings import Settings  # noqa: E402
from user_llm.store.user_store import UserStore  # noqa: E402

if __name__ == "__main__":
    logged()
    folder, port, *where = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    model = made_up(Path(folder))
    store = UserStore(model, where[0]) if where else None
    serve(Service("made_up", model, store, Settings(batch=8)), "127.0.0.1", int(port), None)
