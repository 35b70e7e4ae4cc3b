"""Tensors of a checkpoint, and their places among our parameters: what a row of a family's table means.

Between the two lies at most a reshape, a transposition and a cut: their matrices have two dimensions, ours keep heads
apart. All of it works on slices, so that a device's slice of a parameter is all that is read for it.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Sharding
from safetensors import SafetensorError, safe_open

from user_llm.errors import CheckpointError
from user_llm.models.parameters import Parameters, Shaped

FLOATS = ("F64", "F32", "F16", "BF16")
Index = tuple[slice, ...]
ANEW = "fetch or copy it anew"
_BLOCK = 1 << 20  # numbers looked at in one go
_ALIGNMENT = 64
_ROWS = 64  # of a table, of which some are chosen, that are read in one go


@contextlib.contextmanager
def open_tensors(file: Path) -> Iterator[Any]:
    """A safetensors file, as the library hands it out.

    Raises:
      CheckpointError: it is none, or cannot be read.
    """
    try:
        handle = safe_open(file, framework="numpy")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read, perhaps cut short ({error}): {ANEW}.") from error
    with handle:
        yield handle


def check_dtype(theirs: Any, name: str) -> None:
    """Raises `CheckpointError` where a slice of a file holds no floats; `name` says of which file and key it is."""
    if theirs.get_dtype() not in FLOATS:
        raise CheckpointError(f"{name} has dtype {theirs.get_dtype()}; quantised weights are not supported.")


def check_finite(values: np.ndarray, name: str) -> None:
    """Raises `CheckpointError` where an array holds NaN or infinity; `name` says of which file and key it is.

    Block by block: a mask of the whole would take half of a bfloat16 tensor's memory besides, and longer.
    """
    flat = values.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        if not np.isfinite(flat[start : start + _BLOCK]).all():
            raise CheckpointError(f"{name} holds NaN or infinity in {values.dtype}: {ANEW}.")


def empty(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """As `np.empty`, but at an address at which JAX on CPU takes an array over, in place of a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


