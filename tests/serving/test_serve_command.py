"""The command: what it refuses before it serves."""

import json
import logging
import sys

import pytest

from user_llm.errors import UserError
from user_llm.serving import serve
from user_llm.serving.service import Service
from user_llm.serving.settings import Settings


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.53"])
def test_this_machine_needs_no_token(host):
    serve.check_host(host, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.org", ""])
def test_whoever_may_ask_from_elsewhere_needs_one(host):
    with pytest.raises(UserError, match="put a token into USER_LLM_TOKEN"):
        serve.check_host(host, None)
    serve.check_host(host, "sesame")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "does not exist: name the --workdir of a finished run"),
        (["--host=0.0.0.0"], "put a token into USER_LLM_TOKEN"),
        (["--k=0"], "k must be a whole number from 1 to 100"),
        (["--answers", "beams", "best"], "answers must be some of beams"),
        (["--max_delay=-1"], "max_delay must be a number of seconds"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_line(flags, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("USER_LLM_TOKEN", raising=False)
    monkeypatch.setattr(serve, "logged", lambda: None)
    assert serve.main([f"--workdir={tmp_path / 'absent'}", *flags]) == 1
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1


def test_flags_are_settings_and_a_token_of_nothing_is_none(tmp_path, monkeypatch, model):
    served = []
    monkeypatch.setattr(serve, "logged", lambda: None)
    monkeypatch.setattr(serve, "load", lambda folder: model)
    monkeypatch.setattr(serve, "serve", lambda *given: served.append(given))
    monkeypatch.setenv("USER_LLM_TOKEN", "")
    flags = ["--k=3", "--batch=8", "--queue=5", "--max_delay=0", "--timeout=2.5", "--answers", "beams", "--port=1"]
    assert serve.main([f"--workdir={tmp_path / 'run'}", f"--store=lmdb:{tmp_path / 'users'}", *flags]) == 0
    ((service, host, port, token),) = served
    settings = service.settings
    assert (host, port, token) == ("127.0.0.1", 1, None)
    assert (settings.k, settings.batch, settings.queue, settings.max_delay, settings.timeout) == (3, 8, 5, 0.0, 2.5)
    assert settings.answers == ("beams",)
    assert (tmp_path / "users" / "data.mdb").exists()
    service.stop()


def test_limits_of_connections_are_uvicorns(monkeypatch, model):
    made = []
    monkeypatch.setattr(serve.Server, "run", lambda server: made.append(server.config))
    service = Service("made_up", model, None, Settings(connections=7, idle_seconds=8, drain_seconds=9.0))
    monkeypatch.setattr(service, "start", lambda failed: None)
    serve.serve(service, "127.0.0.1", 0, None)
    (config,) = made
    assert (config.limit_concurrency, config.timeout_keep_alive, config.timeout_graceful_shutdown) == (7, 8, 9)
    service.stop()


@pytest.mark.parametrize("name", ["..", "../run", "/run", "a/b", ".hidden", ""])
def test_another_run_is_a_folder_beside_this_one(name, tmp_path):
    with pytest.raises(UserError, match="name of a folder beside run"):
        serve.beside(tmp_path / "run")(name)
    with pytest.raises(FileNotFoundError):
        serve.beside(tmp_path / "run")("other")


def test_the_log_is_json_and_tells_where_an_error_was_but_not_what_it_says():
    try:
        raise ZeroDivisionError("secret")
    except ZeroDivisionError:
        record = logging.LogRecord("a", logging.ERROR, "b", 1, "failed\nhere: %s", ("x",), sys.exc_info())
    line = serve.Lines().format(record)
    assert "\n" not in line
    told = json.loads(line)
    assert (told["says"], told["level"], told["error"]) == ("failed\nhere: x", "error", "ZeroDivisionError")
    assert "secret" not in line
