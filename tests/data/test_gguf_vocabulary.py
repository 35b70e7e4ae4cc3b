"""Tokenizers in GGUF files, each against the SentencePiece model or `tokenizer.json` it was converted from."""

import io
import json
import pickle
import random
import re

import numpy as np
import pytest
import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tests.gguf_files import write_gguf
from user_llm.data.huggingface_vocabulary import HuggingFaceVocabulary
from user_llm.data.sentencepiece_vocabulary import SentencePieceVocabulary
from user_llm.data.vocabularies import content, load_vocabulary, text_start
from user_llm.errors import CheckpointError

CORPUS = ["Toy Story (1995)", "The Crimson Harbour of Glass", "Amélie!", "the user's next movie: Heat, 12345"] * 3
TITLES = [
    "Toy Story (1995)",
    "!Three Amigos!",
    "Amélie",
    "日本のいちばん長い日",
    "a  b   c",
    " x",
    "😀🎬\tb\n\nc",
    "x </s>",
]
_CHANCE = random.Random(0)
TEXTS = [
    *TITLES,
    *("".join(_CHANCE.choices("theo rSay1995'é  日\t\n😀</s>e\u0301", k=_CHANCE.randint(1, 40))) for _ in range(300)),
]


def said(**values) -> dict:
    return {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}


