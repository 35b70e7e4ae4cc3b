"""The public face: a published language model, and the answers to a folder that holds no finished run."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

import user_llm
from tests.user_models import made_up
from user_llm import schema
from user_llm.api import TextModel
from user_llm.checkpoints.manager import StageCheckpoints
from user_llm.data.vocabularies import load_vocabulary
from user_llm.experiment.seal import claim
from user_llm.models import parameters
from user_llm.models.language_model import LanguageModel, LanguageModelConfig

STORY = ", there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball."


@pytest.fixture(scope="module")
def folder(shared_dir):
    return shared_dir / "llm" / "stories260K"


@pytest.fixture(scope="module")
def llm(folder):
    return user_llm.load_language_model(str(folder))


@pytest.fixture(scope="module")
def tokens(llm):
    return np.array([[1, *llm.tokenizer.encode("Once upon a time" + STORY)][:24]])


def test_the_model_comes_with_its_dims_and_its_tokenizer(llm):
    assert (llm.config.vocab_size, llm.config.num_layers, llm.config.width) == (512, 5, 64)
    assert (llm.tokenizer.bos_id, llm.tokenizer.eos_id) == (1, 2)
    assert llm.tokenizer.decode(llm.tokenizer.encode("Tom had a dog.")) == "Tom had a dog."


def test_logits_are_next_token_scores_at_every_position(llm, tokens):
    logits = llm.logits(np.concatenate([tokens, tokens[:, ::-1]]))
    assert logits.shape == (2, 24, 512)
    assert logits.dtype == np.float32
    # The model's own story: its greedy choices after the first words.
    prompt = len(llm.tokenizer.encode("Once upon a time"))
    np.testing.assert_array_equal(np.argmax(logits[0, prompt:-1], axis=-1), tokens[0, prompt + 1 :])


def test_logits_see_no_later_token(llm, tokens):
    other = tokens.copy()
    other[:, 15:] = 7
    whole, changed = llm.logits(tokens), llm.logits(other)
    np.testing.assert_allclose(changed[:, :15], whole[:, :15], atol=1e-5)
    assert np.abs(changed[:, 15:] - whole[:, 15:]).max() > 1


def test_one_text_without_a_batch_is_refused(llm):
    with pytest.raises(ValueError, match=r"\[batch, tokens\], got shape \(3,\): put one text in a list"):
        llm.logits([1, 2, 3])


def test_greedy_text_continues_the_prompt(llm):
    assert llm.generate("Once upon a time", max_new_tokens=60).startswith(STORY)
    # The space in front of the next word is its own: prompt and continuation join to the whole text.
    assert llm.generate("Once upon", max_new_tokens=4) == " a time, there"


def test_samples_follow_their_seed(llm):
    drawn = [llm.generate("Once upon a time", 12, temperature=1.0, seed=seed) for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 2


def test_a_folder_without_a_tokenizer_is_named(folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(folder / name, tmp_path / name)
    with pytest.raises((ValueError, FileNotFoundError), match=r"tokenizer\.model"):
        user_llm.load_language_model(tmp_path)


@pytest.fixture(scope="module")
def bytes_folder(tmp_path_factory):
    """A tokenizer.json as GPT-2's: token 0 is "!", BOS is EOS, and texts begin without it."""
    folder = tmp_path_factory.mktemp("bytes")
    names = [*sorted(ByteLevel.alphabet()), "<|endoftext|>"]
    tokenizer = Tokenizer(BPE({name: index for index, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"bos_token_id": 256, "eos_token_id": 256}))
    return folder


@pytest.fixture(scope="module")
def of_bytes(bytes_folder):
    """A model that answers any token with the one before it in the vocabulary, and "!" with EOS."""
    config = LanguageModelConfig(
        vocab_size=260, num_layers=1, width=260, num_heads=1, num_kv_heads=1, head_dim=4, hidden=4, tie_embeddings=False
    )
    model = LanguageModel(config, rngs=nnx.Rngs(0))
    graphdef, values, buffers = parameters.split(model)
    quiet = {
        path: jnp.zeros_like(value) if "/attention/o_" in path or "/mlp/down_" in path else value
        for path, value in values.items()
    }
    answer = np.where(np.arange(260) == 0, 256, np.arange(260) - 1)
    head = np.zeros((260, 260), np.float32)
    head[answer, np.arange(260)] = 1
    quiet |= {"embedding_VD": jnp.eye(260), "head_VD": jnp.asarray(head)}
    return TextModel(parameters.merge(graphdef, quiet, buffers), load_vocabulary(bytes_folder))


def test_token_0_is_a_word_where_the_vocabulary_says_so(of_bytes):
    assert of_bytes.tokenizer.encode("!") == [0]
    assert of_bytes.generate("$") == '#"!'  # and no BOS in front, which is EOS here
    assert of_bytes.generate("a!$", 2) == '#"'
    assert of_bytes.generate("!!!") == ""


