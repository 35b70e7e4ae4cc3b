"""The weights of a GGUF file, as `safetensors` hands out those of a Hugging Face checkpoint: by key, and in slices.

Numbers are brought from their blocks into the parameter's dtype a few rows at a time. The file is read, not mapped:
pages of a mapped one would count as this process' memory, up to the whole file.
"""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from user_llm.checkpoints.gguf.names import Names, Place
from user_llm.checkpoints.gguf.options import architecture_of, read_options
from user_llm.checkpoints.gguf.rope_factors import ROPE_FACTORS
from user_llm.checkpoints.tensors import ANEW, CheckpointError, empty
from user_llm.gguf_header import Header, TensorInfo, read_header

_NUMBERS = 1 << 18  # brought out of their blocks in one go: they stay in the processor's cache


@contextmanager
def open_weights(path: Path, dtype: str) -> Iterator["Weights"]:
    """The weights in a GGUF file, as numbers of `dtype`.

    Raises:
      CheckpointError: the file cannot be read, or is of no model we can hold.
    """
    header = read_header(path)
    options, names = read_options(header), architecture_of(header).names
    with path.open("rb") as file:
        yield Weights(file.fileno(), header, names, options, jnp.dtype(dtype))


class Weights:
    """Keys and slices, by the names and with the methods of `safetensors.safe_open`."""

    def __init__(self, file: int, header: Header, names: Names, options: Mapping[str, Any], dtype: np.dtype):
        self._file, self._path, self._options, self._dtype = file, header.file, options, dtype
        places = {names.place(name): info for name, info in header.tensors.items() if name != ROPE_FACTORS}
        self._tensors = {place.key: (place, info) for place, info in places.items()}

    def keys(self) -> list[str]:
        return list(self._tensors)

    def get_slice(self, key: str) -> "Slice":
        place, info = self._tensors[key]
        heads = self._options[place.heads] if place.heads else 0
        return Slice(self._file, self._path, info, place, heads, self._dtype)


class Slice:
    """One tensor, of which an index reads the rows it needs: with the shape and in the order of Hugging Face's."""

    def __init__(self, file: int, path: Path, info: TensorInfo, place: Place, heads: int, dtype: np.dtype):
        self._file, self._path, self._info = file, path, info
        self._place, self._heads, self._dtype = place, heads, dtype

    def get_shape(self) -> list[int]:
        return list(reversed(self._info.shape)) if self._place.transposed else list(self._info.shape)

    def get_dtype(self) -> str:
        """What the numbers come as: their blocks are no concern of the reader's."""
        return "F32"

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """The slice; of interleaved heads, which must be whole ones, one row a number of the first dimension."""
        if self._place.transposed:
            return self._read(index[::-1]).T
        values = self._read(index)
        if self._heads:
            half = self._info.shape[0] // self._heads // 2
            pairs = values.reshape(-1, half, 2, *values.shape[1:])
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        return values

    def _read(self, index: tuple[slice, ...]) -> np.ndarray:
        """The slice as it lies in the file: `[columns]` or `[rows, columns]`."""
        width = self._info.shape[-1]
        rows, columns = (slice(None), *index)[-2:]
        start, stop, _ = rows.indices(math.prod(self._info.shape[:-1]))
        found = empty((stop - start, len(range(*columns.indices(width)))), self._dtype)
        step = max(1, _NUMBERS // width)
        for first in range(start, stop, step):
            last = min(first + step, stop)
            found[first - start : last - start] = self._numbers(first, last)[:, columns]
        return found.reshape(found.shape[2 - len(index) :])

    def _numbers(self, first: int, last: int) -> np.ndarray:
        """Rows `first` to `last` in float32."""
        # Imported here, as only GGUF files need it.
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        width, kind = self._info.shape[-1], self._info.kind
        size = width // kind.numbers * kind.bytes
        data = os.pread(self._file, (last - first) * size, self._info.start + first * size)
        if len(data) != (last - first) * size:
            raise CheckpointError(f"{self._path} has been cut short while {self._info.name} was read: {ANEW}.")
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are found where slices are checked
            # As one row, since rows of the library are handled some at a time, in Python.
            numbers = dequantize(np.frombuffer(data, np.uint8)[None], GGMLQuantizationType[kind.name])
            return numbers.reshape(last - first, width) - np.float32(self._place.less)
