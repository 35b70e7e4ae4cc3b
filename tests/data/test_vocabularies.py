import dataclasses
import pickle

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from user_llm.data.vocabularies import NameTokens, load_vocabulary, pad_rows, train_sentencepiece


def test_training_twice_writes_the_same_bytes(table, tmp_path):
    for name in ("a", "b"):
        train_sentencepiece(iter(table.catalogue.titles), 320, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_control_ids(vocabulary):
    tokenizer = vocabulary.tokenizer
    assert (tokenizer.pad_id(), vocabulary.bos_id, vocabulary.eos_id, vocabulary.unk_id) == (0, 1, 2, 3)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"]), min_size=1))
def test_any_text_comes_back_whole(vocabulary, text):
    (tokens,) = vocabulary.encode_batch([text])
    assert not set(tokens) & {0, 1, 2, 3}
    assert vocabulary.decode_batch(np.array([[*tokens, 2, 7, 0]])) == [text]


def test_a_small_corpus_gives_the_pieces_it_has_for_a_large_size(tmp_path):
    train_sentencepiece(["one title"] * 3, 50_000, tmp_path / "model")
    assert 260 < load_vocabulary(tmp_path / "model").vocab_size < 300


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        ([], 300, "no text"),
        ([""], 300, "no text"),
        (["a b c"], 10, "could not train a vocabulary of 10 pieces"),
        (["a" * (1 << 20) + "b"], 300, "1048577 bytes"),
    ],
)
def test_impossible_training_is_refused(tmp_path, texts, size, message):
    with pytest.raises(ValueError, match=message):
        train_sentencepiece(texts, size, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_hugging_face_folder_is_a_vocabulary(shared_dir):
    vocabulary = load_vocabulary(shared_dir / "llm" / "stories260K")
    assert (vocabulary.vocab_size, vocabulary.bos_id, vocabulary.eos_id) == (512, 1, 2)
    text = "Once upon a time, there was Amélie"
    rows = vocabulary.encode_batch([text, text + "!"])
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary.file))
    assert rows == theirs.encode([text, text + "!"])
    assert theirs.decode(rows[0]) == vocabulary.decode([*rows[0], 600, 2, 7]) == text
    tokens, lengths = pad_rows(rows)  # id 0 is this model's unknown piece: as padding it must not be read out
    assert vocabulary.decode_batch(tokens, lengths) == [text, text + "!"]
    assert vocabulary.decode_batch(np.pad(tokens, ((0, 0), (0, 1)), constant_values=600), lengths + 9)[1] == text + "!"


def test_a_vocabulary_without_bos_loads(shared_dir):
    vocabulary = load_vocabulary(shared_dir / "llm" / "t5_spiece.model")
    assert (vocabulary.vocab_size, vocabulary.bos_id, vocabulary.eos_id) == (32_000, -1, 1)


def test_missing_and_broken_models_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer at .*tokenizer\.model or tokenizer\.json"):
        load_vocabulary(tmp_path)
    train_sentencepiece(["a title"] * 3, 300, tmp_path / "model")
    whole = (tmp_path / "model").read_bytes()
    for content in (b"", b"no model at all", whole[:300], whole[:-7]):
        (tmp_path / "broken.model").write_bytes(content)
        with pytest.raises(ValueError, match=r"broken\.model is not a SentencePiece model"):
            load_vocabulary(tmp_path / "broken.model")


def test_vocabularies_are_equal_by_content(tmp_path):
    for name, text in {"one": "first corpus", "copy": "first corpus", "other": "second, another"}.items():
        train_sentencepiece([text] * 3, 300, tmp_path / name)
    one, copy, other = (load_vocabulary(tmp_path / name) for name in ("one", "copy", "other"))
    assert one == copy == pickle.loads(pickle.dumps(one))
    assert one != other
    (tmp_path / "other").replace(tmp_path / "one")
    assert load_vocabulary(tmp_path / "one") == other != one


def test_pad_rows():
    tokens, lengths = pad_rows([[5, 6], [], [7]])
    assert tokens.tolist() == [[5, 6], [0, 0], [7, 0]]
    assert lengths.tolist() == [2, 0, 1]
    assert pad_rows([])[0].shape == (0, 0)


def test_title_tokens_decode_to_the_titles(table, vocabulary):
    titles = NameTokens(table.catalogue.titles, vocabulary, max_targets=200)
    assert titles.cut == 0
    assert titles.tokens.shape == (table.catalogue.num_items + 1, titles.lengths.max())
    assert vocabulary.decode_batch(titles.tokens) == table.catalogue.titles
    assert len(np.unique(titles.tokens, axis=0)) == len(titles.tokens)
    for item, row in enumerate(titles.targets):
        length = titles.lengths[item]
        assert row[:length].tolist() == vocabulary.encode(table.catalogue.titles[item])
        assert row[length:].tolist() == ([2] + [0] * (len(row) - length - 1) if item else [0] * len(row))


@pytest.mark.parametrize("max_targets", range(2, 9))
def test_long_titles_are_cut_at_whole_characters_and_counted(table, vocabulary, max_targets):
    titles = NameTokens(table.catalogue.titles, vocabulary, max_targets)
    full = [vocabulary.encode(title) for title in table.catalogue.titles]
    assert titles.targets.shape[1] <= max_targets
    assert titles.cut == sum(len(row) > max_targets - 1 for row in full) > 0
    for title, cut, row, length in zip(
        table.catalogue.titles, vocabulary.decode_batch(titles.tokens), full, titles.lengths, strict=True
    ):
        assert title.startswith(cut)
        assert "\ufffd" not in cut
        assert length == len(row) or length > max_targets - 4  # at most three bytes of a torn character


def test_titles_that_cannot_be_answers_are_refused(table, vocabulary):
    with pytest.raises(ValueError, match="max_targets=1 leaves no room"):
        NameTokens(table.catalogue.titles, vocabulary, 1)
    nameless = dataclasses.replace(table.catalogue, titles=["", "A", "", *table.catalogue.titles[3:]])
    with pytest.raises(ValueError, match="name '' of number 2 has no text"):
        NameTokens(nameless.titles, vocabulary, 20)