def test_a_prompt_of_no_tokens_is_refused(of_bytes):
    with pytest.raises(ValueError, match="nothing to continue"):
        of_bytes.generate("")


def test_a_saved_model_loads_again_with_its_tokenizer(of_bytes, llm, tokens, tmp_path):
    of_bytes.save(tmp_path / "bytes")
    again = user_llm.load_language_model(tmp_path / "bytes")
    assert again.generate("$") == '#"!'
    assert (again.tokenizer.bos_id, again.tokenizer.eos_id, again.tokenizer.adds_bos) == (256, 256, False)
    llm.save(tmp_path / "stories")
    np.testing.assert_array_equal(user_llm.load_language_model(tmp_path / "stories").logits(tokens), llm.logits(tokens))


def test_a_tokenizer_of_another_model_is_refused(llm, of_bytes):
    with pytest.raises(ValueError, match="has 512 tokens, but the model has rows for 260"):
        TextModel(of_bytes.model, llm.tokenizer)


def seen(model, *items):
    return [{"item": model.catalogue.titles[item], "rating": 4.0} for item in items]


@pytest.fixture(scope="module")
def user_model(tmp_path_factory):
    return made_up(tmp_path_factory.mktemp("user_model"))


def test_more_answers_than_beams_are_the_same_ranking(user_model):
    """Of 100 beams none is cut here. A title that several items share stands once, for those not in the history."""
    titles = user_model.catalogue.titles
    twins = [titles.index(title) for title in titles if "streets" in title]
    assert len(twins) > 20
    for history in (seen(user_model, 3), seen(user_model, *twins[:3]), seen(user_model, 2, 2, 9)):
        beams, exact = user_model.recommend(history, k=100), user_model.recommend(history, k=101)
        assert len(beams) > 80
        assert [answer.text for answer in exact] == [answer.text for answer in beams]
        np.testing.assert_allclose([a.score for a in exact], [a.score for a in beams], rtol=1e-5)


def test_more_answers_than_titles_are_all_titles(user_model):
    trie = user_model.study.answer_trie("next_item")
    assert trie.num_titles < user_model.catalogue.num_items  # some share their tokens
    history = seen(user_model, 2, 3)
    answers = user_model.recommend(history, k=10**12)
    assert len(answers) == trie.num_titles - 2
    assert len({answer.text for answer in answers}) == len(answers)
    assert not {answer.text for answer in answers} & {event["item"] for event in history}
    scores = [answer.score for answer in answers]
    assert scores == sorted(scores, reverse=True)
    categories = user_model.answer(history, "favorite_category", k=1000)
    assert len(categories) == len(user_model.catalogue.category_names) - 1
    assert user_model.answer(history, "favorite_category", k=2) == categories[:2]


def workdir(folder, **changes):
    config = schema.get_config()
    config.update(changes)
    claim(folder, config, {})
    return folder


def test_a_run_without_a_contextualised_llm_is_named(tmp_path):
    with pytest.raises(ValueError, match="trained only encoder: answering needs stage user_llm"):
        user_llm.load(workdir(tmp_path, stages=("encoder",)))


@pytest.mark.parametrize(
    ("step", "says"), [(None, "user_llm has no checkpoints"), (0, "step 0 of"), (3, "step 3 of 1000")]
)
def test_a_run_that_is_not_finished_is_named_before_any_data_is_read(step, says, tmp_path, monkeypatch):
    if step is not None:
        checkpoints = StageCheckpoints(tmp_path / "user_llm")
        if step:
            checkpoints.save(step, {"parameters": {"w": jnp.ones(2)}, "step": jnp.int32(step)}, {})
        checkpoints.close()
    asked = lambda *_, **__: pytest.fail("the data was asked for")  # noqa: E731
    monkeypatch.setattr("user_llm.experiment.experiment.load_timelines", asked)
    with pytest.raises(FileNotFoundError, match=f"{says}.*: this run is not finished; run its"):
        user_llm.load(workdir(tmp_path))


def test_each_user_may_have_a_prompt_and_a_length_of_its_own(user_model):
    users = [seen(user_model, 3), seen(user_model, 4, 9), seen(user_model, 5)]
    prompts, most = ["The user's next", "A", "Glass and night " * 2], [3, 17, 1]
    alone = [user_model.generate(*one) for one in zip(users, prompts, most, strict=True)]
    assert user_model.generate(users, prompts, most) == alone
    assert user_model.generate(users, prompts, 5) == [
        user_model.generate(u, p, 5) for u, p in zip(users, prompts, strict=True)
    ]
    assert user_model.text_lengths("The user's next", 17)[1] == 32
    with pytest.raises(ValueError, match="prompt must be one for each of the 3 users"):
        user_model.generate(users, prompts[:2])
    for wrong in (["a", 5, "c"], 5):
        with pytest.raises(ValueError, match="prompt must be a text"):
            user_model.generate(users, wrong)
    with pytest.raises(ValueError, match="max_new_tokens must be a whole number"):
        user_model.generate(users, prompts, [3, 0, 1])
