"""Builds MovieLens, published or simulated, into one timeline per user with the catalogue as metadata."""

import contextlib
import dataclasses
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from tfds_builders import timelines
from tfds_builders.malformed import MalformedSourceError, RowReport
from tfds_builders.movielens import source as source_lib
from tfds_builders.movielens.catalogue import read_movies
from tfds_builders.movielens.format import CSV, DAT, FileFormat
from tfds_builders.movielens.ratings import load_ratings
from tfds_builders.simulated import SimulatedConfig, write_movielens_csv

_URL = "https://files.grouplens.org/datasets/movielens"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class MovieLensConfig(tfds.core.BuilderConfig):
    """One release of MovieLens.

    Attributes:
      release: name of its zip and of the folder inside; empty for the simulated one.
      form: its file layout.
    """

    release: str = ""
    form: FileFormat = CSV


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """One record a user; README.md beside this file says what is in it.

    Kept out of TFDS's registry, where another dataset has the name `movielens`: use the class, not `tfds.load`.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "One timeline per user, the catalogue as metadata."}
    BUILDER_CONFIGS: ClassVar = [
        MovieLensConfig(name="20m", release="ml-20m", description="20,000,263 ratings, 1995-2015."),
        MovieLensConfig(name="25m", release="ml-25m", description="25,000,095 ratings, 1995-2019."),
        MovieLensConfig(name="1m", release="ml-1m", form=DAT, description="1,000,209 ratings, 2000-2003."),
        MovieLensConfig(name="latest_small", release="ml-latest-small", description="100,836 ratings, 1996-2018."),
        MovieLensConfig(name="simulated", description="A seeded simulation, written in the published format."),
    ]
    DEFAULT_BUILDER_CONFIG_NAME = "20m"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Optional: a release put here, as the published zip (ml-20m.zip) or the folder it unpacks to (ml-20m/), "
        "is used instead of a download."
    )

    def __init__(
        self,
        *,
        raw_path: str | os.PathLike | None = None,
        max_malformed: float = 0.0,
        simulated: SimulatedConfig | dict | None = None,
        **kwargs,
    ):
        """Prepares to build or read; nothing is read or written yet.

        Args:
          raw_path: a zip as published, or the folder it unpacks to; None downloads the release.
          max_malformed: fraction of each file's rows that may be malformed and left out.
          simulated: what to simulate, in config `simulated` only.
          **kwargs: `config`, `data_dir`, `version` of `tfds.core.DatasetBuilder`.

        Raises:
          ValueError: an argument is out of range or does not belong to the config.
        """
        super().__init__(**kwargs)
        name = self.builder_config.name
        if not 0 <= max_malformed < 1:
            raise ValueError(f"max_malformed must be a fraction of rows in [0, 1), got {max_malformed!r}.")
        if simulated is not None and name != "simulated":
            raise ValueError(f"simulated= belongs to config 'simulated', not to {name!r}.")
        if raw_path is not None and name == "simulated":
            raise ValueError("Config 'simulated' writes its own files: leave raw_path out, or name a release.")
        if isinstance(simulated, dict):
            simulated = SimulatedConfig(**simulated)
        self._simulated = (simulated or SimulatedConfig()) if name == "simulated" else None
        self._raw_path = None if raw_path is None else Path(raw_path).expanduser()
        self._max_malformed = max_malformed

    def download_and_prepare(self, **kwargs) -> None:
        """As in TFDS; but a dataset prepared from another source is an error, never silently used.

        Raises:
          ValueError: `data_dir` holds this config built from other data, or with more malformed rows than allowed.
          MalformedSourceError: the source cannot be used; nothing of the dataset is left in `data_dir`.
        """
        if self.data_path.exists():
            self._check_prepared()
        super().download_and_prepare(**kwargs)

    def _check_prepared(self) -> None:
        metadata = self.info.metadata
        advice = "Use another data_dir, or delete that folder to build anew."
        if self._simulated and metadata["simulated"] != dataclasses.asdict(self._simulated):
            raise ValueError(f"{self.data_dir} was built with {metadata['simulated']}, not {self._simulated}. {advice}")
        if self._raw_path and metadata["fingerprint"] != source_lib.fingerprint(
            self._raw_path, self.builder_config.form
        ):
            raise ValueError(f"{self.data_dir} was built from other data than {self._raw_path}. {advice}")
        for file, rows in metadata["summary"]["files"].items():
            rejected = rows["read"] - rows["kept"]
            if rejected > self._max_malformed * rows["read"]:
                raise ValueError(
                    f"{self.data_dir} was built without {rejected} malformed rows of {file}, more than "
                    f"max_malformed={self._max_malformed:g} allows. {advice}"
                )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=timelines.FEATURES,
            metadata=tfds.core.MetadataDict(),
            homepage="https://grouplens.org/datasets/movielens/",
            disable_shuffling=True,  # users stay in the order of their ids
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        # TFDS drops the folder it builds in when the build fails; on success `_generate_examples` removes ours.
        work = Path(self.data_dir) / "work"
        work.mkdir(parents=True)
        form = self.builder_config.form
        if self._simulated:
            logger.info("Simulating %s", self._simulated)
            write_movielens_csv(self._simulated, work)
            source = work
        else:
            source = self._raw_path or self._find_release(dl_manager)
        logger.info("Reading %s", source)
        folder = source_lib.stage(source, form, work)
        report = RowReport()
        movies = read_movies(folder / form.movies_file, form, report)
        with contextlib.closing(timelines.open_database(work)) as connection:
            load_ratings(connection, folder / form.ratings_file, form, movies.raw_ids, report)
            report.check(self._max_malformed)
            summary = timelines.summarise_timelines(connection)
        if not summary["events"]:
            raise MalformedSourceError(f"No row of {form.ratings_file} is left to build from.\n{report.text()}")
        complete = not any(report.rejected(file) for file in form.files)
        logger.log(logging.INFO if complete else logging.WARNING, "%s", report.text())
        self.info.metadata.update(
            movies.metadata(),
            rating_names=["", *form.rating_names],
            fingerprint=source_lib.fingerprint(folder, form),
            simulated=dataclasses.asdict(self._simulated) if self._simulated else None,
            summary={"files": report.as_dict(), "items": len(movies.titles) - 1, **summary},
        )
        return {timelines.SPLIT: self._generate_examples(work)}

    def _find_release(self, dl_manager: tfds.download.DownloadManager) -> Path:
        """The release in the manual folder if it is there, else downloaded."""
        release = self.builder_config.release
        with contextlib.suppress(AssertionError):  # TFDS's answer to a manual folder that is missing or empty
            for name in (release, f"{release}.zip"):
                if (dl_manager.manual_dir / name).exists():
                    return Path(dl_manager.manual_dir / name)
        url = f"{_URL}/{release}.zip"
        try:
            return Path(dl_manager.download(url))
        except OSError as error:
            raise ConnectionError(
                f"{url} cannot be fetched ({error}). Fetch it elsewhere and give raw_path."
            ) from error

    def _generate_examples(self, work: Path) -> Iterator[tuple[int, dict]]:
        with contextlib.closing(timelines.open_database(work)) as connection:
            for key, (user_id, events) in enumerate(timelines.iterate_timelines(connection)):
                yield key, {"user_id": user_id, "events": events}
        shutil.rmtree(work)
