"""The XManager launcher, on XManager's own mock and, with a stand-in for Python, on its local executor.

XManager has an environment of its own (`make launch`); `make test` runs this file there.
"""

import asyncio
import sys

import pytest

pytest.importorskip("xmanager", reason="has its own environment, in which `make test` runs this file")

from xmanager import xm, xm_local, xm_mock

from launch import xm_launch
from user_llm.launch.plan import Plan

PLAN = Plan("laptop", (0, 1), (), ("2",), ("movielens",))


class Experiment(xm_mock.MockExperiment):
    """Units that leave results, but for those that fail; what each is asked to do is in `launched_jobs`."""

    def __init__(self, failing=()):
        super().__init__()
        self.failing, self.finished = failing, set()

    def add(self, job, *arguments, **options):
        name = job.args.to_list()[-1] if isinstance(job.args, xm.SequentialArgs) else job.args[-1]
        future = super().add(job, *arguments, **options)
        if not any(text in name for text in self.failing):
            self.finished.add(name)
        return future


def launched(experiment, plan=PLAN, finished=(), parallel=2):
    runs = plan.runs()

    async def main():
        async with experiment:
            return await xm_launch.launch(
                experiment,
                runs,
                xm_mock.MockExecutable(),
                xm_mock.MockExecutor(),
                lambda run: [run.name],
                lambda run: run.name in experiment.finished or run.label in finished,
                parallel,
            )

    failures = asyncio.run(main())
    order = [job.args.to_list()[-1] for job in experiment.launched_jobs]
    return failures, order, {run.name: [other.name for other in run.needs] for run in runs}


def test_every_run_is_a_unit_and_follows_those_it_needs():
    failures, order, needs = launched(Experiment())
    assert failures == {}
    assert sorted(order) == sorted(needs)
    assert len(order) == 2 * 5  # a seed: dual encoder, BERT4Rec, language model, encoder, User-LLM
    assert all(order.index(other) < order.index(name) for name in order for other in needs[name])


def test_a_failed_unit_stops_those_that_need_it_alone():
    failures, order, needs = launched(Experiment(failing=["autoregressive.alone.n50.seed0"]))
    (encoder,) = (name for name in failures if "alone" in name)
    assert failures == {
        encoder: "it ended without results.json",
        **{name: encoder for name, others in needs.items() if encoder in others},
    }
    assert len(failures) == 2
    assert sorted(order) == sorted(name for name in needs if "cross_attention.full.n50.seed0" not in name)


def test_what_is_finished_is_left_alone():
    _, order, needs = launched(Experiment(), finished=["movielens.next_item.llm.seed0"])
    assert sorted(order) == sorted(name for name in needs if "llm.seed0" not in name)


@pytest.mark.parametrize(
    ("accelerator", "kind", "chips"),
    [("tpu_v5e=2x4", xm.ResourceType.TPU_V5E, 8), ("a100=8", xm.ResourceType.A100, 8), ("", None, 0)],
)
def test_accelerators_are_requirements(accelerator, kind, chips):
    requirements = xm_launch.requirements_of(accelerator)
    assert requirements.accelerator == kind
    assert requirements.task_requirements.get(kind, 0) == chips


@pytest.mark.parametrize("image", ["", "registry/user-llm:1"])
def test_vertex_gets_its_hardware_and_our_clone_or_the_image(image):
    arguments = xm_launch.parser().parse_args(
        [
            *("--tables=2", "--scale=paper", "--out=/gcs/bucket", "--executor=vertex"),
            *("--accelerator=a100=8", f"--image={image}", "--jax=jax[cuda13]"),
        ]
    )
    executor, packageable = xm_launch.vertex(arguments)
    assert isinstance(executor, xm_local.Vertex)
    assert executor.requirements.accelerator == xm.ResourceType.A100
    spec = packageable.executable_spec
    if image:
        assert spec.image_path == image
    else:
        assert spec.entrypoint == xm.CommandList(['python "$@"'])
        assert spec.docker_instructions[-1] == "RUN pip install --no-cache-dir -e . jax[cuda13]"
        assert (xm_launch.Path(spec.path) / "setup.py").is_file()


# Leaves results where its last argument says, and notes the order of its starts; of BERT4Rec it fails.
STAND_IN = """#!{python}
import pathlib, sys
workdir = pathlib.Path(sys.argv[-1].removeprefix("--workdir="))
with open(workdir.parent / "starts.txt", "a") as file:
    print(workdir.name, file=file)
print("hello from", workdir.name)
if "bert4rec" in workdir.name and not (workdir.parent / "mended").exists():
    sys.exit("error: no")
workdir.mkdir(exist_ok=True)
(workdir / "results.json").write_text("{{}}")
"""


def test_the_local_executor_runs_processes_and_goes_on_after_a_failure(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # where XManager keeps its database
    python = tmp_path / "python"
    python.write_text(STAND_IN.format(python=sys.executable))
    python.chmod(0o755)
    out = tmp_path / "out"
    flags = ["--tables=2", "--datasets=movielens", "--scale=laptop", f"--out={out}", f"--python={python}", "--jobs=2"]
    assert xm_launch.main(flags) == 1
    assert "bert4rec" in capsys.readouterr().err
    names = {run.name for run in Plan.load(out).runs()}
    assert {*(out / "starts.txt").read_text().split()} == names
    for name in names:
        assert f"hello from {name}" in (out / "logs" / f"{name}.log").read_text()
    (out / "mended").touch()
    assert xm_launch.main(flags) == 0
    assert len((out / "starts.txt").read_text().split()) == len(names) + 1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--python=nothing/there"], "--python=nothing/there: no such file"),
        (["--set", "strategy=enc"], "the tables give strategy its values"),
        (["--set", "encoder.num_heads=5"], "expected a multiple of config.encoder.num_heads=5"),
        (["--seeds=-1"], "config.seed=-1: expected between 0 and 4294967295"),
    ],
)
def test_wrong_arguments_are_named_and_start_nothing(tmp_path, capsys, flags, says):
    assert xm_launch.main(["--tables=2", "--scale=laptop", f"--out={tmp_path / 'out'}", *flags]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out" / "logs").exists()
