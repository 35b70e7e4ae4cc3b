"""The walk through a GGUF file: what the `gguf` library writes it reads; of damaged and hostile files it says where."""

import random
import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.gguf_files import TINY_LLAMA, write_gguf
from user_llm import gguf_header
from user_llm.checkpoints.huggingface import load_config
from user_llm.data.vocabularies import load_vocabulary
from user_llm.errors import CheckpointError, UserError
from user_llm.gguf_header import is_gguf, read_header

VALUES = {
    **TINY_LLAMA,
    "general.name": "Tiny 🐜",
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁a", "a", "▁"],
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0, -2.0, -3.0],
    "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1],
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}
TENSORS = {"token_embd.weight": np.ones((6, 32)), "output_norm.weight": np.ones(8)}


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return write_gguf(
        tmp_path_factory.mktemp("gguf") / "tiny.gguf", "llama", VALUES, TENSORS, {"token_embd.weight": "Q8_0"}
    )


@pytest.fixture(scope="module")
def header_bytes(file) -> int:
    return min(tensor.start for tensor in read_header(file).tensors.values())


def changed(file: Path, folder: Path, *edits: tuple[int, bytes]) -> Path:
    content = bytearray(file.read_bytes())
    for place, value in edits:
        content[place : place + len(value)] = value
    (folder / "changed.gguf").write_bytes(content)
    return folder / "changed.gguf"


def test_it_reads_what_the_library_reads(file):
    ours, theirs = read_header(file), gguf.GGUFReader(file)
    said = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.values == said
    assert said["general.name"] == "Tiny 🐜"
    assert [*ours.tensors] == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        found = ours.tensors[tensor.name]
        assert (found.start, found.size, found.kind.name) == (
            *(tensor.data_offset, tensor.n_bytes, tensor.tensor_type.name),
        )
        assert found.shape == tuple(reversed(tensor.shape.tolist()))


