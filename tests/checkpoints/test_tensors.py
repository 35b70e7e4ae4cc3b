"""Slices of parameters against whole tensors, laid out by NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from user_llm.checkpoints.tensors import Row, empty


class Recorded:
    """A tensor in a file: counts the numbers that are read."""

    def __init__(self, values: np.ndarray):
        self.values, self.read = values, 0

    def __getitem__(self, index) -> np.ndarray:
        found = self.values[index]
        self.read += found.size
        return found


ROWS = {
    "copy": (Row("t", "o"), (8, 6), lambda ours: ours),
    "bias": (Row("t", "o", 0), (4, 6), lambda ours: ours.reshape(24)),
    "linear": (Row("t", "o", 1), (8, 4, 6), lambda ours: ours.reshape(8, 24).T),
    "linear_of_heads": (Row("t", "o", 2), (4, 6, 8), lambda ours: ours.reshape(24, 8).T),
    "conv1d": (Row("t", "o", 2, transposed=False), (4, 6, 8), lambda ours: ours.reshape(24, 8)),
    "fused": (
        Row("t", "o", 1, False, part=1, parts=3),
        (8, 4, 6),
        lambda ours: np.concatenate([np.full((8, 24), -1), ours.reshape(8, 24), np.full((8, 24), -2)], axis=1),
    ),
    "fused_bias": (
        Row("t", "o", 0, False, part=2, parts=3),
        (4, 6),
        lambda ours: np.concatenate([np.full(48, -1), ours.reshape(24)]),
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_any_slice_is_that_of_the_whole(name):
    row, shape, lay_out = ROWS[name]
    ours = np.arange(np.prod(shape)).reshape(shape)
    theirs = lay_out(ours)
    assert row.their_shape(shape) == theirs.shape
    cuts = [(slice(None), slice(0, size // 2), slice(size // 2, size)) for size in shape]
    for index in itertools.product(*cuts):
        source = Recorded(theirs)
        np.testing.assert_array_equal(row.read(source, shape, index), ours[index])
        # Heads are read whole: only a group's first dimension is cut in the file.
        first = range(len(shape)) if row.inputs is None else (0, row.inputs)
        wider = tuple(cut if dim in first else slice(None) for dim, cut in enumerate(index))
        assert source.read == ours[wider].size


@pytest.mark.parametrize("name", [name for name, (row, _, _) in ROWS.items() if row.parts == 1])
def test_what_is_written_is_what_was_read(name):
    row, shape, lay_out = ROWS[name]
    ours = np.arange(np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(row.write(ours), lay_out(ours))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_jax_takes_an_array_over_without_a_copy_and_gives_it_to_no_program(dtype):
    array = empty((64, 33), jnp.dtype(dtype))
    assert (array.shape, array.dtype) == ((64, 33), jnp.dtype(dtype))
    array[...] = 1
    taken = jax.device_put(array)
    assert taken.unsafe_buffer_pointer() == array.ctypes.data
    doubled = jax.jit(lambda values: values * 2, donate_argnums=0)(taken)
    assert np.asarray(doubled).max() == 2
    assert array.max() == 1
