"""Columns in files, against NumPy's own and plain lists."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from user_llm.columns import ColumnWriter, Texts, TextsWriter, open_column, write_column

TEXTS = ["", "a", "süß", "日本\nb", "", "\x00", "🙂" * 40]


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
@pytest.mark.parametrize("pieces", [[], [0], [3], [5, 0, 7], [1] * 300])
def test_a_column_in_pieces_is_the_column(tmp_path, dtype, pieces):
    values = [np.arange(size).astype(dtype) for size in pieces]
    with ColumnWriter(tmp_path, "pieces", dtype) as writer:
        for piece in values:
            writer.append(piece.astype(np.int64))  # of another type
    whole = np.concatenate([np.zeros(0, dtype), *values])
    np.save(tmp_path / "whole.npy", whole)
    assert (tmp_path / "pieces.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    opened = open_column(tmp_path, "pieces")
    assert opened.dtype == dtype
    np.testing.assert_array_equal(opened, whole)
    assert not opened.flags.writeable


def resident():
    """Bytes of memory that this process has, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_column_takes_no_memory_of_its_own(tmp_path):
    write_column(tmp_path, "numbers", np.arange(1 << 20))
    before = resident()
    opened = [open_column(tmp_path, "numbers") for _ in range(200)]  # 1.7 GB, were they read
    assert int(opened[-1].sum()) == (1 << 20) * ((1 << 20) - 1) // 2
    assert resident() - before < 200 << 20


@settings(max_examples=50, deadline=None)
@given(pieces=st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=5), max_size=5))
def test_texts_in_pieces_are_the_texts(tmp_path_factory, pieces):
    folder = tmp_path_factory.mktemp("texts")
    with TextsWriter(folder, "some") as writer:
        for piece in pieces:
            encoded = [text.encode() for text in piece]
            writer.append(np.frombuffer(b"".join(encoded), np.uint8), np.array([*map(len, encoded)], np.int64))
    expected = [text for piece in pieces for text in piece]
    assert list(Texts.open(folder, "some")) == expected
    Texts.of(expected).save(folder, "whole")
    for part in ("bytes", "offsets"):
        assert (folder / f"some_{part}.npy").read_bytes() == (folder / f"whole_{part}.npy").read_bytes()


def test_texts_are_a_sequence(tmp_path):
    Texts.of(TEXTS).save(tmp_path, "some")
    texts = Texts.open(tmp_path, "some")
    assert len(texts) == len(TEXTS)
    assert [texts[place] for place in range(-len(TEXTS), len(TEXTS))] == TEXTS * 2
    assert texts[np.int32(2)] == "süß"
    for part in (slice(None), slice(1, 4), slice(None, None, -2), slice(5, 2)):
        assert texts[part] == TEXTS[part]
    assert texts.take(np.array([6, 0, 6], np.int32)) == [TEXTS[6], TEXTS[0], TEXTS[6]]
    assert texts.take(np.zeros(0, np.int64)) == []
    assert "süß" in texts
    assert texts.index("日本\nb") == 3
    for place in (len(TEXTS), -len(TEXTS) - 1):
        with pytest.raises(IndexError):
            texts[place]


def test_many_texts_come_in_their_order():
    many = [str(number) for number in range(200_000)]  # more than are decoded at once
    assert list(Texts.of(many)) == many
