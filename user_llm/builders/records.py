"""The records of a dataset, with the same bytes whoever writes them."""

import os
from collections.abc import Iterable
from typing import Any

from tensorflow_datasets.core import writer
from tensorflow_datasets.proto import tf_example_pb2


class SteadyWriter(writer.ExampleWriter):
    """Writes records as TFDS does, with the features in the order of their names.

    TFDS leaves that order to protobuf, which has another one in every process.
    """

    def write(self, path: os.PathLike, examples: Iterable[tuple[Any, bytes]]) -> Any:
        """Writes (key, record) into the file `path`."""
        return super().write(path, ((key, _in_order(record)) for key, record in examples))


def _in_order(record: bytes) -> bytes:
    return tf_example_pb2.Example.FromString(record).SerializeToString(deterministic=True)
