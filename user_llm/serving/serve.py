"""A finished run behind HTTP:

    user-llm serve --workdir=RUN [--store=STORE] [--host=127.0.0.1] [--port=8000]

Whoever may ask names the token of the environment variable USER_LLM_TOKEN; without one only this machine is answered.
"""

import argparse
import contextlib
import ipaddress
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import uvicorn

from user_llm.api import UserModel, load
from user_llm.errors import UserError, show
from user_llm.serving.app import create_app
from user_llm.serving.guard import Lines
from user_llm.serving.service import Service
from user_llm.serving.settings import Settings
from user_llm.store.user_store import UserStore
from user_llm.tasks.next_item import ANSWERS

TOKEN = "USER_LLM_TOKEN"


class Server(uvicorn.Server):
    """Ends by a signal as a command that has done its work, and tells the service first."""

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self._service = service

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """See uvicorn, which would let the signal kill the process in the end."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See uvicorn."""
        self._service.drain()
        super().handle_exit(sig, frame)


def serve(service: Service, host: str, port: int, token: str | None) -> None:
    """Serves until a signal ends it: what was accepted is answered.

    Raises:
      Exception: what the warm-up has raised.
    """
    settings = service.settings
    config = uvicorn.Config(
        create_app(service, token),
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=settings.connections,
        timeout_keep_alive=settings.idle_seconds,
        timeout_graceful_shutdown=int(settings.drain_seconds),
    )
    server = Server(config, service)

    def end() -> None:
        server.should_exit = True

    service.start(failed=end)
    server.run()
    if service.failed is not None:
        raise service.failed


def check_host(host: str, token: str | None) -> None:
    """Raises UserError where others than this machine could ask, and no token is wanted of them."""
    if token is None and not _is_loopback(host):
        raise UserError(f"--host={host} is heard by other machines: put a token into {TOKEN}, or serve on 127.0.0.1")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run(options: argparse.Namespace) -> None:
    """Loads what is named, and serves it.

    Raises:
      UserError: as `load` and `UserStore`; a host that others hear without a token.
    """
    token = os.environ.get(TOKEN) or None
    check_host(options.host, token)
    settings = Settings(**{name: getattr(options, name) for name in (*_OPTIONS, "answers")})
    folder = options.workdir.resolve()
    model = load(folder)
    where = options.store.removeprefix("lmdb:") if options.store else None
    with contextlib.ExitStack() as opened:
        store = opened.enter_context(UserStore(model, where)) if where else None
        service = Service(folder.name, model, store, settings, beside(folder))
        serve(service, options.host, options.port, token)


def beside(folder: Path) -> Callable[[str], UserModel]:
    """Loads a run of the folder that this one is in, by its name."""

    def load_named(name: str) -> UserModel:
        if not name or Path(name).name != name or name.startswith("."):
            raise UserError(f"run must be the name of a folder beside {folder.name}, got {name!r}.")
        return load(folder.parent / name)

    return load_named


_OPTIONS = {
    "k": "the most answers of a request",
    "batch": "the most users at once",
    "queue": "requests that may wait in a lane",
    "max_delay": "seconds that a request waits for others where nothing is computed",
    "timeout": "seconds that a request may wait before it is computed",
    "max_new_tokens": "of a text",
}
"""Settings that are flags, and what they are."""


def logged(level: int = logging.INFO) -> None:
    """Writes what the server says to stderr, a line of JSON each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    for name in ("user_llm", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status."""
    defaults = Settings()
    parser = argparse.ArgumentParser(prog="user-llm serve", description="Serves a finished run over HTTP.")
    parser.add_argument("--workdir", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--store", help="users that are kept: lmdb:FOLDER, or a server: redis://host:6379/0")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen at (8000)")
    for name, what in _OPTIONS.items():
        default = getattr(defaults, name)
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{what} ({default})")
    parser.add_argument("--answers", nargs="+", default=defaults.answers, help=f"of {', '.join(ANSWERS)} (all)")
    options = parser.parse_args(arguments)
    options.answers = tuple(options.answers)
    logged()
    try:
        run(options)
    except Exception as error:
        return show(error, doing=f"{options.workdir} is not served")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
