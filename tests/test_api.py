"""The public face: a published language model, and the answers to a folder that holds no finished run."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

import user_llm
from configs import base
from user_llm.checkpoints.manager import StageCheckpoints

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


def workdir(folder, **changes):
    config = base.get_config()
    config.update(changes)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return folder


def test_a_run_without_a_contextualised_llm_is_named(tmp_path):
    with pytest.raises(ValueError, match="trained only encoder: recommending needs stage user_llm"):
        user_llm.load(workdir(tmp_path, stages=("encoder",)))


@pytest.mark.parametrize(("step", "says"), [(None, "llm has no checkpoints"), (0, "step 0 of"), (3, "step 3 of 1000")])
def test_a_run_that_is_not_finished_is_named_before_any_data_is_read(step, says, tmp_path, monkeypatch):
    if step is not None:
        checkpoints = StageCheckpoints(tmp_path / "llm")
        if step:
            checkpoints.save(step, {"parameters": {"w": jnp.ones(2)}, "step": jnp.int32(step)}, {})
        checkpoints.close()
    monkeypatch.setattr("user_llm.experiment.load_timelines", lambda *_, **__: pytest.fail("the data was asked for"))
    with pytest.raises(FileNotFoundError, match=f"{says}.*: this run is not finished; run its"):
        user_llm.load(workdir(tmp_path))
