"""Builds files of a user's own into one timeline per user, and the catalogue."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from user_llm.builders import source as source_lib
from user_llm.builders.builder import TimelineBuilder
from user_llm.builders.custom.config import CustomConfig
from user_llm.builders.custom.rules import CustomRules
from user_llm.builders.malformed import RowReport
from user_llm.errors import UserError

_EXAMPLE = Path(__file__).parent / "dummy_data"


class Builder(TimelineBuilder, skip_registration=True):  # type: ignore[call-arg]  # TFDS has no types
    """One record a user; README.md beside this file says what is in it.

    `config` is a `CustomConfig`, to build from its files; or the name of one that is built, to read it.
    """

    BUILDER_CONFIGS: ClassVar = [
        CustomConfig(
            name="example",
            description="Four purchases, the example of README.md.",
            files=(_EXAMPLE / "purchases.csv",),
            columns={
                "user": "customer",
                "item": "sku",
                "timestamp": "bought_at",
                "rating": "stars",
                "review": "comment",
            },
            items=(_EXAMPLE / "products.csv",),
            item_columns={"item": "sku", "title": "name", "category": "kinds"},
        )
    ]

    def __init__(self, *, config: CustomConfig | str | None = None, **kwargs):
        """As `TimelineBuilder`, but the files are the config's.

        Raises:
          UserError: `raw_path` is given, or the name is not one of a custom dataset.
        """
        if kwargs.get("raw_path") is not None:
            raise UserError("a custom dataset is built from the files of its config: leave raw_path out.")
        if isinstance(config, str) and config not in self.builder_configs:
            config = CustomConfig(name=config)
        super().__init__(config=config, **kwargs)

    def download_and_prepare(self, **kwargs) -> None:
        """As in `TimelineBuilder`; nothing is ever downloaded.

        Raises:
          UserError: the dataset is not built yet and the config names no files to build it from.
        """
        if not self.builder_config.files and not self.data_path.exists():
            name = f"custom/{self.builder_config.name}"
            raise UserError(
                f"{name} is not in {Path(self.data_dir).parents[2]}: build it first: user-llm build "
                f"{name} --files … --columns user=… item=… timestamp=… and the same --data_dir."
            )
        super().download_and_prepare(**kwargs)

    def _check_prepared(self) -> None:
        super()._check_prepared()
        config, metadata = self.builder_config, self.info.metadata
        if not config.files:
            return
        advice = "Use another name or data_dir, or delete that folder to build anew."
        if metadata["custom"] != config.meaning():
            raise UserError(f"{self.data_dir} was built with {metadata['custom']}, not {config.meaning()}. {advice}")
        if metadata["fingerprint"] != source_lib.fingerprint(config.named_files()):
            raise UserError(
                f"{self.data_dir} was built from other data than {', '.join(map(str, config.files))}. {advice}"
            )

    def _raw_files(self, dl_manager: tfds.download.DownloadManager, work: Path) -> dict[str, Path]:
        return self.builder_config.named_files()

    def _rules(self, files: Mapping[str, Path], report: RowReport) -> CustomRules:
        return CustomRules(self.builder_config)
