"""The public face: language models and finished runs from Python (README, "In Python")."""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import seqio
from ml_collections import ConfigDict

from user_llm.checkpoints import huggingface
from user_llm.data.vocabularies import (
    copy_vocabulary,
    decode_batch,
    encode_batch,
    load_vocabulary,
    rows_needed,
    text_start,
)
from user_llm.decoding.generate import generate
from user_llm.evaluation.evaluator import user_llm_beams
from user_llm.experiment import Experiment
from user_llm.models.language_model import LanguageModel, LanguageModelConfig, causal_mask
from user_llm.parallel.mesh import one_device
from user_llm.stages import restore_stages


class TextModel:
    """A language model with its tokenizer.

    Attributes:
      model: the `LanguageModel`.
      config: its dims.
      tokenizer: a `seqio.Vocabulary`: `encode`, `decode`, `bos_id`, `eos_id`.

    Raises:
      ValueError: the tokenizer has tokens for which the model has no rows.
    """

    def __init__(self, model: LanguageModel, tokenizer: seqio.Vocabulary):
        if rows_needed(tokenizer) > model.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {rows_needed(tokenizer)} tokens, but the model has rows for "
                f"{model.config.vocab_size}: it belongs to another model."
            )
        self.model = model
        self.tokenizer = tokenizer

    @property
    def config(self) -> LanguageModelConfig:
        return self.model.config

    def logits(self, token_ids: np.ndarray) -> jax.Array:
        """Next-token logits float32 `[B, T, V]` at every position of `token_ids`, int `[B, T]`, causal, no padding."""
        tokens = jnp.asarray(token_ids, jnp.int32)
        if tokens.ndim != 2:
            raise ValueError(f"token_ids must be [batch, tokens], got shape {tokens.shape}: put one text in a list.")
        ids = np.asarray(token_ids)
        if ids.size and (ids.min() < 0 or ids.max() >= self.config.vocab_size):
            raise ValueError(f"token ids run from 0 to {self.config.vocab_size - 1}, got {ids.min()} … {ids.max()}.")
        return _logits(self.model, tokens)

    def generate(self, prompt: str, max_new_tokens: int = 40, *, temperature: float = 0.0, seed: int = 0) -> str:
        """The text that continues `prompt`: greedy, or sampled with a temperature.

        BOS is put in front of the prompt where the checkpoint's texts begin with it.
        """
        start, (words,) = text_start(self.tokenizer), encode_batch(self.tokenizer, [prompt])
        length = len(start) + len(words)
        if not length:
            raise ValueError("there is nothing to continue: this tokenizer puts no BOS in front of an empty prompt.")
        if length + max_new_tokens > self.config.max_length:
            raise ValueError(
                f"{length} tokens of prompt and {max_new_tokens} new ones are more than the "
                f"{self.config.max_length} this model was made for: shorten the prompt, or lower max_new_tokens."
            )
        new = generate(
            self.model,
            jnp.asarray([start + words], jnp.int32),
            jnp.asarray([length], jnp.int32),
            max_new_tokens=max_new_tokens,
            eos_id=self.tokenizer.eos_id,
            temperature=temperature,
            key=jax.random.key(seed),
        )
        # Decoded together: a continuation alone would lose the space in front of it.
        whole = np.array([words + np.asarray(new)[0].tolist()], np.int32)
        return decode_batch(self.tokenizer, whole)[0][len(decode_batch(self.tokenizer, whole[:, : len(words)])[0]) :]

    def save(self, folder: str | Path) -> None:
        """Writes a Hugging Face folder, which `load_language_model` and `transformers` load.

        Raises:
          CheckpointError: `folder` holds weights already.
        """
        ids = dict(bos_id=self.tokenizer.bos_id, eos_id=self.tokenizer.eos_id)
        huggingface.save_language_model(self.model, folder, **ids)
        copy_vocabulary(self.tokenizer, folder)


@jax.jit
def _logits(model: LanguageModel, tokens: jax.Array) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = model(tokens, positions, causal_mask(jnp.ones(tokens.shape, bool)))
    return model.logits(hidden)


def load_language_model(name: str | Path, *, dtype: str = "float32", param_dtype: str = "float32") -> TextModel:
    """Loads a Hugging Face folder, or a model of the hub by its name ("organisation/model").

    The folder has `config.json`, safetensors (one file or shards), and `tokenizer.model` or `tokenizer.json`.

    Raises:
      CheckpointError: what of it is missing, left over, misshaped or not supported.
      FileNotFoundError: it has no tokenizer.
    """
    folder = huggingface.resolve(name)
    tokenizer = load_vocabulary(folder)  # first, as it may be missing and takes no time
    return TextModel(huggingface.load_language_model(folder, dtype=dtype, param_dtype=param_dtype), tokenizer)


