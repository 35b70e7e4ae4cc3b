"""Apache Beam at work for a dataset: its options, its pipelines, and what TFDS writes records from."""

import functools
import logging
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions, StandardOptions, WorkerOptions
from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator
from apache_beam.runners.runner import create_runner

from user_llm.errors import UserError
from user_llm.files import replacing

# It tells the terminal of every worker's start. What goes wrong is raised.
logging.getLogger("apache_beam").setLevel(logging.ERROR)

_Element = TypeVar("_Element")
_Result = TypeVar("_Result")


def parse_options(text: str) -> PipelineOptions:
    """Beam's options from `name=value,name=value`, as TFDS' own command takes them.

    Without any, the pipelines run on this machine, by as many processes as it has cores.

    Raises:
      UserError: Beam has no such option or runner, or the runner needs others.
    """
    if not text:
        text = f"runner=DirectRunner,direct_running_mode=multi_processing,direct_num_workers={os.cpu_count()}"
    flags = [f"--{option.strip().removeprefix('--')}" for option in text.split(",")]
    try:
        options = PipelineOptions(flags)
        known = options.get_all_options(drop_default=True)
    except SystemExit:  # argparse has said what is wrong
        raise UserError(f"--beam_options={text}: Beam cannot read it; expected name=value,name=value.") from None
    if unknown := sorted({*options.get_all_options(drop_default=True, retain_unknown_options=True)} - {*known}):
        raise UserError(f"--beam_options: Beam has no option {', '.join(unknown)}.")
    name = options.view_as(StandardOptions).runner or "DirectRunner"
    try:
        runner = create_runner(name)
    except (ValueError, ImportError) as error:
        raise UserError(f"--beam_options: runner={name} cannot be had: {error}") from error
    wrong = PipelineOptionsValidator(options, runner).validate()
    setup = options.view_as(SetupOptions)
    if name == "DataflowRunner" and not (known.get("sdk_container_image") or setup.setup_file):
        wrong.append("Missing sdk_container_image: its workers need an image with this package and what it imports.")
    if wrong:
        raise UserError(f"--beam_options: {name} says: {' '.join(wrong)}")
    workers = options.view_as(WorkerOptions)
    workers.default_sdk_harness_log_level = workers.default_sdk_harness_log_level or "ERROR"
    return options


def describe(options: PipelineOptions) -> str:
    """The options that are not Beam's defaults, for people."""
    return ", ".join(f"{name}={value}" for name, value in options.get_all_options(drop_default=True).items())


class BeamJobs:
    """`on_beam.Jobs` by a pipeline a job. What a worker returns comes back in a file of the working folder.

    Args:
      work: a folder that all workers see under this path.
      options: of the pipelines.
    """

    def __init__(self, work: Path, options: PipelineOptions):
        self._work = work
        self._options = options

    def each(self, does: str, do: Callable[[_Element], _Result], elements: Sequence[_Element]) -> list[_Result]:
        """See `Jobs`."""
        folder = self._results(does)
        with beam.Pipeline(options=self._options) as pipeline:
            (
                pipeline
                | beam.Create(list(enumerate(elements)))
                | beam.Reshuffle()
                | does >> beam.MapTuple(functools.partial(_keep_result, folder, do))
            )
        return list(_results(folder).values())

    def grouped(
        self,
        does: str,
        deal: Callable[[_Element], Iterable[tuple[int, bytes]]],
        gather: Callable[[int, Iterable[bytes]], _Result],
        elements: Sequence[_Element],
    ) -> dict[int, _Result]:
        """See `Jobs`."""
        folder = self._results(does)
        with beam.Pipeline(options=self._options) as pipeline:
            (
                pipeline
                | beam.Create(elements)
                | beam.Reshuffle()
                | "deal" >> beam.FlatMap(deal).with_output_types(tuple[int, bytes])
                | beam.GroupByKey()
                | does >> beam.MapTuple(functools.partial(_keep_gathered, folder, gather))
            )
        return _results(folder)

    def _results(self, does: str) -> Path:
        folder = self._work / f"results-{does}"
        folder.mkdir()
        return folder


def records(
    give: Callable[[_Element], Iterator[tuple[int, dict[str, Any]]]], groups: Sequence[_Element]
) -> beam.PTransform:
    """The (key, record) of all users, for TFDS to write; see `OnBeam.records`."""
    return beam.Create(groups) | beam.Reshuffle() | "records" >> beam.FlatMap(give)


def _keep_gathered(
    folder: Path, gather: Callable[[int, Iterable[bytes]], _Result], key: int, values: Iterable[bytes]
) -> None:
    _keep_result(folder, functools.partial(gather, key), key, values)


def _keep_result(folder: Path, do: Callable[[_Element], _Result], number: int, element: _Element) -> None:
    """Keeps what `do` returns, or the error that a user can mend; Beam would wrap it in others."""
    result: _Result | UserError
    try:
        result = do(element)
    except UserError as error:
        result = error
    with replacing(folder / f"{number:06d}") as partial:
        partial.write_bytes(pickle.dumps(result))


def _results(folder: Path) -> dict[int, Any]:
    """What was kept, by number.

    Raises:
      UserError: the first of them.
    """
    results = {int(path.name): pickle.loads(path.read_bytes()) for path in sorted(folder.glob("[0-9]" * 6))}
    for result in results.values():
        if isinstance(result, UserError):
            raise result
    return results