@pytest.mark.parametrize("alignment", [8, 4096])
def test_tensors_lie_at_multiples_of_what_the_file_says(tmp_path, alignment):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_custom_alignment(alignment)
    for name in "ab":
        writer.add_tensor(name, np.full(3, ord(name), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for name, tensor in read_header(tmp_path / "a.gguf").tensors.items():
        found = np.fromfile(tmp_path / "a.gguf", np.float32, 3, offset=tensor.start)
        np.testing.assert_array_equal(found, ord(name))


def test_numbers_of_every_type_are_read(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    said = {}
    kinds = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "bool", "uint64", "int64", "float64")
    for kind in kinds:
        said[kind] = True if kind == "bool" else 0.5 if kind.startswith("float") else 3 if kind[0] == "u" else -3
        getattr(writer, f"add_{kind}")(kind, said[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_header(tmp_path / "a.gguf").values == said | {"general.architecture": "llama"}


def test_a_file_cut_anywhere_is_named(file, header_bytes, tmp_path):
    whole = file.read_bytes()
    short = tmp_path / "short.gguf"
    for length in (*range(header_bytes), *range(header_bytes, len(whole), 16)):
        short.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"short\.gguf"):
            read_header(short)


def everything(file: Path) -> None:
    """All that reads no weights."""
    load_config(file)
    load_vocabulary(file)


def test_lengths_beyond_the_file_take_no_memory(file, header_bytes, tmp_path):
    """Whatever stands at a place may be a length: each is made huge in turn."""
    refused = []
    tracemalloc.start()
    try:
        for place in range(4, header_bytes - 8):
            huge = (2**63 + 1, 2**40, 2**31)[place % 3]
            try:
                read_header(changed(file, tmp_path, (place, struct.pack("<Q", huge))))
            except CheckpointError as error:
                refused.append(str(error))
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()
    assert len(refused) > header_bytes // 2
    assert max(map(len, refused)) < 1000


def test_any_damage_is_one_error_of_ours_or_none(file, header_bytes, tmp_path):
    """Flips anywhere in the header, as far as options and tokenizer."""
    chance = random.Random(0)
    refused = []
    for _ in range(1500):
        flips = [(chance.randrange(header_bytes), bytes([chance.randrange(256)])) for _ in range(chance.randint(1, 3))]
        try:
            everything(changed(file, tmp_path, *flips))
        except UserError as error:
            refused.append(str(error))
    assert len(refused) > 500
    assert all("changed.gguf" in message for message in refused)
    everything(file)


def place_of(file: Path, text: str) -> int:
    return file.read_bytes().index(text.encode())


def refuses(file: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        read_header(file)
    assert str(file) in str(error.value)


def test_other_versions_and_byte_orders_are_named(file, tmp_path):
    refuses(changed(file, tmp_path, (4, b"\1")), "is of version 1; only little-endian GGUF of version 2 or 3")
    refuses(changed(file, tmp_path, (4, b"\0\0\0\3")), "is big-endian; only little-endian")
    refuses(changed(file, tmp_path, (0, b"GGML")), "does not begin with 'GGUF'")
    assert read_header(changed(file, tmp_path, (4, b"\2"))).values == read_header(file).values


def test_what_stands_twice_or_overlaps_is_named(file, tmp_path):
    key = place_of(file, "tokenizer.ggml.bos_token_id")
    refuses(
        changed(file, tmp_path, (key, b"tokenizer.ggml.eos_token_id")), "the key tokenizer.ggml.eos_token_id stands"
    )
    tensors = {"one.weight": np.ones(8), "two.weight": np.ones(8)}
    two = write_gguf(tmp_path / "two.gguf", "llama", {}, tensors)
    name = place_of(two, "two.weight")
    refuses(changed(two, tmp_path, (name, b"one")), "the tensor one.weight stands twice")
    offset = name + len("two.weight") + 4 + 8 + 4
    refuses(changed(two, tmp_path, (offset, struct.pack("<Q", 0))), "one.weight and two.weight overlap")
    refuses(changed(two, tmp_path, (offset, struct.pack("<Q", 4))), "begins at 4, which is no multiple of 32")
    refuses(changed(two, tmp_path, (offset, struct.pack("<Q", 2**20))), r"two.weight needs bytes 1,048,\d+ to")
    refuses(
        changed(two, tmp_path, (offset - 4, b"\x10")), r"two.weight is of GGML's type 16; supported: F32, F16, Q4_0"
    )
    refuses(changed(two, tmp_path, (offset - 4, b"\x02")), "rows of 8, which blocks of 32 do not fill")
    refuses(changed(two, tmp_path, (offset - 12, b"\0")), "two.weight has a dimension of 0")
    refuses(changed(two, tmp_path, (offset - 16, b"\5")), "two.weight has 5 dimensions; expected 1 to 4")


def test_arrays_of_arrays_and_parts_of_a_file_are_refused(file, tmp_path):
    kind = place_of(file, "tokenizer.ggml.token_type") + len("tokenizer.ggml.token_type") + 4
    refuses(changed(file, tmp_path, (kind, b"\x09")), "tokenizer.ggml.token_type has type 9; expected a number, a text")
    part = write_gguf(tmp_path / "part.gguf", "llama", {"split.count": 3}, TENSORS)
    refuses(part, r"is one of 3 parts: join them")
    refuses(write_gguf(tmp_path / "a.gguf", "llama", {"general.alignment": 24}, TENSORS), "24; expected a power of 2")


def test_a_header_of_endless_length_is_not_read_to_its_end(file, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_header, "MOST_BYTES", 512)
    refuses(file, "are left of the first 512 bytes, all that is looked at")
    monkeypatch.undo()
    monkeypatch.setattr(gguf_header, "MOST_ENTRIES", 10)
    refuses(file, "are told of; expected 10 at most")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    refuses(tmp_path / "none.gguf", r"cannot be read \(No such file or directory\)")
    assert is_gguf("a/b.gguf")
    assert not is_gguf("a.gguf/config.json")