class Recommendation(NamedTuple):
    """An item's title and the log-probability with which the LLM answers it."""

    title: str
    score: float


class Recommender:
    """A finished run: encoder, LLM and vocabularies, for users it has never seen."""

    def __init__(self, experiment: Experiment):
        self.config = experiment.config
        # First, as it finds out whether the run is finished: one that is not would build its dataset here.
        self._model = restore_stages(experiment)["user_llm"]
        self.catalogue = experiment.catalogue
        self.tokenizer = experiment.vocabulary
        self._prompts = experiment.prompts
        self._trie = experiment.answer_trie
        self._mesh = experiment.mesh
        self._beams: dict[int, Any] = {}
        self._items = {title: item for item, title in enumerate(self.catalogue.titles) if item}
        self._ratings = {float(name): index for index, name in enumerate(experiment.facts["rating_names"]) if name}

    def recommend(self, events: Sequence[Mapping[str, Any]], k: int = 10) -> list[Recommendation]:
        """The `k` likeliest next items of a user, best first, none of which is among the events read.

        Args:
          events: oldest first, each `{"item": title, "rating": number}`; the latest `history_length` are read. The
            rating may be left out only where no encoder reads it.
          k: how many; beams are as many, or the config's where those are more.

        Raises:
          ValueError: no event, an unknown title or an unknown rating; the nearest valid ones are named.
        """
        if not events or k < 1:
            raise ValueError(f"recommend needs at least one event and k of at least 1, got {len(events)} and k={k}.")
        length = self.config.data.history_length
        history = np.zeros((2, 1, length), np.int32)
        for slot, (index, event) in enumerate(
            list(enumerate(events))[-length:], start=length - min(len(events), length)
        ):
            history[:, 0, slot] = self._item(index, event), self._rating(index, event)
        tokens, lengths, _ = self._prompts.build(history[0])
        beams = self._search(max(k, self.config.evaluation.num_beams))
        prompt = {"prompt_tokens": tokens, "prompt_lengths": lengths}
        result, _ = beams({**prompt, "history/item": history[0], "history/rating": history[1]})
        found = zip(np.asarray(result.items)[0].tolist(), np.asarray(result.scores)[0].tolist(), strict=True)
        return [Recommendation(self.catalogue.titles[item], score) for item, score in found if item][:k]

    def _search(self, num_beams: int):
        if num_beams not in self._beams:
            self._beams[num_beams] = user_llm_beams(
                self._model.graphdef,
                self._model.parameters,
                self._model.buffers,
                self._mesh,
                trie=self._trie,
                eos_id=self.tokenizer.eos_id,
                num_beams=num_beams,
                max_steps=len(self._trie.fan_out),
                exclude_history=True,
            )
        return self._beams[num_beams]

    def _item(self, index: int, event: Mapping[str, Any]) -> int:
        title = event.get("item")
        if title not in self._items:
            near = difflib.get_close_matches(str(title), self._items, n=3)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise ValueError(f"event {index}: {title!r} is no title of the catalogue{hint}")
        return self._items[title]

    def _rating(self, index: int, event: Mapping[str, Any]) -> int:
        encodes = self.config.integration.kind != "none"
        if "rating" not in event and not (encodes and "rating" in self.config.encoder.features):
            return 0
        try:
            return self._ratings[float(event.get("rating"))]
        except (TypeError, ValueError, KeyError):
            known = ", ".join(f"{value:g}" for value in self._ratings)
            raise ValueError(f"event {index}: rating {event.get('rating')!r}; expected one of {known}") from None


def load(workdir: str | Path) -> Recommender:
    """Loads a finished run from its workdir, on this process' first device; the dataset is not needed.

    Raises:
      FileNotFoundError: the folder holds no run, or one that is not finished.
      ValueError: a run that trained no contextualised LLM.
    """
    workdir = Path(workdir)
    path = workdir / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: name the --workdir of a finished run.")
    config = ConfigDict(json.loads(path.read_text()))
    if "user_llm" not in config.stages:
        raise ValueError(f"{workdir} trained only {', '.join(config.stages)}: recommending needs stage user_llm.")
    if config.task != "next_item":
        raise ValueError(f"{workdir} answers task {config.task!r}: recommending needs a run of task 'next_item'.")
    return Recommender(Experiment(config, workdir, one_device()))
