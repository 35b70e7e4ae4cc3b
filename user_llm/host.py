"""Wiring of the host, bound by gin (`configs/gin/`): nothing here can change a reported number."""

import dataclasses

import gin


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Host:
    """How this machine runs an experiment.

    Attributes:
      reader_threads: threads that gather batches.
      prefetch_batches: batches gathered ahead of the step that uses them.
      tensorboard: whether TensorBoard events are written beside metrics.jsonl.
      compilation_cache: folder that keeps compiled programs between runs; "" = none.
    """

    reader_threads: int = 2
    prefetch_batches: int = 4
    tensorboard: bool = True
    compilation_cache: str = ""
