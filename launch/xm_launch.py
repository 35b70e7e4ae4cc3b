"""Runs tables of the paper with XManager, as local processes without containers or on Vertex AI:

    make launch      # its own environment, .venv-launch
    .venv-launch/bin/python -m launch.xm_launch --tables=2 --scale=laptop --out=runs/xm --jobs=2
    .venv-launch/bin/python -m launch.xm_launch --tables=2 --scale=paper --out=/gcs/BUCKET/user_llm \\
        --executor=vertex --accelerator=tpu_v5e=2x4

A work unit is a run. Those that read another's encoder or language model start when it is finished; what has its
`results.json` in --out already is left alone; a unit that fails stops only those that need it. On Vertex, --out must
be a bucket's folder under /gcs, which every container sees; project and bucket are XManager's own environment
variables (GOOGLE_CLOUD_PROJECT, GOOGLE_CLOUD_BUCKET_NAME, …), and its own flags (--xm_…) work too. Then write the
report with `python -m launch.report --out=…`.

Exit status: 0 all finished, 1 some failed, 2 nothing was started. A unit fails, too, when its run is stopped (143, 130)
or another process holds its folder or its dataset (75): the same command goes on with it.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict
from xmanager import xm, xm_local

from user_llm.config import ConfigError, wrong_together, wrong_values
from user_llm.errors import show
from user_llm.launch import malloc
from user_llm.launch.arguments import places_of, plan_of, sweep_parser
from user_llm.launch.runs import Run

TITLE = "user-llm"

# What a container of ours needs besides the clone; jax for the accelerator is named by --jax.
_BASE_IMAGE = "python:3.12"
_INSTRUCTIONS = ["WORKDIR /user_llm", "COPY {folder}/ /user_llm", "RUN pip install --no-cache-dir -e . {jax}"]


def requirements_of(accelerator: str) -> xm.JobRequirements:
    """The resources of `tpu_v5e=2x4`, `a100=8` or ""; a TPU takes a topology, a GPU a number."""
    kind, _, amount = accelerator.partition("=")
    resources = {kind: int(amount) if amount.isdecimal() else amount} if kind else {}
    return xm.JobRequirements(resources=resources)


def local(arguments: argparse.Namespace) -> tuple[xm.Executor, xm.Packageable]:
    """Plain processes of the project's own Python on this machine."""
    executor = xm_local.Local(experimental_stream_output=False)
    return executor, xm.binary(executor.Spec(), path="/bin/sh", env_vars=malloc.TUNED)


def logged(log: Path, command: Sequence[str]) -> list[str]:
    """Arguments of `sh` that run `command` with its output in `log`: XManager mixes what several runs print."""
    return ["-c", 'exec "$@" >>"$0" 2>&1', str(log), *command]


def vertex(arguments: argparse.Namespace) -> tuple[xm.Executor, xm.Packageable]:
    """Vertex AI, one host a run, in an image that holds this clone (or --image)."""
    executor = xm_local.Vertex(requirements=requirements_of(arguments.accelerator))
    if arguments.image:
        return executor, xm.container(executor.Spec(), image_path=arguments.image)
    folder = Path(__file__).resolve().parents[1]
    instructions = [line.format(folder=folder.name, jax=arguments.jax) for line in _INSTRUCTIONS]
    return executor, xm.python_container(
        executor.Spec(),
        entrypoint=xm.CommandList(['python "$@"']),
        path=str(folder),
        base_image=_BASE_IMAGE,
        docker_instructions=instructions,
    )


EXECUTORS: Mapping[str, Callable] = {"local": local, "vertex": vertex}


class Failed(Exception):
    """A run, or one it needs, did not finish."""


