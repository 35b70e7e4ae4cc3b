"""`tokenizer.json` in the forms that open language models have, each against the `transformers` tokenizer of it."""

import json
import pickle
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from user_llm.data.huggingface_vocabulary import HuggingFaceVocabulary
from user_llm.data.prompts import Prompts
from user_llm.data.sentencepiece_vocabulary import SentencePieceVocabulary
from user_llm.data.vocabularies import (
    content,
    encode_continuations,
    load_vocabulary,
    pad_rows,
    text_start,
)
from user_llm.tasks import TASKS

CORPUS = ["Toy Story (1995)", "The Crimson Harbour of Glass", "Amélie!", "the user's next movie: Heat"] * 3
TITLES = ["Toy Story (1995)", "!Three Amigos!", "Amélie", "日本のいちばん長い日", "a  b", "<|endoftext|>", "x </s>"]


def byte_level(special, *, add_prefix_space=False, normalizer=None):
    """Byte-level BPE: GPT-2, Qwen, Llama 3. Token 0 is "!"."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(special)
    return tokenizer


def with_byte_fallback(special, *, prefix):
    """SentencePiece's BPE as Gemma (no prefix) and Llama 2 (a space in front) have it; bytes for rare characters."""
    tokenizer = Tokenizer(models.BPE())
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    trainer = trainers.BpeTrainer(vocab_size=100, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    names = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(trained["vocab"], key=trained["vocab"].get)]
    merges = [tuple(merge) for merge in trained["merges"]]
    tokenizer.model = models.BPE(
        {name: index for index, name in enumerate(names)}, merges, unk_token="<unk>", byte_fallback=True
    )
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    tokenizer.add_special_tokens(special)
    return tokenizer


def template(tokenizer, bos):
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


def gpt2():
    tokenizer = byte_level(["<|endoftext|>"])
    end = tokenizer.token_to_id("<|endoftext|>")
    return tokenizer, {
        "tokenizer_config.json": {"model_max_length": 1024},
        "config.json": {"bos_token_id": end, "eos_token_id": end},
    }


def qwen():
    tokenizer = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], normalizer=normalizers.NFC())
    end = tokenizer.token_to_id("<|endoftext|>")
    return tokenizer, {
        "tokenizer_config.json": {
            "bos_token": None,
            "eos_token": {"content": "<|im_end|>", "special": True},
            "pad_token": "<|endoftext|>",
        },
        "generation_config.json": {"bos_token_id": end, "eos_token_id": [end]},
        "config.json": {"bos_token_id": end, "eos_token_id": end},
    }


def llama3():
    tokenizer = template(byte_level(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]), "<|begin_of_text|>")
    begin, end, turn = map(tokenizer.token_to_id, ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(pad_token="<|eot_id|>")
    return tokenizer, {
        "generation_config.json": {"bos_token_id": begin, "eos_token_id": [end, turn]},
        "config.json": {"bos_token_id": begin, "eos_token_id": turn},
    }


def gemma():
    tokenizer = template(with_byte_fallback(["<pad>", "<eos>", "<bos>", "<unk>"], prefix=False), "<bos>")
    tokenizer.add_special_tokens(["<image_soft_token>"])
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "add_bos_token": True}
    return tokenizer, {"tokenizer_config.json": config}


def llama2():
    tokenizer = template(with_byte_fallback(["<unk>", "<s>", "</s>"], prefix=True), "<s>")
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": None}
    return tokenizer, {"tokenizer_config.json": config}


def roberta():
    tokenizer = byte_level(["<s>", "</s>"], add_prefix_space=True)
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False}
    return tokenizer, {"tokenizer_config.json": config}


KINDS = {kind.__name__: kind for kind in (gpt2, qwen, llama3, gemma, llama2, roberta)}