def of_sentencepiece(prefix: bool) -> tuple[sentencepiece.SentencePieceProcessor, dict]:
    """A model as Gemma's (no space in front) or Llama 2's, and what the converter makes of it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type="bpe",
        vocab_size=330,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        user_defined_symbols=["▁▁", "▁▁▁", "\n\n"],
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(processor.get_piece_size())
    marks = [
        *(
            2
            if processor.is_unknown(token)
            else 3
            if processor.is_control(token)
            else 6
            if processor.is_byte(token)
            else 4
            if processor.id_to_piece(token) in ("▁▁", "▁▁▁", "\n\n")
            else 1
            for token in ids
        )
    ]
    pieces = [
        processor.id_to_piece(token).replace("▁", " ") if mark == 4 else processor.id_to_piece(token)
        for token, mark in zip(ids, marks, strict=True)
    ]
    return processor, said(
        model="llama",
        tokens=pieces,
        scores=[processor.get_score(token) for token in ids],
        token_type=marks,
        bos_token_id=processor.bos_id(),
        eos_token_id=processor.eos_id(),
        unknown_token_id=processor.unk_id(),
        add_space_prefix=prefix,
    )


def pre_tokenizer(pre: str) -> pre_tokenizers.PreTokenizer:
    """As `transformers` splits for a tokenizer of that name; SmolLM's is in its tokenizer.json."""
    mapping = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping", reason="needs transformers")
    if pre == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    split = pre_tokenizers.Split(Regex(mapping.GGUF_PRE_TOKENIZER_SPLITS[pre]), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def of_byte_level(pre: str) -> tuple[Tokenizer, dict]:
    """A byte-level BPE, and what the converter makes of it; two pieces only fill up the model's table."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC() if pre == "qwen2" else None
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer(pre), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<|begin|>", "<|end|>"])
    tokenizer.add_tokens(["<think>"])
    merges = [" ".join(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    tokens = [tokenizer.id_to_token(token) for token in range(tokenizer.get_vocab_size())]
    marks = {"<|begin|>": 3, "<|end|>": 3, "<think>": 4}
    return tokenizer, said(
        model="gpt2",
        pre=pre,
        tokens=[*tokens, "[PAD1]", "[PAD2]"],
        token_type=[*(marks.get(token, 1) for token in tokens), 5, 5],
        merges=merges,
        bos_token_id=tokenizer.token_to_id("<|begin|>"),
        eos_token_id=tokenizer.token_to_id("<|end|>"),
    )


PRES = ("gpt-2", "smollm", "llama-bpe", "qwen2")
KINDS = {"gemma": lambda: of_sentencepiece(False), "llama2": lambda: of_sentencepiece(True)} | {
    pre: lambda pre=pre: of_byte_level(pre) for pre in PRES
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def original(kind):
    return KINDS[kind]()


@pytest.fixture(scope="module")
def vocabulary(original, kind, tmp_path_factory):
    folder = tmp_path_factory.mktemp(kind)
    # Of another model: a GGUF file is read alone.
    for name in ("tokenizer_config.json", "config.json", "generation_config.json"):
        (folder / name).write_text("{")
    return load_vocabulary(write_gguf(folder / "a.gguf", "llama", original[1], {"t": np.ones(1)}))


def test_tokens_are_those_of_the_original(vocabulary, original):
    theirs = original[0]
    if isinstance(theirs, Tokenizer):
        theirs.encode_special_tokens = True
        expected = [theirs.encode(text, add_special_tokens=False).ids for text in TEXTS]
    else:
        expected = theirs.encode(TEXTS)
    assert vocabulary.encode_batch(TEXTS) == expected
    assert vocabulary.decode_rows(vocabulary.encode_batch(TITLES)) == [
        text if isinstance(theirs, Tokenizer) else theirs.decode(theirs.encode(text)) for text in TITLES
    ]


def test_what_begins_and_ends_a_text_and_how_many_rows_it_needs(vocabulary, original, kind):
    values = original[1]
    starts = {"gemma", "llama2", "llama-bpe"}  # where the file does not say
    assert text_start(vocabulary) == ([values["tokenizer.ggml.bos_token_id"]] if kind in starts else [])
    assert (vocabulary.bos_id, vocabulary.eos_id) == (
        values["tokenizer.ggml.bos_token_id"],
        values["tokenizer.ggml.eos_token_id"],
    )
    fills = 2 if kind in PRES else 0
    assert vocabulary.vocab_size == vocabulary.rows == len(values["tokenizer.ggml.tokens"]) - fills
    assert vocabulary.unk_id == values.get("tokenizer.ggml.unknown_token_id")


def test_special_tokens_are_text_in_a_text(vocabulary):
    texts = ["<|end|> x", "<s> x</s>"]
    for row in vocabulary.encode_batch(texts):
        assert not {vocabulary.bos_id, vocabulary.eos_id} & {*row}
    assert vocabulary.decode_rows(vocabulary.encode_batch(texts)) == texts
    assert vocabulary.decode_rows([[vocabulary.bos_id, *vocabulary.encode("Heat")]]) == ["Heat"]


def test_a_copy_is_the_same_vocabulary_without_the_file(vocabulary, kind, tmp_path):
    vocabulary.save(tmp_path / "copy")
    names = ["tokenizer.json", "tokenizer_config.json"] if kind in PRES else ["tokenizer.model"]
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == names
    copy = load_vocabulary(tmp_path / "copy")
    assert type(copy) is (HuggingFaceVocabulary if kind in PRES else SentencePieceVocabulary)
    assert copy == vocabulary
    assert (copy.bos_id, copy.eos_id, copy.adds_bos, copy.rows) == (
        *(vocabulary.bos_id, vocabulary.eos_id, vocabulary.adds_bos, vocabulary.rows),
    )
    assert copy.encode_batch(TEXTS) == vocabulary.encode_batch(TEXTS)
    copy.save(tmp_path / "again")
    assert load_vocabulary(tmp_path / "again") == vocabulary


def test_it_can_be_sent_to_another_process_and_is_known_by_its_file(vocabulary):
    other = pickle.loads(pickle.dumps(vocabulary))
    assert type(other) is type(vocabulary)
    assert other == vocabulary
    assert [*content(vocabulary.file)] == ["a.gguf"]


@pytest.mark.parametrize("kind_", ["gemma", "llama-bpe", "gpt-2"])
@pytest.mark.parametrize("adds", [True, False])
def test_whether_texts_begin_with_bos_is_as_the_file_says(kind_, adds, tmp_path):
    _, values = KINDS[kind_]()
    file = write_gguf(tmp_path / "a.gguf", "llama", values | said(add_bos_token=adds), {"t": np.ones(1)})
    vocabulary = load_vocabulary(file)
    assert vocabulary.adds_bos == adds
    vocabulary.save(tmp_path / "copy")
    assert load_vocabulary(tmp_path / "copy") == vocabulary


def test_an_unknown_piece_marked_as_control_is_still_the_unknown_one(tmp_path):
    """As in Gemma's files."""
    original, values = of_sentencepiece(False)
    marks = [3 if mark == 2 else mark for mark in values["tokenizer.ggml.token_type"]]
    file = write_gguf(tmp_path / "a.gguf", "llama", values | said(token_type=marks), {"t": np.ones(1)})
    assert load_vocabulary(file).unk_id == original.unk_id()


REFUSED = [
    ("gpt-2", dict(model="bert"), "tokenizer.ggml.model is 'bert'; supported: 'llama', 'gpt2'"),
    ("gpt-2", dict(pre="tekken"), "pre is 'tekken'; expected one of gpt-2, smollm, llama-bpe, qwen2"),
    ("gpt-2", dict(merges=["a b", "nothing"]), "merges is .*; expected pairs of tokens"),
    ("gpt-2", dict(eos_token_id=9999), "eos_token_id is 9999; expected the number of one of the 3"),
    ("gpt-2", dict(add_bos_token="yes"), "add_bos_token is 'yes'; expected true or false"),
    ("gemma", dict(token_type=[1, 1]), r"token_type is \[1, 1\]; expected one for each of the 330 tokens, not 2"),
    ("gemma", dict(token_type=[9] * 330), r"token_type is \[9, .* expected each one of \[1, 2, 3, 4, 5, 6\]"),
    ("gemma", dict(tokens=["a"] * 330), "tokens is .*; expected each once"),
    ("gemma", dict(scores="none"), "scores is 'none'; expected an array of float"),
    ("gemma", dict(tokens=7), "tokens is 7; expected an array of str"),
]


@pytest.mark.parametrize(("kind_", "changes", "message"), REFUSED, ids=[message[:30] for *_, message in REFUSED])
def test_what_is_no_tokenizer_of_ours_is_refused_by_name(kind_, changes, message, tmp_path):
    _, values = KINDS[kind_]()
    file = write_gguf(tmp_path / "a.gguf", "llama", values | said(**changes), {"t": np.ones(1)})
    with pytest.raises(CheckpointError, match=message):
        load_vocabulary(file)


def test_the_unknown_piece_is_known_by_its_mark_or_its_number(tmp_path):
    original, values = of_sentencepiece(False)
    del values["tokenizer.ggml.unknown_token_id"]
    file = write_gguf(tmp_path / "a.gguf", "llama", values, {"t": np.ones(1)})
    assert load_vocabulary(file).unk_id == original.unk_id()
    marks = [3 if mark == 2 else mark for mark in values["tokenizer.ggml.token_type"]]
    write_gguf(file, "llama", values | said(token_type=marks), {"t": np.ones(1)})
    with pytest.raises(CheckpointError, match="unknown_token_id is None; expected the token of what has no other"):
        load_vocabulary(file)


@pytest.mark.parametrize("missing", ["model", "tokens", "eos_token_id"])
def test_what_is_missing_is_named(missing, tmp_path):
    _, values = of_sentencepiece(False)
    del values[f"tokenizer.ggml.{missing}"]
    file = write_gguf(tmp_path / "a.gguf", "llama", values, {"t": np.ones(1)})
    with pytest.raises(CheckpointError, match=re.escape(f"{file}: tokenizer.ggml.{missing} is None")):
        load_vocabulary(file)
