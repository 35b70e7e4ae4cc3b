"""What all tests share: a quiet CPU backend with 8 devices, a compilation cache, the folder of real data, a server."""

import datetime
import importlib.metadata
import os
import random
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from filelock import FileLock

REPOSITORY = Path(__file__).resolve().parents[1]
LONGEST_FIRST = (
    "faults/test_drills.py",
    "end_to_end/test_four_processes.py",
    "end_to_end/test_shared_evaluation.py",
    "test_grid.py",
    "end_to_end/test_main.py",
    "end_to_end/test_two_processes.py",
    "end_to_end/test_options.py",
    "end_to_end/test_finished_run.py",
    "end_to_end/test_tasks.py",
    "end_to_end/test_toys.py",
    "end_to_end/test_seqio_reader.py",
    "end_to_end/test_open_llms.py",
    "parallel/test_mesh.py",
    "models/test_user_encoder.py",
    "evaluation/test_evaluator.py",
    "checkpoints/test_families.py",
)

# Set before JAX and TensorFlow are first imported, and in the environment, not in `jax.config`, so that
# the processes which end-to-end tests start inherit it. The caller's own values win.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPOSITORY / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # even the smallest is read in a third of it
# LLVM's optimisations take more than half of a compilation, and no test asks how fast a program is. XLA's own passes
# over the graph stay. `JAX_DISABLE_MOST_OPTIMIZATIONS=0 make test` tests what users run, in about twice the time.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Eight devices on two busy cores can keep a collective waiting for longer than the 40 s after which XLA aborts.
_FLAGS = ["--xla_cpu_collective_call_terminate_timeout_seconds=200"]
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1":
    _FLAGS += ["--xla_cpu_opt_preset=fast_compile"]
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        # By XLA's older code for fused loops, which later jaxlibs have no more, a compilation takes a third less.
        _FLAGS += ["--xla_cpu_use_fusion_emitters=false"]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS]).strip()


def pytest_configure(config: pytest.Config) -> None:
    """Gives this process 8 devices, for the mesh tests. Processes that tests start are left with one."""
    import jax

    jax.config.update("jax_num_cpu_devices", 8)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first, longest first: no worker is left alone with one at the end.

    Needs `--no-loadscope-reorder`: xdist would hand out the files with most tests first, whatever these take.
    """
    place = {REPOSITORY / "tests" / name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_end_with_their_module():
    """Each takes memory maps, of which a process has 65,530: hundreds of programs of all tests together need more."""
    yield
    import jax

    jax.clear_caches()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, worker_id) -> tuple[Path, list[str], str]:
    """A finished run of `end_to_end/tiny.py`, not to be changed: its workdir, its other flags, what it printed.

    One for all workers: the first that needs it runs it.
    """
    from tests.faults.harness import train

    folder = tmp_path_factory.getbasetemp()
    folder = (folder if worker_id == "master" else folder.parent) / "tiny"
    workdir, printed = folder / "run", folder / "printed.txt"
    config = REPOSITORY / "tests" / "end_to_end" / "tiny.py"
    flags = [f"--config={config}", f"--config.data.data_dir={folder / 'data'}", "--gin=Host.tensorboard=False"]
    with FileLock(f"{folder}.lock"):
        if not printed.exists():
            folder.mkdir(exist_ok=True)
            done = train(*flags, f"--workdir={workdir}", folder=folder, timeout=500)
            done.check(0)
            printed.write_text(done.text)
    return workdir, flags, printed.read_text()


@pytest.fixture(scope="module")
def moments() -> random.Random:
    """Chance for drills, whose seed is the day's date."""
    return random.Random(datetime.date.today().isoformat())


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with real data and a real checkpoint, neither committed here; skips when absent."""
    folder = Path(os.environ.get("USER_LLM_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}: set USER_LLM_SHARED to a folder that holds data/ and llm/")
    return folder


@pytest.fixture(scope="session")
def redis_address(tmp_path_factory):
    """The address of a Redis server, which ends with the tests."""
    if not (program := shutil.which("redis-server") or shutil.which("valkey-server")):
        pytest.skip("needs redis-server or valkey-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("redis")
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
    with subprocess.Popen([program, *options], stdout=subprocess.DEVNULL) as server:
        for _ in range(100):
            with socket.socket() as asked:
                if asked.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"redis://127.0.0.1:{port}"
        server.terminate()
