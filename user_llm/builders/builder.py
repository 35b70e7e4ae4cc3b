"""What every builder does: find the raw files, read them out of core, count, and write one timeline a user."""

import contextlib
import dataclasses
import io
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from tqdm import tqdm

from user_llm.builders import built, timelines
from user_llm.builders import source as source_lib
from user_llm.builders.beam.on_beam import OnBeam
from user_llm.builders.catalogue import FIELDS, write_catalogue
from user_llm.builders.columns import EventColumns
from user_llm.builders.download import download, manual_file
from user_llm.builders.engine import beam_runner
from user_llm.builders.malformed import MalformedSourceError, RowReport
from user_llm.builders.on_duckdb import OnDuckDB
from user_llm.builders.records import SteadyWriter
from user_llm.builders.rules import Rules
from user_llm.builders.simulated import SimulatedConfig
from user_llm.errors import UserError
from user_llm.locks import clear_partial, owned
from user_llm.paths import local_path
from user_llm.quiet import absl_warnings_unsaid

SIMULATED = "simulated"
"""The config of each family that writes its own files, in the published format, and reads them back."""

_RECORDS = "array_record"

logger = logging.getLogger(__name__)


class TimelineBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]  # TFDS has no types
    """One record a user (`timelines.FEATURES`), in ArrayRecord files: `as_data_source` reads them.

    A family of datasets says what its raw files are (`_files`, `_urls`), how to read them (`_rules`), and how to
    simulate them where it can. Metadata: `rating_names` (entry 0 is padding), `categories` (how many), `duplicates`
    (titles that are numbered), `has_reviews`, `fingerprint` (sha256 of the raw files), `simulated` (its settings, or
    null), `options` and `summary` (rows read, kept and rejected by reason; users, items, lengths, windows).

    Beside the records stand the catalogue and the events as columns, which are what the package itself reads, and
    `checksums.json` (`built.py`).

    Kept out of TFDS's registry, where other datasets have such names: use the class, not `tfds.load`.
    """

    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES: ClassVar = {
        "1.0.0": "One timeline per user, the catalogue as metadata.",
        "1.1.0": "The metadata say whether there are reviews, and with which options the dataset was built.",
        "1.2.0": "Flat columns and checksums of all files stand beside the records.",
        "2.0.0": "Records are ArrayRecord files; the catalogue is columns, and no metadata.",
    }
    OPTIONS: ClassVar[Mapping[str, int | str]] = {}
    """What else decides about a family's build: name → default."""
    HOMEPAGE: ClassVar[str] = ""

    def __init__(
        self,
        *,
        raw_path: str | os.PathLike | None = None,
        max_malformed: float = 0.0,
        simulated: SimulatedConfig | dict | None = None,
        options: Mapping[str, int | str] | None = None,
        **kwargs,
    ):
        """Prepares to build or read; nothing is read or written yet.

        Args:
          raw_path: a zip or a folder with the raw files under their published names; None downloads the release.
          max_malformed: fraction of each file's rows that may be malformed and left out.
          simulated: what to simulate, in config `simulated` only.
          options: values for some of `OPTIONS`.
          **kwargs: `config`, `data_dir`, `version` of `tfds.core.DatasetBuilder`.

        Raises:
          UserError: an argument is out of range or does not belong to the config.
        """
        _check_path("raw_path", raw_path)
        _check_path("data_dir", kwargs.get("data_dir"))
        if kwargs.get("data_dir") is not None and Path(kwargs["data_dir"]).expanduser().is_file():
            raise UserError(f"data_dir {kwargs['data_dir']} is a file: name a folder, or a new one.")
        # TFDS writes and reads these records without TensorFlow, whose import takes longer than many a build.
        super().__init__(**{"file_format": _RECORDS, **kwargs})
        name = self.builder_config.name
        if not 0 <= max_malformed < 1:
            raise UserError(f"max_malformed must be a fraction of rows in [0, 1), got {max_malformed!r}.")
        if simulated is not None and name != SIMULATED:
            raise UserError(f"simulated= belongs to config {SIMULATED!r}, not to {name!r}.")
        if raw_path is not None and name == SIMULATED:
            raise UserError(f"Config {SIMULATED!r} writes its own files: leave raw_path out, or name a release.")
        if unknown := sorted(set(options or {}) - set(self.OPTIONS)):
            known = f"expected some of {', '.join(self.OPTIONS)}" if self.OPTIONS else "this dataset has none"
            raise UserError(f"unknown option {', '.join(unknown)}: {known}.")
        for option, value in (options or {}).items():
            if type(value) is not type(self.OPTIONS[option]) or (isinstance(value, int) and value < 0):
                kind = "a whole number from 0" if isinstance(self.OPTIONS[option], int) else "text"
                raise UserError(f"option {option} must be {kind}, got {value!r}.")
        if isinstance(simulated, dict):
            simulated = SimulatedConfig(**simulated)
        self._simulated = (simulated or SimulatedConfig()) if name == SIMULATED else None
        self._raw_path = None if raw_path is None else Path(raw_path).expanduser()
        self._max_malformed = max_malformed
        self._options = {**self.OPTIONS, **(options or {})}
        self._beam_options: Any = None  # of the build that goes on; None: it is DuckDB's

    # What a family says about itself.

    def _files(self) -> tuple[str, ...]:
        """Names of the raw files, in the order they are fingerprinted."""
        raise NotImplementedError

    def _optional_files(self) -> tuple[str, ...]:
        """Those of them that `raw_path` may lack; `_rules` then has no path for them."""
        return ()

    def _urls(self) -> dict[str, str]:
        """Where a release comes from: name of a raw file, or of one zip with all of them → URL."""
        raise NotImplementedError

    def _simulate(self, config: SimulatedConfig, folder: Path) -> None:
        """Writes the raw files of a simulation into `folder`."""
        raise NotImplementedError

    def _rules(self, files: Mapping[str, Path], report: RowReport) -> Rules:
        """How the raw files, by name, become events and a catalogue; what it reads for that itself goes to `report`."""
        raise NotImplementedError

    # What is the same for all.

    def download_and_prepare(self, *, wait: bool = False, **kwargs) -> None:
        """As in TFDS; but a dataset prepared from another source is an error, never silently used.

        A dataset that is there is only read. To build one, this process owns the folder of the config.

        Args:
          wait: whether to wait for another process that is building it.
          **kwargs: as in TFDS. `download_config.beam_options` has Apache Beam build it, by many workers, with the same
            bytes (docs/data.md); without, DuckDB does on this machine.

        Raises:
          Busy: another process is building it.
          UserError: `data_dir` holds this config built from other data, with other options, or with more malformed
            rows than allowed; or its files have changed.
          MalformedSourceError: the source cannot be used; nothing of the dataset is left in `data_dir`.
        """
        if not built.is_finished(self.data_path):
            with owned(self.data_path.parent, wait=wait):
                if not built.is_finished(self.data_path):
                    with absl_warnings_unsaid():  # TFDS warns of what it does itself
                        self._build(**kwargs)
                    return
        self._check_prepared()

    def _build(self, **kwargs) -> None:
        """Builds the dataset, or what is missing of it where a process was killed; for the owner of the folder."""
        tfds.disable_progress_bar()  # it has three; `_columned` has one
        self._beam_options = getattr(kwargs.get("download_config"), "beam_options", None)
        folder = self.data_path.parent
        for left in folder.glob(f"incomplete.*_{self.version}"):  # where TFDS was killed
            shutil.rmtree(left)
        clear_partial(folder)
        if self.data_path.exists():
            self._check_prepared()
        else:
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # TFDS tells the caller's terminal what it is doing
                    super().download_and_prepare(**kwargs)
            except BaseException:
                self._clear_failed()
                raise
        built.finish(self.data_path)

    def _clear_failed(self) -> None:
        """Deletes what TFDS makes before it builds, where there is nothing in it."""
        for folder in ("downloads/extracted", "downloads"):
            with contextlib.suppress(OSError):  # something is in it
                (Path(self.data_dir_root) / folder).rmdir()
        family = self.data_path.parent.parent
        if not any(family.glob("*/*/dataset_info.json")):
            shutil.rmtree(family / ".config", ignore_errors=True)

    def _check_prepared(self) -> None:
        advice = "Use another data_dir, or delete that folder to build anew."
        if not all((self.data_path / name).is_file() for name in ("dataset_info.json", built.METADATA)):
            raise UserError(f"{self.data_dir} is there but holds no dataset. {advice}")
        if not self.info.metadata:  # another process has built it since this builder was made
            self.info.read_from_directory(self.data_dir)
        metadata = self.info.metadata
        if self._simulated and metadata["simulated"] != dataclasses.asdict(self._simulated):
            raise UserError(f"{self.data_dir} was built with {metadata['simulated']}, not {self._simulated}. {advice}")
        if metadata["options"] != self._options:
            raise UserError(f"{self.data_dir} was built with {metadata['options']}, not {self._options}. {advice}")
        if self._raw_path and metadata["fingerprint"] != source_lib.packed_fingerprint(
            self._raw_path, self._files(), self._optional_files()
        ):
            raise UserError(f"{self.data_dir} was built from other data than {self._raw_path}. {advice}")
        for file, rows in metadata["summary"]["files"].items():
            rejected = sum(reason["rows"] for reason in rows["rejected"].values())
            if rejected > self._max_malformed * rows["read"]:
                raise UserError(
                    f"{self.data_dir} was built without {rejected} malformed rows of {file}, more than "
                    f"max_malformed={self._max_malformed:g} allows. {advice}"
                )

    def _info(self) -> tfds.core.DatasetInfo:
        # TFDS asks for it before it reads what is there, of which it says nothing where it is damaged.
        if built.is_finished(self.data_path):
            built.check(self.data_path)
        return self.dataset_info_from_configs(
            features=timelines.FEATURES,
            metadata=tfds.core.MetadataDict(),
            homepage=self.HOMEPAGE,
            disable_shuffling=True,  # users stay in the order of their ids
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        # TFDS drops the folder it builds in when the build fails; on success whoever reads ours last removes it.
        work = self._work
        work.mkdir(parents=True)
        files = self._raw_files(dl_manager, work)
        report = RowReport()
        engine: OnDuckDB | OnBeam = OnDuckDB(work)
        if self._beam_options is not None:
            engine = OnBeam(work, beam_runner().BeamJobs(work, self._beam_options))
        catalogue, measures = engine.load(self._rules(files, report), report, self._max_malformed)
        facts = {name: value for name, value in catalogue.items() if name not in FIELDS}
        summary = timelines.summarise_timelines(measures)
        if not summary["events"]:
            raise MalformedSourceError(f"No row of {' or '.join(files)} is left to build from.\n{report.text()}")
        complete = not any(report.rejected(file) for file in report.rows)
        logger.log(logging.INFO if complete else logging.WARNING, "%s", report.text())
        duplicates = write_catalogue(catalogue, Path(self.data_dir) / built.CATALOGUE)
        self.info.metadata.update(
            facts,
            categories=len(catalogue["category_names"]) - 1,
            duplicates=duplicates,
            has_reviews=measures.reviews,
            fingerprint=source_lib.fingerprint(files),
            simulated=dataclasses.asdict(self._simulated) if self._simulated else None,
            options=self._options,
            summary={"files": report.as_dict(), "items": len(catalogue["titles"]) - 1, **summary},
        )
        if isinstance(engine, OnDuckDB):
            return {timelines.SPLIT: self._generate_examples(self._columned(engine.blocks()))}
        for _ in self._columned(engine.blocks()):
            pass
        return {timelines.SPLIT: beam_runner().records(*engine.records())}

    def _process_pipeline_result(self, pipeline_result: Any) -> None:
        shutil.rmtree(self._work)

    def _example_writer(self) -> SteadyWriter:
        return SteadyWriter(self.info.file_format)

    @property
    def _work(self) -> Path:
        """The folder for what a build needs no more when it has ended."""
        return Path(self.data_dir) / "work"

    def _raw_files(self, dl_manager: tfds.download.DownloadManager, work: Path) -> dict[str, Path]:
        """Raw files by name: simulated, from `raw_path`, from the manual folder, or downloaded."""
        if self._simulated:
            logger.info("Simulating %s", self._simulated)
            self._simulate(self._simulated, work)
            return {name: work / name for name in self._files()}
        if self._raw_path:
            logger.info("Reading %s", self._raw_path)
            return source_lib.stage(self._raw_path, self._files(), work, self._optional_files())
        found = {name: manual_file(dl_manager, name) or download(dl_manager, url) for name, url in self._urls().items()}
        logger.info("Reading %s", ", ".join(map(str, found.values())))
        if set(found) == set(self._files()):
            return found
        (archive,) = found.values()
        return source_lib.stage(archive, self._files(), work)

    def _columned(self, blocks: Iterator[timelines.Block]) -> Iterator[timelines.Block]:
        """The blocks, each as soon as its events are written as columns."""
        metadata, folder = self.info.metadata, Path(self.data_dir) / built.COLUMNS
        columns = EventColumns(folder, ratings=len(metadata["rating_names"]), reviews=metadata["has_reviews"])
        with (
            columns,
            tqdm(desc=self.name, total=metadata["summary"]["users"], unit=" users", disable=None) as progress,
        ):
            for block in blocks:
                columns.append(block)
                yield block
                progress.update(len(block.user_ids))

    def _generate_examples(self, blocks: Iterator[timelines.Block]) -> Iterator[tuple[int, dict]]:
        yield from enumerate(example for block in blocks for example in block.examples())
        shutil.rmtree(self._work)


def _check_path(argument: str, path: str | os.PathLike | None) -> None:
    if path is not None and not os.fspath(path):
        raise UserError(f"{argument} is empty: name a path, or leave it out.")
    if path is not None:
        local_path(path, argument)