class ChosenRows:
    """The `rows` of a tensor (sliceable), ascending, as if it had no others: what lies between them is hardly read."""

    def __init__(self, theirs: Any, rows: np.ndarray):
        self._theirs, self._rows = theirs, rows

    def __getitem__(self, index: Index) -> np.ndarray:
        rows, rest = self._rows[index[0]], index[1:]
        blocks = np.split(rows, np.flatnonzero(np.diff(rows // _ROWS)) + 1)
        read = [self._theirs[(slice(one[0], one[-1] + 1), *rest)][one - one[0]] for one in blocks if len(one)]
        return np.concatenate(read) if read else self._theirs[(slice(0, 0), *rest)]


class Row(NamedTuple):
    """One of their keys and one of our paths; "{layer}" stands for a layer's number in both.

    Attributes:
      inputs: leading dimensions of ours that are the matrix's inputs (0: a bias, all outputs). None: a plain copy.
      transposed: theirs is `[outputs, inputs]`, as torch's Linear; else `[inputs, outputs]`, as GPT-2's Conv1D.
      part, parts: theirs holds the outputs of `parts` of our arrays side by side, of which this is number `part`.
    """

    theirs: str
    ours: str
    inputs: int | None = None
    transposed: bool = True
    part: int = 0
    parts: int = 1

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of theirs, for `shape` of one layer of ours."""
        if self.inputs is None:
            return shape
        inputs, outputs = math.prod(shape[: self.inputs]), math.prod(shape[self.inputs :]) * self.parts
        if self.inputs == 0:
            return (outputs,)
        return (outputs, inputs) if self.transposed else (inputs, outputs)

    def read(self, theirs: Any, shape: tuple[int, ...], index: Index) -> np.ndarray:
        """The slice `index` of ours. Of `theirs` (sliceable) only that is read, but for inner dimensions' cuts."""
        if self.inputs is None:
            return theirs[index]
        cuts, inner, sizes = [], [], []
        for offset, dims, slices in (
            (0, shape[: self.inputs], index[: self.inputs]),
            (self.part, shape[self.inputs :], index[self.inputs :]),
        ):
            if dims:
                start, stop, _ = slices[0].indices(dims[0])
                first, rest = offset * math.prod(dims), math.prod(dims[1:])
                cuts.append(slice(first + start * rest, first + stop * rest))
                inner += [slice(None), *slices[1:]]
                sizes += [stop - start, *dims[1:]]
        swapped = self.transposed and len(cuts) == 2
        values = theirs[tuple(cuts[::-1])].T if swapped else theirs[tuple(cuts)]
        return values.reshape(sizes)[tuple(inner)]

    def write(self, ours: np.ndarray) -> np.ndarray:
        """Theirs (or its part) of one layer of ours."""
        if not self.inputs:
            return ours if self.inputs is None else ours.reshape(-1)
        matrix = ours.reshape(math.prod(ours.shape[: self.inputs]), -1)
        return matrix.T if self.transposed else matrix


class Tensor(NamedTuple):
    """One of their tensors (or a part of it) and its place: our path, and a row of it where layers are stacked."""

    key: str
    path: str
    layer: int | None
    row: Row


Shapes = Mapping[str, Shaped]


def tensors_of(rows: Iterable[Row], shapes: Shapes, num_layers: int, scan_layers: bool) -> list[Tensor]:
    """The tensors of a model with parameters `shapes`, in the table's order. A row the model has no parameter for
    (a bias, say, or the head where embeddings are tied) gives none.
    """
    found = []
    for row in rows:
        for layer in range(num_layers) if "{layer}" in row.ours else (None,):
            stacked = scan_layers and layer is not None
            path = row.ours.replace("{layer}/", "") if stacked else row.ours.format(layer=layer)
            if path in shapes:
                found.append(Tensor(row.theirs.format(layer=layer), path, layer if stacked else None, row))
    return found


def read_parameters(
    tensors: Sequence[Tensor],
    theirs: Mapping[str, Any],
    files: Mapping[str, Path],
    shapes: Shapes,
    shardings: Mapping[str, Sharding] | None,
) -> Parameters:
    """Our parameters, one at a time and each device's slice apart, so that no second copy of a model is in memory.

    Args:
      tensors: where everything goes; theirs, files: key → safetensors slice, and the file it is of.
      shapes: path → our shape and dtype.
      shardings: path → how the parameter lies on devices; None: whole, on the default device.

    Raises:
      CheckpointError: a slice holds NaN or infinity, which would make all answers NaN.
    """
    by_path: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        by_path.setdefault(tensor.path, []).append(tensor)
    loaded = {}
    for path, parts in by_path.items():
        read = _reader(parts, theirs, files, shapes[path])
        if shardings is None:
            # Not `jnp.asarray`, which copies always, and twice what does not lie as `empty` lays it.
            loaded[path] = jax.device_put(read((slice(None),) * len(shapes[path].shape)))
        else:
            shape, sharding = shapes[path].shape, shardings[path]
            loaded[path] = jax.make_array_from_callback(shape, sharding, read)  # type: ignore[arg-type]  # never None
    return loaded


def _reader(
    parts: Sequence[Tensor], theirs: Mapping[str, Any], files: Mapping[str, Path], ours: Shaped
) -> Callable[[Index], np.ndarray]:
    """Index → that slice of one parameter, in its dtype. Devices that hold the same slice share one reading."""
    known: dict[tuple, np.ndarray] = {}

    def read(index: Index) -> np.ndarray:
        bounds = tuple(cut.indices(size)[:2] for cut, size in zip(index, ours.shape, strict=True))
        if bounds in known:
            return known[bounds]
        with np.errstate(over="ignore"):  # what our dtype cannot hold is infinite then, and found
            if parts[0].layer is None:
                (part,) = parts
                values = np.ascontiguousarray(part.row.read(theirs[part.key], ours.shape, index), ours.dtype)
                check_finite(values, f"{files[part.key]}: {part.key}")
            else:
                values = empty([stop - start for start, stop in bounds], ours.dtype)
                for place, part in zip(values, parts[slice(*bounds[0])], strict=True):
                    place[...] = part.row.read(theirs[part.key], ours.shape[1:], index[1:])
                    check_finite(place, f"{files[part.key]}: {part.key}")
        known[bounds] = values
        return values

    return read