def write(folder, tokenizer, beside):
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, values in beside.items():
        (folder / name).write_text(json.dumps(values))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    for name, kind in KINDS.items():
        write(root / name, *kind())
    return root


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def vocabularies(folders):
    return {kind: load_vocabulary(folders / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def vocabulary(vocabularies, kind):
    return vocabularies[kind]


@pytest.fixture(scope="module")
def reference(folders, kind):
    return PreTrainedTokenizerFast(tokenizer_file=str(folders / kind / "tokenizer.json"))


def names_of(vocabulary, ids):
    return [vocabulary.tokenizer.id_to_token(token) if token >= 0 else None for token in ids]


def test_what_begins_and_ends_a_text(vocabulary, kind):
    expected = {
        "gpt2": ("<|endoftext|>", "<|endoftext|>", []),  # it has a BOS, and its texts do without
        "qwen": (None, "<|im_end|>", []),
        "llama3": ("<|begin_of_text|>", "<|end_of_text|>", ["<|begin_of_text|>"]),
        "gemma": ("<bos>", "<eos>", ["<bos>"]),
        "llama2": ("<s>", "</s>", ["<s>"]),
        "roberta": ("<s>", "</s>", []),
    }[kind]
    bos, eos, start = expected
    assert names_of(vocabulary, [vocabulary.bos_id, vocabulary.eos_id]) == [bos, eos]
    assert names_of(vocabulary, text_start(vocabulary)) == start
    assert vocabulary.pad_id == 0
    unknown = {"gemma": "<unk>", "llama2": "<unk>"}.get(kind)
    assert vocabulary.unk_id == (vocabulary.tokenizer.token_to_id(unknown) if unknown else None)


def test_tokens_are_those_of_transformers(vocabulary, reference):
    plain = [title for title in TITLES if "<" not in title]
    assert vocabulary.encode_batch(plain) == reference(plain, add_special_tokens=False)["input_ids"]
    assert vocabulary.encode(plain[0]) == vocabulary.encode_batch(plain)[0]
    assert vocabulary.vocab_size == len(reference)


def test_titles_come_back_exactly_whatever_fills_up_their_rows(vocabulary):
    tokens, lengths = pad_rows(vocabulary.encode_batch(TITLES))
    assert vocabulary.decode_batch(tokens, lengths) == TITLES
    ended = np.pad(tokens, ((0, 0), (0, 3)))
    ended[np.arange(len(TITLES)), lengths] = vocabulary.eos_id
    assert vocabulary.decode_batch(ended) == TITLES
    assert [vocabulary.decode(row.tolist()) for row in ended] == TITLES


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"]), min_size=1), st.sampled_from([*KINDS]))
def test_any_text_comes_back_as_far_as_its_normaliser_lets_it(vocabularies, text, kind):
    vocabulary = vocabularies[kind]
    expected = text
    if kind == "qwen":
        expected = normalizers.NFC().normalize_str(text)
    if kind == "roberta":  # it puts a space where there is none yet: one of both is taken off
        expected = text.removeprefix(" ")
    tokens, lengths = pad_rows(vocabulary.encode_batch([text]))
    assert not {vocabulary.bos_id, vocabulary.eos_id} & {*tokens[0].tolist()}
    assert vocabulary.decode_batch(tokens, lengths) == [expected]


def test_special_tokens_and_ids_beyond_the_vocabulary_have_no_text(vocabulary):
    (row,) = vocabulary.encode_batch(["Amélie!"])
    special = [token for token in (vocabulary.bos_id,) if token not in (-1, vocabulary.eos_id)]
    assert vocabulary.decode_batch(np.array([[*special, *row, 5000]])) == ["Amélie!"]


def test_a_continuation_is_parted_from_what_it_follows_by_one_space(vocabulary):
    before, (title,) = vocabulary.encode_batch(["The next movie:"]), encode_continuations(vocabulary, ["Heat (1995)"])
    assert vocabulary.decode_batch(np.array([before[0] + title])) == ["The next movie: Heat (1995)"]
    assert encode_continuations(vocabulary, ["", "a"])[0] == []


def test_prompts_and_titles_read_as_text(vocabulary, table, make_names):
    names = make_names(table, vocabulary, 100)
    titles = names.titles
    stripped = [text.removeprefix(" ") for text in vocabulary.decode_batch(titles.tokens, titles.lengths)]
    assert stripped == table.catalogue.titles
    prompts = Prompts(names, TASKS["next_item"].wording("movie", "genre"), max_inputs=400, text_history=2)
    tokens, lengths, _ = prompts.build(np.array([[0, 3, 4]]))
    assert tokens[0, : len(text_start(vocabulary))].tolist() == text_start(vocabulary)
    (text,) = vocabulary.decode_batch(tokens[:, len(text_start(vocabulary)) :], lengths - len(text_start(vocabulary)))
    first, second = table.catalogue.titles[3:5]
    assert text.replace(" |", "|") == f"The user's latest movies: {first}| {second}| The next movie:"


def test_a_review_s_prompt_reads_as_text(vocabulary, table, make_names):
    """Values and the words between them stand a space apart, whichever of both the vocabulary puts it in."""
    names = make_names(table, vocabulary, 100)
    item = int(np.flatnonzero(table.catalogue.item_categories[:, 0])[0])
    prompts = Prompts(names, TASKS["review_generation"].wording("movie", "genre"), max_inputs=400)
    tokens, lengths, _ = prompts.build(np.zeros((1, 3), int), np.array([item]), np.array([9]))
    start = len(text_start(vocabulary))
    (text,) = vocabulary.decode_batch(tokens[:, start:], lengths - start)
    category = table.catalogue.category_names[table.catalogue.item_categories[item, 0]]
    title = table.catalogue.titles[item]
    assert text == f"Write a review for {title} in the category {category} with a rating of 4.5 The review:"


def test_a_copy_is_the_same_vocabulary_without_the_files_that_named_its_tokens(vocabulary, reference, tmp_path):
    vocabulary.save(tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    copy = load_vocabulary(tmp_path / "copy")
    assert (copy.bos_id, copy.eos_id, copy.adds_bos) == (vocabulary.bos_id, vocabulary.eos_id, vocabulary.adds_bos)
    assert copy == vocabulary
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path / "copy")
    assert theirs("Toy Story")["input_ids"] == text_start(copy) + copy.encode("Toy Story")
    assert theirs.eos_token_id == copy.eos_id


def test_rows_needed_count_no_special_token_behind_the_text(vocabularies):
    gemma = vocabularies["gemma"]
    assert gemma.tokenizer.id_to_token(gemma.vocab_size - 1) == "<image_soft_token>"
    spare = {kind: vocabulary.vocab_size - vocabulary.rows for kind, vocabulary in vocabularies.items()}
    assert spare == dict(gpt2=0, qwen=0, llama3=1, gemma=1, llama2=0, roberta=0)


def test_it_can_be_sent_to_another_process(vocabulary):
    other = pickle.loads(pickle.dumps(vocabulary))
    assert other == vocabulary
    assert other.encode("<|endoftext|>") == vocabulary.encode("<|endoftext|>")


def test_a_folder_with_both_gives_its_sentencepiece_model(folders, shared_dir, tmp_path):
    shutil.copytree(folders / "gemma", tmp_path / "both")
    shutil.copyfile(shared_dir / "llm" / "stories260K" / "tokenizer.model", tmp_path / "both" / "tokenizer.model")
    vocabulary = load_vocabulary(tmp_path / "both")
    assert isinstance(vocabulary, SentencePieceVocabulary)
    vocabulary.save(tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [
        *("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
    ]
    assert isinstance(load_vocabulary(tmp_path / "both" / "tokenizer.json"), HuggingFaceVocabulary)


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ({}, r"nothing beside .*tokenizer\.json says what ends a text: add eos_token"),
        ({"config.json": {"eos_token_id": []}}, "says what ends a text"),
        ({"tokenizer_config.json": {"eos_token": None}, "config.json": {"eos_token_id": 3}}, "says what ends a text"),
        ({"tokenizer_config.json": {"eos_token": "<end>"}}, r"tokenizer_config\.json: eos_token is '<end>', which"),
        ({"tokenizer_config.json": {"eos_token": 3}}, "eos_token is 3, which"),
        ({"tokenizer_config.json": {"eos_token": "\ud800"}}, r"eos_token is '\\ud800', which"),
        ({"tokenizer_config.json": {"eos_token": {"id": 3}}}, "eos_token is {'id': 3}, which"),
        ({"config.json": {"eos_token_id": 9999}}, r"config\.json: eos_token_id is 9999, which"),
        ({"config.json": {"eos_token_id": -1}}, "eos_token_id is -1, which"),
        ({"config.json": {"eos_token_id": 2**40}}, "eos_token_id is 1099511627776, which"),
        ({"config.json": {"eos_token_id": "</s>"}}, "eos_token_id is '</s>', which"),
        ({"config.json": {"eos_token_id": [[1]]}}, r"eos_token_id is \[\[1\]\], which"),
        (
            {"tokenizer_config.json": {"eos_token": "</s>", "add_bos_token": "no"}},
            "add_bos_token is 'no'; expected true",
        ),
        ({"tokenizer_config.json": ["</s>"]}, r"tokenizer_config\.json is damaged \(it holds a list"),
    ],
)
def test_conventions_that_cannot_be_are_named(tmp_path, beside, message):
    write(tmp_path / "folder", byte_level(["</s>"]), beside)
    with pytest.raises(ValueError, match=message):
        load_vocabulary(tmp_path / "folder")


def test_the_checkpoint_may_do_without_the_bos_that_its_file_puts(tmp_path):
    tokenizer, beside = llama2()
    write(tmp_path / "folder", tokenizer, {name: values | {"add_bos_token": False} for name, values in beside.items()})
    vocabulary = load_vocabulary(tmp_path / "folder")
    assert (vocabulary.bos_id, text_start(vocabulary)) == (1, [])
    write(tmp_path / "with", tokenizer, beside)
    assert load_vocabulary(tmp_path / "with") != vocabulary


def test_a_file_that_is_no_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer of the `tokenizers` library"):
        load_vocabulary(tmp_path)
    write(tmp_path / "folder", byte_level(["</s>"]), {})
    (tmp_path / "folder" / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is damaged .*: fetch"):
        load_vocabulary(tmp_path / "folder")


@pytest.mark.parametrize("by_id", [False, True])
def test_content_is_what_loading_reads(tmp_path, by_id):
    tokenizer = byte_level(["</s>"])
    end = tokenizer.token_to_id("</s>")
    name = "generation_config.json" if by_id else "tokenizer_config.json"
    values = {"eos_token_id": end, "bos_token_id": end} if by_id else {"eos_token": "</s>", "bos_token": None}
    unread = {"config.json": {"eos_token_id": 9999}, "special_tokens_map.json": {"eos_token": "<end>"}}
    write(tmp_path / "one", tokenizer, {name: values, **unread})
    write(tmp_path / "two", tokenizer, {name: values | {"more": 1}})
    one, two = content(tmp_path / "one"), content(tmp_path / "two" / "tokenizer.json")
    assert one.keys() == two.keys() == {"tokenizer.json", name}
    assert [file for file in one if one[file] != two[file]] == [name]
