"""Wiring of the host, bound by gin (`configs/gin/`): nothing here can change a reported number."""

import dataclasses
import re
from collections.abc import Sequence

import gin

from user_llm.errors import UserError

_PYTHONS_OWN = re.compile(r"malformed node or string[^<]*<[^>]*> ")  # ahead of what gin says in words


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Host:
    """How this machine runs an experiment.

    Attributes:
      reader_threads: threads that gather batches; 0 = none besides the training's own.
      prefetch_batches: batches gathered ahead of the step that uses them.
      tensorboard: whether TensorBoard events are written beside metrics.jsonl.
      compilation_cache: folder that keeps compiled programs between runs; "" = none.
    """

    reader_threads: int = 2
    prefetch_batches: int = 4
    tensorboard: bool = True
    compilation_cache: str = ""


def bound_host(files: Sequence[str], bindings: Sequence[str]) -> Host:
    """The host as gin's files and bindings, which win, wire it.

    Raises:
      UserError: what gin cannot read, with its flag; a value that is none of its key's.
    """
    for given, parse, name in ((files, gin.parse_config_file, "gin_file"), (bindings, gin.parse_config, "gin")):
        for text in given:
            try:
                parse(text)
            except Exception as error:  # gin has no class of its own, and all it says is about what it parses
                reason = _PYTHONS_OWN.sub("", " ".join(str(error).split()))
                raise UserError(f'--{name}={text}: {reason}; expected as in --gin="Host.tensorboard=False"') from error
    gin.finalize()
    host = Host()
    for field in dataclasses.fields(Host):
        value = getattr(host, field.name)
        if type(value) is not field.type or (field.type is int and value < 0):
            what: dict[object, str] = {int: "a whole number of at least 0", bool: "True or False", str: "text"}
            raise UserError(f"Host.{field.name}={value!r}, of --gin or --gin_file: expected {what[field.type]}")
    return host
