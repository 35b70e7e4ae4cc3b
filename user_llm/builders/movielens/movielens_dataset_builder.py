"""Builds MovieLens, published or simulated, into one timeline per user, and the catalogue."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from user_llm.builders.builder import SIMULATED, TimelineBuilder
from user_llm.builders.malformed import RowReport
from user_llm.builders.movielens.catalogue import read_movies
from user_llm.builders.movielens.format import CSV, DAT, FileFormat
from user_llm.builders.movielens.rules import MovieLensRules
from user_llm.builders.simulated import SimulatedConfig, write_movielens_csv

_URL = "https://files.grouplens.org/datasets/movielens"


@dataclasses.dataclass(eq=False)
class MovieLensConfig(tfds.core.BuilderConfig):
    """One release of MovieLens.

    Attributes:
      release: name of its zip and of the folder inside; empty for the simulated one.
      form: its file layout.
    """

    release: str = ""
    form: FileFormat = CSV


class Builder(TimelineBuilder, skip_registration=True):  # type: ignore[call-arg]  # TFDS has no types
    """One record a user; README.md beside this file says what is in it."""

    BUILDER_CONFIGS: ClassVar = [
        MovieLensConfig(name="20m", release="ml-20m", description="20,000,263 ratings, 1995-2015."),
        MovieLensConfig(name="25m", release="ml-25m", description="25,000,095 ratings, 1995-2019."),
        MovieLensConfig(name="1m", release="ml-1m", form=DAT, description="1,000,209 ratings, 2000-2003."),
        MovieLensConfig(name="latest_small", release="ml-latest-small", description="100,836 ratings, 1996-2018."),
        MovieLensConfig(name=SIMULATED, description="A seeded simulation, written in the published format."),
    ]
    DEFAULT_BUILDER_CONFIG_NAME = "20m"
    HOMEPAGE = "https://grouplens.org/datasets/movielens/"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Optional: a release put here, as the published zip (ml-20m.zip) or the folder it unpacks to (ml-20m/), "
        "is used instead of a download."
    )

    def _files(self) -> tuple[str, ...]:
        return self.builder_config.form.files

    def _urls(self) -> dict[str, str]:
        archive = f"{self.builder_config.release}.zip"
        return {archive: f"{_URL}/{archive}"}

    def _simulate(self, config: SimulatedConfig, folder: Path) -> None:
        write_movielens_csv(config, folder)

    def _rules(self, files: Mapping[str, Path], report: RowReport) -> MovieLensRules:
        form = self.builder_config.form
        movies = read_movies(files[form.movies_file], form, report)
        return MovieLensRules(files[form.ratings_file], form, movies.lists())
