"""A real file of llama.cpp's, Gemma 3 270M in Q4_K_M, against what `transformers` makes of it.

It is not committed (253 MB, and under Gemma's terms): USER_LLM_GGUF names it.
"""

import os
import random
from pathlib import Path

import numpy as np
import pytest

import user_llm
from user_llm.data.vocabularies import load_vocabulary

PROMPT = "The three best films of the nineties are"
NEW = 24
TEXTS = [
    *(
        "Toy Story (1995)",
        "Amélie",
        "日本のいちばん長い日",
        "😀🎬 👩\u200d👩\u200d👧",
        "a\tb\t\tc",
        "double  spaces   here",
    ),
    *(" x ", "\n\n\n", "\r\n", "x </s> <b>bold</b>", "“quotes” — dash…", "العربية कहानी", "1234567 3.14159"),
    *("e\u0301\u00a0", "[multimodal]"),
]


@pytest.fixture(scope="module")
def file() -> Path:
    path = Path(os.environ.get("USER_LLM_GGUF", "gemma-3-270m-q4_k_m.gguf"))
    if not path.is_file():
        pytest.skip(f"no {path}: set USER_LLM_GGUF to llama.cpp's gemma-3-270m-q4_k_m.gguf")
    return path


@pytest.mark.drill
def test_logits_and_greedy_text_are_those_of_transformers(file):
    torch = pytest.importorskip("torch", reason="needs the [test] extra's torch")
    transformers = pytest.importorskip("transformers", reason="needs the [test] extra's transformers")
    ours = user_llm.load_language_model(file)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    prompt = torch.tensor([[ours.tokenizer.bos_id, *ours.tokenizer.encode(PROMPT)]])
    with torch.no_grad():
        text = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW, do_sample=False)
        expected = theirs(text).logits.numpy()
    found = np.asarray(ours.logits(text.numpy()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    start = prompt.shape[1]
    np.testing.assert_array_equal(found[0, start - 1 : -1].argmax(axis=-1), text[0, start:].numpy())
    assert ours.generate(PROMPT, max_new_tokens=NEW) == ours.tokenizer.decode(text[0, start:].tolist())


@pytest.mark.drill
def test_tokens_are_those_of_transformers(file):
    transformers = pytest.importorskip("transformers", reason="needs the [test] extra's transformers")
    chance = random.Random(0)
    texts = [
        *TEXTS,
        *("".join(chance.choices("abc def é  日本\t\n😀<>/_-'1234ÀßΩж", k=chance.randint(1, 80))) for _ in range(2000)),
    ]
    vocabulary = load_vocabulary(file)
    theirs = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    assert vocabulary.encode_batch(texts) == theirs(texts, add_special_tokens=False)["input_ids"]
    assert [vocabulary.bos_id, vocabulary.eos_id] == [theirs.bos_token_id, theirs.eos_token_id]
