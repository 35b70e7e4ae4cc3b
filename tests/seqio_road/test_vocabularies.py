"""The adapter against SeqIO's own class on the same model, and against the `tokenizers` library."""

import pickle

import numpy as np
import pytest
import seqio
import tensorflow as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from user_llm.data.trimmed_vocabulary import trimmed
from user_llm.data.vocabularies import load_vocabulary, pad_rows, train_sentencepiece
from user_llm.seqio_road.vocabularies import SeqIOVocabulary

CORPUS = ["Toy Story (1995)", "The Crimson Harbour of Glass", "Amélie!", "the user's next movie: Heat"] * 3
TITLES = ["Toy Story (1995)", "!Three Amigos!", "Amélie", "日本のいちばん長い日", "a  b", "<|endoftext|>", "x </s>"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A SentencePiece model, and a `tokenizer.json` whose token 0 is "!"."""
    folder = tmp_path_factory.mktemp("tokenizers")
    train_sentencepiece(CORPUS, 320, folder / "tokenizer.model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    return {"sentencepiece": folder / "tokenizer.model", "tokenizers": folder / "tokenizer.json"}


@pytest.fixture(scope="module", params=["sentencepiece", "tokenizers"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def vocabulary(files, kind):
    return SeqIOVocabulary(load_vocabulary(files[kind]))


@pytest.fixture(scope="module")
def rows(files, kind):
    """The titles' tokens as the libraries themselves give them."""
    if kind == "sentencepiece":
        theirs = seqio.SentencePieceVocabulary(str(files[kind]))
        return [list(theirs.encode(title)) for title in TITLES]
    theirs = Tokenizer.from_file(str(files[kind]))
    theirs.encode_special_tokens = True  # "<|endoftext|>" in a title is text
    return [theirs.encode(title).ids for title in TITLES]


def test_ids_are_those_of_the_libraries(vocabulary, rows):
    assert [vocabulary.encode(title) for title in TITLES] == rows
    assert vocabulary.encode_tf(tf.constant(TITLES)).to_list() == rows
    one = vocabulary.encode_tf(tf.constant(TITLES[2]))
    assert (one.dtype, one.numpy().tolist()) == (tf.int32, rows[2])


def test_text_ends_with_its_first_eos(vocabulary, rows):
    ended, _ = pad_rows([[*row, vocabulary.eos_id, 7] for row in rows])
    assert [vocabulary.decode(row) for row in ended.tolist()] == TITLES
    assert [text.decode() for text in vocabulary.decode_tf(tf.constant(ended)).numpy()] == TITLES
    assert vocabulary.decode_tf(tf.constant(rows[2])).numpy().decode() == TITLES[2]
    assert vocabulary.decode_tf(tf.zeros([2, 0], tf.int32)).numpy().tolist() == [b"", b""]


def test_a_sentencepiece_model_is_what_it_is_to_seqio(files):
    ours = SeqIOVocabulary(load_vocabulary(files["sentencepiece"]))
    theirs = seqio.SentencePieceVocabulary(str(files["sentencepiece"]))
    for name in ("bos_id", "eos_id", "unk_id", "pad_id", "vocab_size"):
        assert getattr(ours, name) == getattr(theirs, name), name
    beyond = [*theirs.encode("Toy"), theirs.vocab_size + 3, *theirs.encode("Story")]
    assert ours.decode(beyond) == theirs.decode(beyond)
    assert ours.decode_tf(tf.constant(beyond)).numpy() == theirs.decode_tf(tf.constant(beyond)).numpy()


def test_seqio_tokenizes_with_it_inside_a_graph(vocabulary, rows):
    dataset = tf.data.Dataset.from_tensor_slices({"targets": TITLES})
    features = {"targets": seqio.Feature(vocabulary)}
    examples = list(seqio.preprocessors.tokenize(dataset, features, copy_pretokenized=False))
    assert [example["targets"].numpy().tolist() for example in examples] == rows
    ended = seqio.preprocessors.append_eos(tf.data.Dataset.from_tensors({"targets": rows[0]}), features)
    np.testing.assert_array_equal(next(iter(ended))["targets"], [*rows[0], vocabulary.eos_id])


def test_equal_vocabularies_may_be_mixed(vocabulary, files, kind):
    assert vocabulary == SeqIOVocabulary(load_vocabulary(files[kind])) == pickle.loads(pickle.dumps(vocabulary))
    (other,) = (file for name, file in files.items() if name != kind)
    assert vocabulary != SeqIOVocabulary(load_vocabulary(other))


def test_a_trimmed_vocabulary_has_its_own_ids_and_the_same_texts(files, kind):
    whole = load_vocabulary(files[kind])
    ours = trimmed(whole, whole.encode_batch(TITLES[:2]))
    vocabulary = SeqIOVocabulary(ours)
    assert vocabulary.vocab_size == ours.rows < whole.rows
    rows = vocabulary.encode_tf(tf.constant(TITLES)).to_list()
    assert rows == [vocabulary.encode(title) for title in TITLES] == ours.encode_batch(TITLES)
    assert max(map(max, rows)) < ours.rows
    assert [
        text.decode()
        for text in vocabulary.decode_tf(tf.constant(pad_rows([[*row, ours.eos_id] for row in rows])[0])).numpy()
    ] == TITLES
    assert pickle.loads(pickle.dumps(vocabulary)) == vocabulary != SeqIOVocabulary(whole)
