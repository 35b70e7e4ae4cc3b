"""Some rows of a checkpoint's tables against all of them, and what the softmax over fewer pieces says of a text."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

import user_llm
from tests.gguf_files import TINY_LLAMA, write_gguf
from user_llm.api import TextModel
from user_llm.checkpoints.huggingface import (
    CheckpointError,
    load_config,
    load_parameters,
    load_tables,
    save_language_model,
)
from user_llm.checkpoints.tensors import ChosenRows
from user_llm.data.trimmed_vocabulary import trimmed
from user_llm.models import parameters
from user_llm.models.language_model import LanguageModel, LanguageModelConfig
from user_llm.parallel import rules
from user_llm.parallel.mesh import make_mesh

PIECES, WIDTH = 300, 32
UNTIED = LanguageModelConfig(
    vocab_size=PIECES,
    num_layers=1,
    width=WIDTH,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    hidden=8,
    tie_embeddings=False,
)
ROWS = np.array([0, 1, 2, 63, 64, 130, 131, 200, 298, 299])


def of_safetensors(folder, tied):
    config = dataclasses.replace(UNTIED, tie_embeddings=tied)
    save_language_model(jax.jit(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))(), folder)
    return folder


def of_gguf(folder, kind):
    values = TINY_LLAMA | {"llama.embedding_length": WIDTH, "llama.feed_forward_length": 12}
    random = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (PIECES, WIDTH),
        "output.weight": (PIECES, WIDTH),
        "output_norm.weight": (WIDTH,),
        **{f"blk.0.{name}.weight": (WIDTH, WIDTH) for name in ("attn_q", "attn_k", "attn_v", "attn_output")},
        **{f"blk.0.{name}.weight": (12, WIDTH) for name in ("ffn_gate", "ffn_up")},
        "blk.0.ffn_down.weight": (WIDTH, 12),
        **{f"blk.0.{name}.weight": (WIDTH,) for name in ("attn_norm", "ffn_norm")},
    }
    tensors = {name: random.normal(size=shape) for name, shape in shapes.items()}
    folder.mkdir()
    kinds = {"token_embd.weight": kind, "output.weight": kind}
    return write_gguf(folder / "a.gguf", "llama", values, tensors, kinds)


SOURCES = {
    "untied": (of_safetensors, False),
    "tied": (of_safetensors, True),
    "gguf F32": (of_gguf, "F32"),
    "gguf Q8_0": (of_gguf, "Q8_0"),
    "gguf Q4_0": (of_gguf, "Q4_0"),
}


@pytest.fixture(scope="module", params=SOURCES)
def source(request, tmp_path_factory):
    make, argument = SOURCES[request.param]
    return make(tmp_path_factory.mktemp("source") / "model", argument)


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", [None, dict(data=2, fsdp=2, tensor=2)])
def test_chosen_rows_are_those_of_the_whole_tables_and_all_else_is_the_same(source, sizes, param_dtype):
    config = dataclasses.replace(load_config(source), param_dtype=param_dtype, scan_layers=True)
    whole = load_parameters(source, config)
    some = dataclasses.replace(config, vocab_size=len(ROWS))
    mesh = make_mesh(sizes) if sizes else None
    found = load_parameters(source, some, mesh, rows=ROWS)
    assert found.keys() == whole.keys()
    for path, value in whole.items():
        expected = value[ROWS] if path in ("embedding_VD", "head_VD") else value
        assert found[path].dtype == value.dtype
        np.testing.assert_array_equal(found[path], expected, err_msg=path)
    if mesh:
        model = parameters.abstract(lambda rngs: LanguageModel(some, rngs=rngs))
        shapes = parameters.split(model)[1]
        for path, sharding in rules.parameter_shardings(shapes, parameters.logical_axes(model), mesh).items():
            assert found[path].sharding == sharding, path
    tables = load_tables(source, some)
    assert tables.keys() == {"embedding_VD", "head_VD"} & whole.keys()
    for path, table in tables.items():
        np.testing.assert_array_equal(table, whole[path])


def test_a_table_of_another_shape_is_found(tmp_path):
    folder = of_safetensors(tmp_path / "model", tied=True)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace(f'"vocab_size": {PIECES}', '"vocab_size": 299'))
    some = dataclasses.replace(load_config(folder), vocab_size=3)
    for load in (lambda: load_parameters(folder, some, rows=np.arange(3)), lambda: load_tables(folder, some)):
        with pytest.raises(CheckpointError, match=r"embed_tokens\.weight has shape \[300, 32\]; config\.json makes it"):
            load()


def test_rows_that_are_not_chosen_are_hardly_read():
    class Recorded:
        read = 0

        def __getitem__(self, index):
            found = values[index]
            self.read += found.size
            return found

    values, theirs = np.arange(100_000 * 3).reshape(-1, 3), Recorded()
    rows = np.unique(np.random.default_rng(0).integers(0, len(values), 50))
    chosen = ChosenRows(theirs, rows)
    np.testing.assert_array_equal(chosen[:, 1:], values[rows, 1:])
    assert theirs.read <= 50 * 64 * 2
    theirs.read = 0
    np.testing.assert_array_equal(chosen[10:12, :], values[rows[10:12]])
    assert theirs.read <= 2 * 64 * 3
    assert chosen[4:4, :].shape == (0, 3)


def test_a_text_is_as_likely_as_the_whole_model_says_given_that_only_kept_pieces_come(shared_dir):
    """log p_trimmed = log p_full - sum of log(mass of the kept pieces), and kept logits are the whole model's."""
    folder = shared_dir / "llm" / "stories260K"
    text, whole = "Once upon a time, there was a zebra!", user_llm.load_language_model(folder)
    vocabulary = trimmed(whole.tokenizer, whole.tokenizer.encode_batch([text]))
    assert vocabulary.rows < 300
    config = dataclasses.replace(whole.config, vocab_size=vocabulary.rows)
    graphdef, _, buffers = parameters.split(parameters.abstract(lambda rngs: LanguageModel(config, rngs=rngs)))
    values = load_parameters(folder, config, rows=vocabulary.kept)
    small = TextModel(parameters.merge(graphdef, values, buffers), vocabulary)
    old = np.array([[1, *whole.tokenizer.encode(text)]])
    new = np.array([[vocabulary.bos_id, *vocabulary.encode(text)]])
    np.testing.assert_array_equal(vocabulary.kept[new], old)
    logits, fewer = (np.asarray(one, np.float64)[0] for one in (whole.logits(old), small.logits(new)))
    np.testing.assert_allclose(fewer, logits[:, vocabulary.kept], atol=1e-5)
    places, mass = np.arange(old.shape[1] - 1), np.exp(logits).sum(axis=-1)
    log_p = (logits[places, old[0, 1:]] - np.log(mass)[:-1]).sum()
    log_kept = np.log(np.exp(logits[:, vocabulary.kept]).sum(axis=-1) / mass)[:-1].sum()
    assert log_kept < -0.1
    found = (fewer[places, new[0, 1:]] - np.log(np.exp(fewer).sum(axis=-1))[:-1]).sum()
    assert found == pytest.approx(log_p - log_kept, abs=1e-4)
    # Greedy text in pieces that are kept is the whole model's.
    assert small.generate("Once upon a time", 3) == ", there was"
