"""Some pieces of a vocabulary, whatever they are: the same texts as the whole one's, in ids below their number."""

import importlib.util
import io
import json
import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models

from tests.gguf_files import write_gguf
from user_llm.data.respelling import essential_pieces
from user_llm.data.trimmed_vocabulary import KEPT_FILE, TrimmedVocabulary, trimmed
from user_llm.data.vocabularies import content, encode_continuations, load_vocabulary, train_sentencepiece


def beside(name):
    """Another test file's makers of tokenizers."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


OF_JSON, OF_GGUF = beside("test_huggingface_vocabulary"), beside("test_gguf_vocabulary")
CORPUS = ["Toy Story (1995)", "Amélie and the Crimson Harbour", "the user's next movie:", "日本"]
KNOWN = CORPUS[:2]


def unigram(folder, _):
    train_sentencepiece(CORPUS * 9, 360, folder / "tokenizer.model")


def published(name):
    return lambda folder, shared: shutil.copyfile(shared / name, folder / "tokenizer.model")


def of_json(kind, *added):
    def write(folder, _):
        tokenizer, files = getattr(OF_JSON, kind)()
        tokenizer.add_tokens([AddedToken(text, normalized=False) for text in added])
        tokenizer.save(str(folder / "tokenizer.json"))
        for name, values in files.items():
            (folder / name).write_text(json.dumps(values))

    return write


def of_gguf(kind):
    return lambda folder, _: write_gguf(folder / "a.gguf", "llama", OF_GGUF.KINDS[kind]()[1], {"t": np.ones(1)})


KINDS = {
    "unigram": unigram,
    "stories260K": published("llm/stories260K/tokenizer.model"),
    "t5, without bytes": published("llm/t5_spiece.model"),
    **{kind: of_json(kind) for kind in OF_JSON.KINDS},
    "gpt2 with added tokens": of_json("gpt2", "<think>", "  x", "é\n"),
    "gemma with added tokens": of_json("gemma", "<think>", "▁▁", "\n\n"),
    "gguf gemma": of_gguf("gemma"),
    "gguf llama2": of_gguf("llama2"),
    "gguf llama-bpe": of_gguf("llama-bpe"),
}


@pytest.fixture(scope="module")
def wholes(shared_dir, tmp_path_factory):
    found = {}
    for name, write in KINDS.items():
        folder = tmp_path_factory.mktemp("whole")
        write(folder, shared_dir)
        found[name] = load_vocabulary(next(folder.glob("*.gguf"), folder))
    return found


@pytest.fixture(scope="module", params=KINDS)
def whole(request, wholes):
    return wholes[request.param]


@pytest.fixture(scope="module")
def some(wholes):
    """Of each kind: the pieces of the corpus, no piece but the essential ones, and half of all by chance."""
    random, found = np.random.default_rng(0), {}
    for name, whole in wholes.items():
        half = np.flatnonzero(random.random(whole.rows) < 0.5)
        found[name] = [trimmed(whole, rows) for rows in (whole.encode_batch(CORPUS), [], [half.tolist()])]
    return found


TEXT = st.lists(
    st.one_of(
        st.sampled_from(
            ["Toy Story (", "Amélie", "日本", " ", "the", "<think>", "  x", "é\n", "\n\n", "</s>", "Harbo"]
        ),
        st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"]), max_size=8),
    ),
    max_size=8,
).map("".join)


@settings(max_examples=60, deadline=None)
@given(text=TEXT)
@pytest.mark.parametrize("kind", KINDS)
def test_any_text_decodes_as_from_the_whole_vocabulary(some, wholes, kind, text):
    whole = wholes[kind]
    expected = whole.decode_rows([whole.encode(text)])
    for vocabulary in some[kind]:
        row = vocabulary.encode(text)
        assert all(0 <= one < len(vocabulary.kept) == vocabulary.rows for one in row)
        assert vocabulary.decode_rows([row]) == expected
        special = {vocabulary.bos_id, vocabulary.eos_id}
        assert not special & {*row}


def test_texts_of_the_corpus_have_the_pieces_that_the_whole_vocabulary_gives_them(whole):
    known, continued = whole.encode_batch(KNOWN), encode_continuations(whole, KNOWN)
    vocabulary = trimmed(whole, [*known, *continued])
    assert [vocabulary.kept[row].tolist() for row in vocabulary.encode_batch(KNOWN)] == known
    assert [vocabulary.kept[row].tolist() for row in encode_continuations(vocabulary, KNOWN)] == continued
    assert vocabulary.respelt == 0
    assert vocabulary.rows < whole.rows
    # A text that is spelt in smaller pieces leaves those around it as they are.
    rows = vocabulary.encode_batch([KNOWN[0], CORPUS[2], "", KNOWN[1]])
    assert [vocabulary.kept[rows[index]].tolist() for index in (0, 3)] == known
    assert vocabulary.kept[rows[1]].tolist() != whole.encode(CORPUS[2])
    assert (rows[2], vocabulary.respelt) == ([], 1)


def test_all_pieces_kept_are_the_whole_vocabulary(whole):
    vocabulary = TrimmedVocabulary(whole, range(whole.vocab_size))
    texts = [*CORPUS, "Zwölf 😀\n\n"]
    assert vocabulary.encode_batch(texts) == whole.encode_batch(texts)
    for name in ("bos_id", "eos_id", "unk_id", "vocab_size", "adds_bos", "space"):
        assert getattr(vocabulary, name) == getattr(whole, name), name
    rows = np.arange(whole.vocab_size)[None]
    assert vocabulary.decode_batch(rows) == whole.decode_batch(rows)


def test_what_every_text_may_need_is_kept_and_no_special_token_besides(whole):
    vocabulary = trimmed(whole, [])
    assert vocabulary.kept[0] == vocabulary.pad_id == 0
    assert vocabulary.kept[vocabulary.eos_id] == whole.eos_id
    if whole.bos_id >= 0:
        assert vocabulary.kept[vocabulary.bos_id] == whole.bos_id
    if whole.unk_id is not None:
        assert vocabulary.kept[vocabulary.unk_id] == whole.unk_id
    assert {*vocabulary.kept.tolist()} == essential_pieces(whole)
    assert vocabulary.kept[-1] < whole.rows


def test_gemma_s_other_special_tokens_are_left_out(wholes):
    whole = wholes["gemma"]
    kept = {whole.tokenizer.id_to_token(one) for one in trimmed(whole, whole.encode_batch(CORPUS)).kept.tolist()}
    assert {"<pad>", "<bos>", "<eos>", "<unk>", "<0x00>", "<0xFF>", "▁"} <= kept
    assert "<image_soft_token>" not in kept


def test_merges_are_taken_back_as_far_as_need_be(wholes):
    """Of "Story" without its last merge the parts are those that the merge was of."""
    for kind in ("gpt2", "gguf gemma"):
        whole = wholes[kind]
        (piece,) = whole.encode_batch([" Story" if kind == "gpt2" else CORPUS[0]])
        longest = max(piece, key=lambda one: len(whole.decode([one])))
        others = [one for one in range(whole.rows) if one != longest]
        row = trimmed(whole, [others]).encode("Toy Story (1995)")
        spelt = len(row) - len(whole.encode("Toy Story (1995)"))
        assert spelt == 1, kind


def test_a_copy_is_the_same_and_so_is_one_in_another_process(whole, tmp_path):
    vocabulary = trimmed(whole, whole.encode_batch(CORPUS))
    vocabulary.save(tmp_path / "copy")
    copy = load_vocabulary(tmp_path / "copy")
    sent = pickle.loads(pickle.dumps(copy))
    texts = [*CORPUS, "Zwölf 😀"]
    for other in (copy, sent):
        assert other == vocabulary
        assert other.encode_batch(texts) == vocabulary.encode_batch(texts)
    assert vocabulary != whole
    assert vocabulary != trimmed(whole, [])
    assert KEPT_FILE in content(tmp_path / "copy")
    copy.save(tmp_path / "again")
    assert load_vocabulary(tmp_path / "again") == vocabulary
    # The tokenizer beside it is the whole one's.
    (tmp_path / "again" / KEPT_FILE).unlink()
    assert load_vocabulary(tmp_path / "again") == whole


def test_texts_spelt_otherwise_are_counted_and_warned_of_now_and_then(wholes, caplog):
    vocabulary = trimmed(wholes["unigram"], [])
    with caplog.at_level(logging.WARNING):
        vocabulary.encode_batch(["Toy Story", "日", ""])
        for _ in range(98):
            vocabulary.encode_batch(["Amélie"])
    assert vocabulary.respelt == 100
    assert [record.args for record in caplog.records] == [(2, "Toy Story"), (10, "Amélie"), (100, "Amélie")]


def characters(folder):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 3), model_writer=model, model_type="char", vocab_size=30, minloglevel=2
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())


def words(folder):
    Tokenizer(models.WordLevel({"a": 0, "<end>": 1}, unk_token="a")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')


def suffixes(folder):
    model = models.BPE({"a</w>": 0, "<end>": 1}, [], end_of_word_suffix="</w>")
    Tokenizer(model).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')


@pytest.mark.parametrize(
    ("write", "kind"), [(characters, "char"), (words, "WordLevel"), (suffixes, "BPE with prefixes or suffixes")]
)
def test_pieces_of_other_kinds_cannot_be_taken_apart(write, kind, tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match=rf"tokenizer\.\w+ is of the kind {kind}, .* SentencePiece's BPE and unigram"):
        trimmed(load_vocabulary(tmp_path), [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "it holds a list, not an object"),
        ('{"kept": 3}', "no list of ids under 'kept'"),
        ('{"kept": [0, 1, "a"]}', "no list of ids under 'kept'"),
        ('{"kept": []}', r"must be from 0 to 511, those of .*, with 0 and 2 among them"),
        ('{"kept": [0, 1, 3]}', "with 0 and 2 among them"),
        ('{"kept": [0, 2, 512]}', "must be from 0 to 511"),
        ('{"kept": [-1, 0, 2]}', "must be from 0 to 511"),
        ('{"kept": [0, 2, 99999999999999999999]}', "must be from 0 to 511"),
    ],
)
def test_a_damaged_list_of_pieces_is_named(wholes, tmp_path, text, message):
    trimmed(wholes["stories260K"], []).save(tmp_path)
    (tmp_path / KEPT_FILE).write_text(text)
    with pytest.raises(ValueError, match=rf"{KEPT_FILE}.*{message}"):
        load_vocabulary(tmp_path)
