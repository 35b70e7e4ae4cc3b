"""Two processes with two devices each: who holds which rows, who writes; and when a run has several."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from user_llm.parallel import processes

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What each of the two found."""
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    folder = tmp_path_factory.mktemp("pair")
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(Path(__file__).with_name("pair.py")), str(port)]
    started = [
        subprocess.Popen([*command, str(index), str(folder)], env=environment, stdout=subprocess.PIPE, text=True)
        for index in range(2)
    ]
    try:
        answers = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0]
    return [json.loads(answer.splitlines()[-1]) for answer in answers]


def test_a_process_reads_the_rows_its_devices_hold(pair):
    rows = {name: [found["meshes"][name]["rows"] for found in pair] for name in pair[0]["meshes"]}
    assert rows == {name: [found["meshes"][name]["held"] for found in pair] for name in rows}
    assert rows["data"] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert rows["data, hosts in turn"] == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert rows["tensor inside a host"] == rows["data"]
    assert rows["tensor across hosts"] == rows["tensor"] == [list(range(8))] * 2


def test_stripes_make_the_batch_and_every_host_fetches_the_whole(pair):
    for found in pair:
        for name, mesh in found["meshes"].items():
            assert mesh["right"] == [True] * 4, name
            assert mesh["sum"] == sum(range(9)), name


def test_the_lead_writes_once_and_all_see_it(pair):
    assert [found["lead"] for found in pair] == [True, False]
    assert [found["calls"] for found in pair] == [1, 0]
    assert [found["read"] for found in pair] == ["made", "made"]


def test_a_workdir_that_is_not_shared_is_named(pair):
    lead, other = pair
    assert "error" not in lead
    assert "process 1 does not see" in other["error"]
    assert "--workdir must be a folder that all hosts share" in other["error"]


def test_another_command_is_noticed_by_all(pair):
    for found in pair:
        assert "have not got the same number" in found["other"]


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({**SLURM, "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}, True),
        ({**SLURM, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}, False),
        ({**SLURM, "SLURM_NTASKS": "2"}, False),  # python in a batch script, without srun
        ({**SLURM, "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "1"}, False),  # an interactive shell
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_COORDINATOR_ADDRESS": "a"}, True),
    ],
)
def test_the_environment_says_whether_there_are_several(environment, several):
    assert processes.several_are_announced(environment) == several


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host:80", 2, None), "belong together"),
        ((None, None, 0), "belong together"),
        (("host:80", 2, 0, True), "without --distributed"),
        (("host", 2, 0), "expected HOST:PORT"),
        (("host:80", 2, 2), "from 0 to num_processes - 1"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        processes.start(*arguments)


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"{address}: process 0 cannot listen there"):
            processes.start(address, 2, 0)


def test_one_process_waits_for_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "several_are_announced", lambda _: False)
    processes.start(None, None, None)
    assert processes.is_lead()
    assert not processes.several()
    processes.wait_for_all("nobody")
    made = tmp_path / "file"
    for text in ("first", "second"):
        processes.lead_makes(made, lambda text=text: made.write_text(text))
    assert made.read_text() == "first"
    np.testing.assert_array_equal(processes.fetch(jnp.arange(3)), [0, 1, 2])
    processes.end_if_lost(ValueError("Gloo is only a word here"))
