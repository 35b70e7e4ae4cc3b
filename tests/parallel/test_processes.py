"""Two processes with two devices each: who holds which rows, who writes; and when a run has several."""

import os
import signal
import socket
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tests.parallel.together import answers
from user_llm.errors import UserError
from user_llm.parallel import processes

PAIR = Path(__file__).with_name("pair.py")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What each of the two found."""
    return answers(PAIR, tmp_path_factory.mktemp("pair"), count=2, devices=2)


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
            assert mesh["right"] == [True] * 3, name
            assert mesh["sum"] == sum(range(9)), name


def test_of_what_a_mesh_has_computed_a_process_takes_the_rows_it_holds(pair):
    whole = np.arange(24).reshape(8, 3)
    for found in pair:
        for name, mesh in found["meshes"].items():
            assert mesh["own"] == [whole[mesh["rows"]].tolist()] * 3, name


def test_who_holds_whole_models_waits_for_nobody(pair):
    for found in pair:
        alone = [name for name, mesh in found["meshes"].items() if mesh["waits for nobody"]]
        assert alone == ["data", "data, hosts in turn", "data and fsdp", "tensor inside a host"]


def test_the_lead_writes_once_and_all_see_it(pair):
    assert [found["lead"] for found in pair] == [True, False]
    assert [found["calls"] for found in pair] == [1, 0]
    assert [found["read"] for found in pair] == ["made", "made"]


def test_one_process_says_all(monkeypatch):
    assert processes.all_say(b"") == [b""]
    assert processes.all_say(b"words ") == [b"words "]
    monkeypatch.setattr(processes, "MOST_SAID", 5)
    with pytest.raises(UserError, match="has 6 bytes for the others, and 5 at most"):
        processes.all_say(b"words ")


@pytest.mark.parametrize("sizes", [(2**31, 7), (7, 2**31), (5 * 10**9, 5 * 10**9)])
def test_what_no_integer_of_jax_can_count_is_refused_by_all(monkeypatch, sizes):
    """Sizes come as two numbers: those of the other process are made up."""
    told = np.array([divmod(size, 2**30) for size in sizes], np.int32)
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", lambda own: told)
    with pytest.raises(UserError, match=f"has {max(sizes):,} bytes .* 2,147,483,647 at most .*evaluation.max_users"):
        processes.all_say(b"7 bytes")


def test_a_workdir_that_is_not_shared_is_named(pair):
    lead, other = pair
    assert "error" not in lead
    assert "process 1 does not see" in other["error"]
    assert "--workdir must be a folder that all hosts share" in other["error"]


def test_what_the_lead_finds_all_know_and_what_it_refuses_all_refuse(pair):
    assert [found["said"] for found in pair] == [["by", 0]] * 2
    assert [found["refused"] for found in pair] == [["somebody is at work: Zoë", 75]] * 2


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


@pytest.fixture
def jax_stops_at(monkeypatch):
    """Pretends to be one of several processes, of which JAX has agreed to stop at a poll; returns the polls."""
    polls = []
    monkeypatch.setattr(processes, "several", lambda: True)

    def start(*stops):
        first = next(processes._polls)

        def reached(number):
            polls.append(number - first)
            return polls[-1] in stops  # JAX says it once, for one number

        monkeypatch.setattr(processes.multihost_utils, "reached_preemption_sync_point", reached)
        return polls

    yield start
    assert not processes._stopping


def test_polls_of_stages_and_evaluations_have_one_rising_number(jax_stops_at):
    """JAX compares numbers for equality: one that starts anew in every stage may never be the one agreed on."""
    polls = jax_stops_at(6)
    for _ in range(2):  # stages
        with processes.Interrupt() as interrupt:
            assert not any(interrupt.received() for _ in range(2))
    processes.end_if_preempted()
    with pytest.raises(processes.Preempted, match="same command"):
        processes.end_if_preempted()
    assert polls == [1, 2, 3, 4, 5, 6]


def test_a_stop_in_a_validation_waits_until_the_stage_has_saved(jax_stops_at):
    jax_stops_at(2)

    def train():
        with processes.Interrupt() as interrupt:
            assert not interrupt.received()
            for _ in range(3):  # its validation
                processes.end_if_preempted()
            assert interrupt.received()
            raise processes.Preempted("saved")

    with pytest.raises(processes.Preempted, match="saved"):
        train()
    processes.end_if_preempted()  # the signal has had its effect


def test_a_stop_at_the_last_step_ends_the_run_behind_the_stage(jax_stops_at, monkeypatch):
    jax_stops_at(1)
    monkeypatch.setattr(processes.multihost, "get_barrier_sync_fn", lambda: lambda **_: None)
    with processes.Interrupt() as interrupt:
        assert interrupt.received()  # and it is done
    with pytest.raises(processes.Preempted):
        processes.wait_for_all("the stage is exported")


def test_sigterm_at_the_last_step_of_one_process_is_not_forgotten():
    before = signal.getsignal(signal.SIGTERM)
    with processes.Interrupt():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(processes.Preempted):
        processes.wait_for_all("the stage is exported")
    processes.wait_for_all("nothing is left of it")
