"""Builds MovieLens, published or simulated, into one timeline per user with the catalogue as metadata."""

import contextlib
import dataclasses
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from tfds_builders import timelines
from tfds_builders.malformed import MalformedSourceError, RowReport
from tfds_builders.movielens import source as source_lib
from tfds_builders.movielens.catalogue import read_movies
from tfds_builders.movielens.format import CSV, DAT, FileFormat
from tfds_builders.movielens.ratings import load_ratings
from tfds_builders.simulated import SimulatedConfig, write_movielens_csv

_URL = "https://files.grouplens.org/datasets/movielens/"
_WORK_FOLDER = "work"

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
    """One record a user; see README.md beside this file.

    Not in TFDS's registry, where another dataset already has the name `movielens`: use this class, not `tfds.load`.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "One timeline per user, the catalogue as metadata."}
    BUILDER_CONFIGS = [
        MovieLensConfig(name="20m", release="ml-20m", description="20,000,263 ratings, 1995 to 2015."),
        MovieLensConfig(name="25m", release="ml-25m", description="25,000,095 ratings, 1995 to 2019."),
        MovieLensConfig(name="1m", release="ml-1m", form=DAT, description="1,000,209 ratings, 2000 to 2003."),
        MovieLensConfig(name="latest_small", release="ml-latest-small", description="100,836 ratings, 1996 to 2018."),
        MovieLensConfig(name="simulated", description="Simulated users and movies, written in the published csv format."),
    ]
    DEFAULT_BUILDER_CONFIG_NAME = "20m"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Optional: a release placed here, as the published zip (ml-20m.zip) or as the folder it unpacks to (ml-20m/), "
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
        """Builds nothing yet.

        Args:
          raw_path: a zip as published, or the folder it unpacks to; None downloads the release.
          max_malformed: fraction of a file's rows that may be malformed and left out; above it the build fails.
          simulated: what to simulate; config `simulated` only.
          **kwargs: `config`, `data_dir`, `version` of `tfds.core.DatasetBuilder`.

        Raises:
          ValueError: an argument does not fit the config or is out of range.
        """
        super().__init__(**kwargs)
        if not 0 <= max_malformed < 1:
            raise ValueError(f"max_malformed is a fraction of rows in [0, 1), got {max_malformed!r}.")
        is_simulated = self.builder_config.name == "simulated"
        if simulated is not None and not is_simulated:
            raise ValueError(f"simulated= belongs to config 'simulated', not to {self.builder_config.name!r}.")
        if raw_path is not None and is_simulated:
            raise ValueError("Config 'simulated' writes its own files: raw_path= has no meaning here.")
        if isinstance(simulated, dict):
            simulated = SimulatedConfig(**simulated)
        self._simulated = simulated or SimulatedConfig() if is_simulated else None
        self._raw_path = None if raw_path is None else Path(raw_path).expanduser()
        self._max_malformed = max_malformed

    def download_and_prepare(self, **kwargs) -> None:
        """As in TFDS, but a dataset that was prepared from another source is an error, never silently reused.

        Raises:
          ValueError: data_dir holds this config, built from other data or with more malformed rows than allowed.
          MalformedSourceError: the source cannot be used; nothing is left in data_dir.
        """
        if self.data_path.exists():
            self._check_prepared()
        super().download_and_prepare(**kwargs)

    def _check_prepared(self) -> None:
        metadata = self.info.metadata
        where = f"{self.data_dir} was built"
        advice = "Use another data_dir, or delete that folder to build it anew."
        if self._simulated and metadata["simulated"] != dataclasses.asdict(self._simulated):
            raise ValueError(f"{where} with {metadata['simulated']}, not with {self._simulated}. {advice}")
        if self._raw_path and metadata["fingerprint"] != source_lib.fingerprint(self._raw_path, self.builder_config.form):
            raise ValueError(f"{where} from other data than {self._raw_path} holds. {advice}")
        for file, rows in metadata["summary"]["files"].items():
            if rows["read"] - rows["kept"] > self._max_malformed * rows["read"]:
                raise ValueError(
                    f"{where} without {rows['read'] - rows['kept']} malformed rows of {file}, more than "
                    f"max_malformed={self._max_malformed:g} allows. {advice}"
                )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=timelines.FEATURES,
            metadata=tfds.core.MetadataDict(),
            homepage="https://grouplens.org/datasets/movielens/",
            # Users stay in the order of their ids: the same build gives the same dataset, and readers can count on it.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        # Inside the folder TFDS drops when the build fails; on success `_generate_examples` removes it.
        work = Path(self.data_dir) / _WORK_FOLDER
        work.mkdir(parents=True)
        form = self.builder_config.form
        if self._simulated:
            logger.info("Simulating %s", self._simulated)
            write_movielens_csv(self._simulated, work)
            source = work
        else:
            source = self._raw_path or self._find_release(dl_manager)
        logger.info("Reading %s", source)
        paths = source_lib.stage(source, form, work)
        report = RowReport()
        movies = read_movies(paths[form.movies_file], form, report)
        with contextlib.closing(timelines.open_database(work)) as connection:
            load_ratings(connection, paths[form.ratings_file], form, movies.raw_ids, report)
            report.check(self._max_malformed)
            summary = timelines.summarise_timelines(connection)
        if not summary["users"]:
            raise MalformedSourceError(f"No row of {form.ratings_file} is left.\n{report.text()}")
        self.info.metadata.update(
            movies.metadata(),
            rating_names=["", *form.rating_names],
            fingerprint=source_lib.fingerprint(source, form),
            simulated=dataclasses.asdict(self._simulated) if self._simulated else None,
            summary={"files": report.as_dict(), "items": len(movies.titles) - 1, **summary},
        )
        logger.info("%s", report.text())
        return {timelines.SPLIT: self._generate_examples(work)}

    def _find_release(self, dl_manager: tfds.download.DownloadManager) -> Path:
        """The release in the manual folder if it is there, or else downloaded."""
        release = self.builder_config.release
        # `manual_dir` raises when the folder does not exist or is empty.
        with contextlib.suppress(AssertionError):
            for name in (release, f"{release}.zip"):
                if (dl_manager.manual_dir / name).exists():
                    return Path(dl_manager.manual_dir / name)
        return Path(dl_manager.download(f"{_URL}{release}.zip"))

    def _generate_examples(self, work: Path) -> Iterator[tuple[int, dict]]:
        with contextlib.closing(timelines.open_database(work)) as connection:
            for key, (user_id, events) in enumerate(timelines.iterate_timelines(connection)):
                yield key, {"user_id": user_id, "events": events}
        shutil.rmtree(work)
