"""A finished run behind HTTP:

    user-llm serve --workdir=RUN [--store=STORE] [--host=127.0.0.1] [--port=8000]

Whoever may ask names the token of the environment variable USER_LLM_TOKEN; without one only this machine is answered.
"""

import argparse
import ipaddress
import logging
import os
import sys
from pathlib import Path

import uvicorn

from user_llm.api import UserModel, load
from user_llm.errors import UserError, show
from user_llm.serving.app import create_app
from user_llm.serving.service import Service
from user_llm.serving.settings import Settings
from user_llm.store.user_store import UserStore

TOKEN = "USER_LLM_TOKEN"


class Server(uvicorn.Server):
    """Tells the service of the signal to end."""

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: object) -> None:
        """See uvicorn."""
        self._service.drain()
        super().handle_exit(sig, frame)  # type: ignore[arg-type]


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
    settings = Settings(k=options.k)
    model = load(options.workdir)
    where = options.store.removeprefix("lmdb:") if options.store else None
    store = UserStore(model, where) if where else None
    try:
        folder = options.workdir.resolve()
        serve(Service(folder.name, model, store, settings), options.host, options.port, token)
    finally:
        if store is not None:
            store.close()


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status."""
    defaults = Settings()
    parser = argparse.ArgumentParser(prog="user-llm serve", description="Serves a finished run over HTTP.")
    parser.add_argument("--workdir", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--store", help="users that are kept: lmdb:FOLDER, or a server: redis://host:6379/0")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen at (8000)")
    parser.add_argument("--k", type=int, default=defaults.k, help=f"the most answers of a request ({defaults.k})")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        run(options)
    except Exception as error:
        return show(error, doing=f"{options.workdir} is not served")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
