"""TensorBoard's event files, in its own format and without TensorFlow, which takes seconds to import."""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class EventFile:
    """A new file of scalars in `folder`."""

    def __init__(self, folder: Path):
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((folder / name).open("wb"))
        self._write(file_version="brain.Event:2")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars by tag, which are in the file when it returns."""
        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(step=step, summary=Summary(value=scalars))

    def _write(self, **fields) -> None:
        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())
        self._records.flush()

    def close(self) -> None:
        """Closes the file."""
        self._records.close()
