"""Builds UCSD's Amazon reviews, published or simulated, into one timeline per user, and the catalogue."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from user_llm.builders.amazon_reviews.format import RELEASES, Release
from user_llm.builders.amazon_reviews.rules import AmazonRules
from user_llm.builders.builder import SIMULATED, TimelineBuilder
from user_llm.builders.malformed import RowReport
from user_llm.builders.pieces import Source
from user_llm.builders.simulated import SimulatedConfig
from user_llm.builders.simulated_json import SIMULATED as SIMULATED_CATEGORY
from user_llm.builders.simulated_json import write_amazon_json


@dataclasses.dataclass(eq=False)
class AmazonConfig(tfds.core.BuilderConfig):
    """One category of one release.

    Attributes:
      release: whose files.
      category: as the files spell it.
      five_core: whether every user and product has five reviews.
      review: the field that is the dataset's review, `summary` or `reviewText`.
    """

    release: Release = RELEASES[0]
    category: str = ""
    five_core: bool = True
    review: str = "summary"


def _configs() -> Iterator[AmazonConfig]:
    yield AmazonConfig(
        name=SIMULATED, category=SIMULATED_CATEGORY, description="A seeded simulation, written in the 2018 format."
    )
    for release in RELEASES:
        for category in release.categories:
            for five_core in (True, False):
                for review in ("summary", "reviewText"):
                    yield AmazonConfig(
                        name=f"{category.lower()}_{release.year}"
                        + ("" if five_core else "_full")
                        + ("" if review == "summary" else "_text"),
                        description=f"{category} of {release.year}, {'5-core' if five_core else 'all reviews'}, "
                        f"with the review's {'summary' if review == 'summary' else 'text'}.",
                        release=release,
                        category=category,
                        five_core=five_core,
                        review=review,
                    )


class Builder(TimelineBuilder, skip_registration=True):  # type: ignore[call-arg]  # TFDS has no types
    """One record a user; README.md beside this file says what is in it, and by which rules."""

    BUILDER_CONFIGS: ClassVar = list(_configs())
    DEFAULT_BUILDER_CONFIG_NAME = "movies_and_tv_2018"
    HOMEPAGE = "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/"
    OPTIONS: ClassVar = {"category_level": 1}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Optional: the two files put here under their published names (Movies_and_TV_5.json.gz and "
        "meta_Movies_and_TV.json.gz) are used instead of a download."
    )

    def _files(self) -> tuple[str, ...]:
        return tuple(self._urls())

    def _optional_files(self) -> tuple[str, ...]:
        return self._files()[1:]

    def _urls(self) -> dict[str, str]:
        config = self.builder_config
        reviews = config.release.reviews_5core if config.five_core else config.release.reviews
        urls = [pattern.format(config.category) for pattern in (reviews, config.release.metadata)]
        return {url.rpartition("/")[2]: url for url in urls}

    def _simulate(self, config: SimulatedConfig, folder: Path) -> None:
        write_amazon_json(config, folder)

    def _rules(self, files: Mapping[str, Path], report: RowReport) -> AmazonRules:
        reviews, metadata = self._files()
        return AmazonRules(
            reviews=Source(reviews, files[reviews]),
            metadata=Source(metadata, files[metadata], of_items=True) if metadata in files else None,
            review=self.builder_config.review,
            literal=self.builder_config.release.literal_metadata,
            level=int(self._options["category_level"]),
        )
