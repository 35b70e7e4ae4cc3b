"""Builds Google Local reviews of a state, published or simulated, into one timeline per user."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from user_llm.builders.builder import SIMULATED, TimelineBuilder
from user_llm.builders.google_local.rules import GoogleLocalRules
from user_llm.builders.malformed import RowReport
from user_llm.builders.pieces import Source
from user_llm.builders.simulated import SimulatedConfig
from user_llm.builders.simulated_json import SIMULATED as SIMULATED_STATE
from user_llm.builders.simulated_json import write_google_json

_URL = "https://mcauleylab.ucsd.edu/public_datasets/gdrive/googlelocal"

_STATES = (
    "Alabama Alaska Arizona Arkansas California Colorado Connecticut Delaware District_of_Columbia Florida Georgia "
    "Hawaii Idaho Illinois Indiana Iowa Kansas Kentucky Louisiana Maine Maryland Massachusetts Michigan Minnesota "
    "Mississippi Missouri Montana Nebraska Nevada New_Hampshire New_Jersey New_Mexico New_York North_Carolina "
    "North_Dakota Ohio Oklahoma Oregon Pennsylvania Rhode_Island South_Carolina South_Dakota Tennessee Texas Utah "
    "Vermont Virginia Washington West_Virginia Wisconsin Wyoming other"
)
"""As the release writes them in the names of its files."""


@dataclasses.dataclass(eq=False)
class GoogleLocalConfig(tfds.core.BuilderConfig):
    """The reviews of one state in the release of 2021.

    Attributes:
      state: as in the names of the files.
      core: "_10" for the 10-core, in which users and places have ten reviews or more each; empty for all reviews.
    """

    state: str = ""
    core: str = "_10"


class Builder(TimelineBuilder, skip_registration=True):  # type: ignore[call-arg]  # TFDS has no types
    """One record a user; README.md beside this file says what is in it."""

    BUILDER_CONFIGS: ClassVar = [
        *(
            GoogleLocalConfig(
                name=f"{state.lower()}{'' if core else '_full'}",
                state=state,
                core=core,
                description=f"{state.replace('_', ' ')}, {'10-core' if core else 'all reviews'}, up to 2021.",
            )
            for state in _STATES.split()
            for core in ("_10", "")
        ),
        GoogleLocalConfig(
            name=SIMULATED, state=SIMULATED_STATE, description="A seeded simulation, written in the published format."
        ),
    ]
    DEFAULT_BUILDER_CONFIG_NAME = "new_york"
    HOMEPAGE = "https://mcauleylab.ucsd.edu/public_datasets/gdrive/googlelocal/"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Optional: the published files put here (review-New_York_10.json.gz and meta-New_York.json.gz) are used "
        "instead of a download."
    )

    def _files(self) -> tuple[str, ...]:
        config = self.builder_config
        return f"meta-{config.state}.json.gz", f"review-{config.state}{config.core}.json.gz"

    def _urls(self) -> dict[str, str]:
        return {name: f"{_URL}/{name}" for name in self._files()}

    def _simulate(self, config: SimulatedConfig, folder: Path) -> None:
        write_google_json(config, folder)

    def _rules(self, files: Mapping[str, Path], report: RowReport) -> GoogleLocalRules:
        meta, reviews = self._files()
        return GoogleLocalRules(Source(meta, files[meta], of_items=True), Source(reviews, files[reviews]))
