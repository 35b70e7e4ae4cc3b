"""compose.yaml names files, ports, flags and variables that there are."""

import ast
import re
import shlex
from pathlib import Path

import jax
import pytest
import yaml

from user_llm.__main__ import COMMANDS
from user_llm.serving import serve
from user_llm.serving.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
SERVERS = {name: service for name, service in SERVICES.items() if service.get("build")}
CADDYFILE = (ROOT / "launch/serve/Caddyfile").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def interpolated(text, **environment):
    """As Compose fills in variables."""

    def value(found):
        name, kind, rest = found.groups()
        if name in environment or kind != ":?":
            return environment.get(name, rest or "")
        raise KeyError(name)

    return re.sub(r"\$\{(\w+)(?:(:-|:\?)([^}]*))?\}", value, text)


def mounts(service):
    """What is mounted, and where."""
    return [tuple(interpolated(volume).split(":")[:2]) for volume in service.get("volumes", [])]


def built_from():
    """What the Dockerfile copies."""
    return [name for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.M) for name in line.split()]


def test_there_are_two_servers_alike_a_balancer_and_a_database():
    assert {*SERVICES} == {"server-1", "server-2", "balancer", "valkey"}
    assert [*SERVERS] == ["server-1", "server-2"]
    assert SERVERS["server-1"] == SERVERS["server-2"]
    for name, service in SERVICES.items():
        assert {*service} <= {
            *("build", "image", "command", "environment", "volumes", "ports", "depends_on", "healthcheck"),
            *("stop_grace_period", "restart"),
        }
        for other, wanted in service.get("depends_on", {}).items():
            assert wanted == {"condition": "service_healthy"}, name
            assert "test" in SERVICES[other]["healthcheck"], f"{name} waits for {other}, which nobody looks after"


def test_every_file_and_volume_is_there():
    named = set()
    for service in SERVICES.values():
        for source, target in mounts(service):
            assert target.startswith("/")
            if source.startswith("./"):
                assert source == "./runs" or (ROOT / source).is_file()
            else:
                named.add(source)
    assert named == {*COMPOSE["volumes"]}
    assert all((ROOT / service["build"] / "Dockerfile").is_file() for service in SERVERS.values())
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert built_from()
    for name in built_from():
        assert (ROOT / name).exists()
        assert f"!{name}" in sent


def test_the_image_has_the_package_with_what_a_server_needs():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    (options,) = [node for node in ast.walk(ast.parse(setup)) if getattr(node, "arg", "") == "extras_require"]
    extras = [key.value for key in options.value.keys]
    (chosen,) = re.findall(r"pip install '\.\[(.+)\]'", DOCKERFILE)
    assert {*chosen.split(",")} <= {*extras}
    assert 'ENTRYPOINT ["user-llm"]' in DOCKERFILE
    assert '"user-llm = user_llm.__main__:cli"' in setup
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE", "user_llm", "configs"} == {*built_from()}
    # A volume that is new belongs to whom the folder in the image does.
    (user,) = re.findall(r"^USER (.+)$", DOCKERFILE, re.M)
    (cache,) = re.findall(rf"install --directory --owner={user} (\S+)", DOCKERFILE)
    assert ("compiled", cache) in mounts(SERVERS["server-1"])


def test_the_servers_are_started_with_flags_that_there_are(monkeypatch):
    started = []
    monkeypatch.setattr(serve, "run", started.append)
    monkeypatch.setattr(serve, "logged", lambda: None)
    for server in SERVERS.values():
        command, *flags = (interpolated(word) for word in server["command"])
        assert COMMANDS[command][0] == "user_llm.serving.serve"
        assert serve.main(flags) == 0
    for options in started:
        folders = {target for _, target in mounts(SERVERS["server-1"])}
        assert str(options.workdir.parent) in folders
        database, port = re.fullmatch(r"redis://([\w-]+):(\d+)/0", options.store).groups()
        assert (SERVICES[database]["command"][0], port) == ("valkey-server", "6379")
        serve.check_host(options.host, "a token")
        for name in SERVERS:
            assert f" {name}:{options.port} " in CADDYFILE
        probe = SERVERS["server-1"]["healthcheck"]["test"][-1]
        assert f"//127.0.0.1:{options.port}/readyz" in probe
        compile(probe, "healthcheck", "exec")


def test_variables_are_read_by_somebody():
    environment = SERVERS["server-1"]["environment"]
    assert {*environment} == {serve.TOKEN, "JAX_COMPILATION_CACHE_DIR"}
    assert hasattr(jax.config, "jax_compilation_cache_dir")
    with pytest.raises(KeyError, match="USER_LLM_TOKEN"):  # nothing starts without one
        interpolated(environment[serve.TOKEN])
    assert interpolated(environment[serve.TOKEN], USER_LLM_TOKEN="secret") == "secret"
    assert environment["JAX_COMPILATION_CACHE_DIR"] in [target for _, target in mounts(SERVERS["server-1"])]


def test_servers_end_after_what_they_accepted():
    settings = Settings()
    for server in SERVERS.values():
        assert int(server["stop_grace_period"].removesuffix("s")) > settings.drain_seconds


def test_the_balancer_asks_who_is_ready_and_is_heard_here_alone():
    (proxied,) = re.findall(r"reverse_proxy (.+) \{", CADDYFILE)
    assert [address.split(":")[0] for address in proxied.split()] == [*SERVERS]
    assert "health_uri /readyz" in CADDYFILE
    assert CADDYFILE.count("{") == CADDYFILE.count("}")
    (published,) = SERVICES["balancer"]["ports"]
    host, _, inside = published.split(":")
    assert host == "127.0.0.1"
    assert f"\n:{inside} {{\n" in CADDYFILE
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["balancer"]


def test_the_commands_that_the_file_tells_are_whole():
    lines = (ROOT / "compose.yaml").read_text(encoding="utf-8").splitlines()
    told = [line.removeprefix("#     ") for line in lines if line.startswith("#     ")]
    assert len(told) == 3
    (published,) = SERVICES["balancer"]["ports"]
    assert shlex.split(told[-1])[-1] == f"http://{published.rpartition(':')[0]}/info"
