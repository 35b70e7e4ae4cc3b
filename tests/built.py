"""A built dataset as tests look at it: TFDS' records, and the metadata with the catalogue in plain lists."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from user_llm.builders.built import CATALOGUE
from user_llm.columns import Texts, open_column


def examples(builder: tfds.core.DatasetBuilder) -> Iterator[dict[str, Any]]:
    """The records in their order, as TFDS reads them."""
    return iter(builder.as_data_source(split="users"))


def metadata_of(builder: tfds.core.DatasetBuilder) -> dict[str, Any]:
    """`info.metadata` with what `catalogue_lists` gave, read from the columns."""
    folder = Path(builder.data_dir) / CATALOGUE
    ids, offsets = (open_column(folder, f"category_{name}").tolist() for name in ("ids", "offsets"))
    return {
        **builder.info.metadata,
        "titles": list(Texts.open(folder, "title")),
        "raw_ids": list(Texts.open(folder, "raw_id")),
        "category_names": list(Texts.open(folder, "category_name")),
        "item_categories": [ids[start:end] for start, end in itertools.pairwise(offsets)],
    }


class ReadByTensorFlow:
    """Makes TFDS' checks of a builder build TFRecord files: they read with tf.data, which ArrayRecord's have not."""

    def _make_builder(self, config=None):
        return self.dataset_class(data_dir=self.tmp_dir, config=config, version=self.VERSION, file_format="tfrecord")