async def launch(
    experiment: xm.Experiment,
    runs: Sequence[Run],
    executable: xm.Executable,
    executor: xm.Executor,
    arguments: Callable[[Run], Sequence[str]],
    finished: Callable[[Run], bool],
    parallel: int,
) -> dict[str, str]:
    """Adds a work unit for every run that is not `finished`, when those it needs are, `parallel` at a time.

    Returns:
      run name → why it failed; empty where all are finished.
    """
    failures: dict[str, str] = {}
    slots = asyncio.Semaphore(parallel)
    tasks: dict[str, asyncio.Task] = {}

    async def one(run: Run) -> None:
        try:
            for other in run.needs:
                await asyncio.shield(tasks[other.name])
        except Failed as error:
            failures[run.name] = str(error)
            raise Failed(f"needs {error.args[0]}") from error
        if finished(run):
            return
        async with slots:
            print(f"{run.name} starts", flush=True)
            job = xm.Job(executable, executor, name=run.label, args=list(arguments(run)))
            try:
                unit = await experiment.add(job)
                await unit.wait_until_complete()
            except xm.ExperimentUnitError as error:
                failures[run.name] = f"{type(error).__name__}: {error}"
            if run.name not in failures and not finished(run):
                failures[run.name] = "it ended without results.json"
        if run.name in failures:
            print(f"{run.name} failed: {failures[run.name]}", flush=True)
            raise Failed(run.name)
        print(f"{run.name} finished", flush=True)

    for run in runs:  # each after those it needs
        tasks[run.name] = asyncio.create_task(one(run))
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    return failures


async def _launch(arguments: argparse.Namespace, runs: Sequence[Run]) -> dict[str, str]:
    executor, packageable = EXECUTORS[arguments.executor](arguments)
    out = arguments.out if arguments.executor == "vertex" else arguments.out.resolve()

    def words(run: Run) -> list[str]:
        given = run.arguments(out, places_of(run, arguments.raw, arguments.data_dir))
        if arguments.executor == "vertex":
            return given
        (out / "logs").mkdir(exist_ok=True)
        return logged(out / "logs" / f"{run.name}.log", [arguments.python, *given])

    def finished(run: Run) -> bool:
        return (out / run.name / "results.json").is_file()

    failures: dict[str, str] = {}
    try:
        async with xm_local.create_experiment(TITLE) as experiment:
            (executable,) = experiment.package([packageable])
            failures |= await launch(experiment, runs, executable, executor, words, finished, arguments.jobs)
    except RuntimeError:  # XManager raises a failed unit's error once more at the end
        if not failures:
            raise
    return failures


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = sweep_parser("python -m launch.xm_launch", __doc__)
    add = made.add_argument
    add("--executor", default="local", choices=EXECUTORS, help="processes here, or Vertex AI (local)")
    add("--python", default=".venv/bin/python", help="local: the interpreter with the project installed")
    add("--accelerator", default="", help="vertex: tpu_v5e=2x4, a100=8, …")
    add("--image", default="", help="vertex: a container image that is there already")
    add("--jax", default="jax[tpu]", help="vertex: jax for the accelerator, as jax[tpu] or jax[cuda13]")
    return made


def _problems(config: ConfigDict, awaited: Collection[str]) -> list[str]:
    """What can be said without JAX, and here: files may lie where the units run."""
    del awaited
    return [*wrong_values(config)] or [*wrong_together(config)]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tables that `argv` names and returns the exit status."""
    arguments, xmanagers = parser().parse_known_args(argv)
    try:
        flags.FLAGS(["xm_launch", *xmanagers])
    except flags.Error as error:
        parser().error(str(error))
    try:
        plan = plan_of(arguments, _problems)
        if arguments.executor == "local":
            plan.save(arguments.out)
            if not Path(arguments.python).is_file():
                raise ConfigError(f"--python={arguments.python}: no such file; `make demo` makes .venv")
    except Exception as error:
        return show(error, status=2)
    try:
        failures = asyncio.run(_launch(arguments, plan.runs()))
    except Exception as error:
        return show(error)
    for name, why in failures.items():
        print(f"{name}: {why}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
