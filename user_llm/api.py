"""The public face: language models and finished runs from Python (docs/python.md)."""

import difflib
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from user_llm.arguments import folder_path, is_number, whole
from user_llm.checkpoints import huggingface
from user_llm.data.vocabularies import (
    Vocabulary,
    load_vocabulary,
    text_start,
)
from user_llm.decoding.generate import generate
from user_llm.errors import UserError
from user_llm.experiment.borrowed import contents
from user_llm.experiment.experiment import Experiment
from user_llm.experiment.export import save_language_model
from user_llm.experiment.seal import check_kept, refuse_swapped
from user_llm.experiment.training import RestoredStages
from user_llm.experiment.workdir import BORROWED, read_config
from user_llm.models.language_model import LanguageModel, LanguageModelConfig, causal_mask
from user_llm.parallel.mesh import one_device
from user_llm.tasks import TASKS, Answer, Asker, Study
from user_llm.tasks.extra_items import WithExtraItems

Event = Mapping[str, Any]
_EVENT = '{"item": title, "rating": number}'


class TextModel:
    """A language model with its tokenizer.

    Attributes:
      model: the `LanguageModel`.
      config: its dims.
      tokenizer: a `Vocabulary`: `encode`, `decode`, `bos_id`, `eos_id`.

    Raises:
      UserError: the tokenizer has tokens for which the model has no rows.
    """

    def __init__(self, model: LanguageModel, tokenizer: Vocabulary):
        if tokenizer.rows > model.config.vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.rows} tokens, but the model has rows for "
                f"{model.config.vocab_size}: it belongs to another model."
            )
        self.model = model
        self.tokenizer = tokenizer

    @property
    def config(self) -> LanguageModelConfig:
        return self.model.config

    def logits(self, token_ids: np.ndarray) -> jax.Array:
        """Next-token logits float32 `[B, T, V]` at every position of `token_ids`, int `[B, T]`, causal, no padding.

        Raises:
          UserError: `token_ids` are no such array, outside of the vocabulary, or more than the model's `max_length`.
        """
        try:
            ids = np.asarray(token_ids)
        except ValueError:
            raise UserError("token_ids must be [batch, tokens], got texts of several lengths: ask for each.") from None
        if ids.ndim != 2 or not ids.size:
            raise UserError(f"token_ids must be [batch, tokens], got shape {ids.shape}: put one text in a list.")
        if ids.dtype.kind not in "iu":
            raise UserError(f"token_ids must be whole numbers, got an array of {ids.dtype}.")
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise UserError(f"token ids run from 0 to {self.config.vocab_size - 1}, got {ids.min()} … {ids.max()}.")
        if ids.shape[1] > self.config.max_length:
            raise UserError(
                f"{ids.shape[1]} tokens are more than the {self.config.max_length} this model was made for: cut them."
            )
        logits: jax.Array = _logits(self.model, jnp.asarray(ids, jnp.int32))
        return logits

    def generate(self, prompt: str, max_new_tokens: int = 40, *, temperature: float = 0.0, seed: int = 0) -> str:
        """The text that continues `prompt`: greedy, or sampled with a temperature.

        BOS is put in front of the prompt where the checkpoint's texts begin with it. The same seed, from 0 to
        2**32 - 1, gives the same text.

        Raises:
          UserError: an argument is no such thing, or prompt and new tokens are more than the model's `max_length`.
        """
        _check_text(prompt)
        max_new_tokens, seed = whole("max_new_tokens", max_new_tokens, 1), whole("seed", seed, 0, 2**32 - 1)
        start, (words,) = text_start(self.tokenizer), self.tokenizer.encode_batch([prompt])
        length = len(start) + len(words)
        if not length:
            raise UserError("there is nothing to continue: this tokenizer puts no BOS in front of an empty prompt.")
        if length + max_new_tokens > self.config.max_length:
            raise UserError(
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
        together = np.array([words + np.asarray(new)[0].tolist()], np.int32)
        return self.tokenizer.decode_batch(together)[0][
            len(self.tokenizer.decode_batch(together[:, : len(words)])[0]) :
        ]

    def save(self, folder: str | Path) -> None:
        """Writes a Hugging Face folder, which `load_language_model` and `transformers` load.

        Raises:
          UserError: `folder` is none.
          CheckpointError: it holds weights already.
        """
        folder = folder_path("folder", folder)
        huggingface.save_language_model(self.model, folder, bos_id=self.tokenizer.bos_id, eos_id=self.tokenizer.eos_id)
        self.tokenizer.save(folder)


def _check_text(prompt: str) -> None:
    if not isinstance(prompt, str):
        raise UserError(f"prompt must be a text, got {reprlib.repr(prompt)}.")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"prompt holds {prompt[error.start]!r} at {error.start}, half a character: decode the text with "
            "errors='replace'."
        ) from None


@jax.jit
def _logits(model: LanguageModel, tokens: jax.Array) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = model(tokens, positions, causal_mask(jnp.ones(tokens.shape, bool)))
    return model.logits(hidden)


def load_language_model(name: str | Path, *, dtype: str = "float32", param_dtype: str = "float32") -> TextModel:
    """Loads a Hugging Face folder, a GGUF file, or a model of the hub by its name ("organisation/model").

    The folder has `config.json`, safetensors (one file or shards), and `tokenizer.model` or `tokenizer.json`. A GGUF
    file has all of it.

    Raises:
      CheckpointError: what of it is missing, left over, misshaped or not supported.
      FileNotFoundError: it has no tokenizer.
    """
    folder = huggingface.resolve(name)
    tokenizer = load_vocabulary(folder)  # first, as it may be missing and takes no time
    return TextModel(huggingface.load_language_model(folder, dtype=dtype, param_dtype=param_dtype), tokenizer)


class UserModel:
    """A finished run: encoder, LLM and vocabularies, for users it has never seen."""

    def __init__(self, experiment: Experiment):
        self.config = experiment.config
        self._stages = RestoredStages(experiment)
        # First, as it finds out whether the run is finished: one that is not would build its dataset here.
        self._model = self._stages["user_llm"]
        self.catalogue = experiment.catalogue
        self.tokenizer = experiment.vocabulary
        self.tasks = tuple(task.name for task in experiment.tasks)
        self._experiment = experiment
        self._study: Study = experiment
        self._extra: tuple[str, ...] = ()
        self._askers: dict[tuple[str, int, str], Asker] = {}
        self._items = {title: item for item, title in enumerate(self.catalogue.titles) if item}
        self._ratings = {float(name): index for index, name in enumerate(experiment.rating_names) if name}

    def recommend(
        self,
        events: Sequence[Event],
        k: int = 10,
        *,
        now: float | None = None,
        answers: str = "beams",
        extra_items: Sequence[Mapping[str, str]] = (),
    ) -> list[Answer]:
        """The `k` likeliest next items of a user, best first, none of which is among the events read.

        Args:
          events: oldest first, each `{"item": title, "rating": number}`; the latest `history_length` are read. The
            rating may be left out only where no encoder reads it. An encoder that reads times (`encoder.time`) needs
            `"time"`, too: seconds since 1970.
          k: how many; the whole rest of the catalogue where that is less. Up to 100 are found by beam search, with
            as many beams or the config's where those are more; more are ranked exactly, in the same memory.
          now: of the answer, in seconds since 1970; for `encoder.time=asked`, which needs it.
          answers: "beams" of the LLM, or "fused" with what its encoder says, by a run with `evaluation.answers=fused`.
          extra_items: items that came after the training, each `{"title": text}`: they may be answered, too. Others
            than in the call before are read anew, and compiled for.

        Raises:
          UserError: the run was not trained for it; no event, or one that is none (an unknown title, an unknown
            rating: the nearest valid ones are named); a `k` that is no number of answers.
        """
        return self._answer(events, "next_item", k, now=now, answers=answers, extra=self._titles_of(extra_items))

    def answer(
        self,
        events: Sequence[Event],
        task: str | None = None,
        k: int = 10,
        *,
        about: Event | None = None,
        now: float | None = None,
        answers: str = "beams",
    ) -> list[Answer]:
        """The `k` likeliest answers to a task's question about a user, best first.

        Args:
          events: as for `recommend`.
          task: one the run was trained for; None: its first.
          about: the event, with its rating, that a review is to be written of.
          now, answers: as for `recommend`.

        Raises:
          UserError: as `recommend`.
        """
        return self._answer(events, self.tasks[0] if task is None else task, k, about=about, now=now, answers=answers)

    def _answer(
        self,
        events: Sequence[Event],
        task: str,
        k: int,
        *,
        about: Event | None = None,
        now: float | None,
        answers: str,
        extra: tuple[str, ...] = (),
    ) -> list[Answer]:
        if task not in self.tasks:
            raise UserError(f"{self._experiment.workdir} answers {' and '.join(self.tasks)}: train a run of {task!r}.")
        k = whole("k", k, 1)
        if not isinstance(events, Sequence) or isinstance(events, (str, bytes)) or not events:
            raise UserError(f"events must be a list of at least one event, {_EVENT}, got {reprlib.repr(events)}.")
        if (about is not None) != TASKS[task].asks_about_label:
            raise UserError(f"task {task!r} asks about {'an event: give it with about=' if about is None else 'none'}.")
        length = self.config.data.history_length
        history = np.zeros((2, 1, length), np.int32)
        recent = list(enumerate(events))[-length:]
        for slot, (index, event) in enumerate(recent, start=length - len(recent)):
            history[:, 0, slot] = self._item(f"event {index}", event), self._rating(f"event {index}", event)
        times = self._ago(recent, now)
        asked = []
        if about is not None:
            asked = [np.array([part("about", about)]) for part in (self._item, self._rating)]
        tokens, lengths, _ = self._experiment.prompts(task).build(history[0], *asked)
        prompt = {"prompt_tokens": tokens, "prompt_lengths": lengths}
        read = {"history/item": history[0], "history/rating": history[1], **times}
        (found,) = self._asker(task, k, answers, extra)({**prompt, **read})
        return found

    def save_language_model(self, folder: str | Path) -> None:
        """Writes the run's language model by itself, as a Hugging Face folder that `load_language_model` loads.

        What tells it about users is left out, adapters are merged. Of a run with a trimmed vocabulary, the table is the
        checkpoint's with the run's rows put in, and the tokenizer whole.

        Raises:
          UserError: `folder` is none.
          CheckpointError: it holds weights already.
        """
        save_language_model(self._experiment, self._model, folder_path("folder", folder))

    def _titles_of(self, extra_items: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
        """The titles of items that came after the training."""
        titles: list[str] = []
        for index, item in enumerate(extra_items):
            title = item.get("title") if isinstance(item, Mapping) and {*item} == {"title"} else None
            if not isinstance(title, str) or not title.strip():
                raise UserError(f'extra item {index}: expected {{"title": text}}, got {reprlib.repr(item)}.')
            if title in self._items or title in titles:
                raise UserError(f"extra item {index}: {title!r} is a title of the catalogue, or given twice.")
            titles.append(title)
        return tuple(titles)

    def _asker(self, task: str, k: int, answers: str, extra: tuple[str, ...]) -> Asker:
        if extra != self._extra:
            self._extra, self._askers = extra, {}
            self._study = WithExtraItems(self._experiment, extra) if extra else self._experiment
        if (task, k, answers) not in self._askers:
            self._askers[task, k, answers] = self._make_asker(task, k, answers)
        return self._askers[task, k, answers]

    def _make_asker(self, task: str, k: int, answers: str) -> Asker:
        if answers == "beams":
            return TASKS[task].asker(self._study, self._model, k)
        if answers != "fused":
            raise UserError(f"answers must be 'beams' or 'fused', got {reprlib.repr(answers)}.")
        if self.config.evaluation.answers != "fused":
            raise UserError(
                f"{self._experiment.workdir} has fitted no mix of its LLM and its encoder: run its config with "
                "--config.evaluation.answers=fused in another --workdir."
            )
        return TASKS[task].fused_asker(self._study, self._model, self._stages["encoder"], k)

    def _ago(self, events: Sequence[tuple[int, Event]], now: float | None) -> dict[str, np.ndarray]:
        """`history/ago` int32 `[1, S]`, seconds until now, or until the newest event, where the run reads times."""
        reads = self.config.encoder.time if self.config.integration.kind != "none" else ""
        if (now is not None) != (reads == "asked"):
            asks = "the time of the answer: give now=" if reads == "asked" else "no time of the answer: leave now= out"
            raise UserError(f"config.encoder.time={reads!r} reads {asks}.")
        if not reads:
            return {}
        named = [(f"event {index}: its time", event.get("time")) for index, event in events]
        if now is not None:
            named.append(("now", now))
        moments: list[float] = []
        for name, moment in named:
            if not is_number(moment):
                raise UserError(f"{name} must be a number of seconds since 1970, got {reprlib.repr(moment)}.")
            if moments and moment < moments[-1]:
                raise UserError(f"{name} is before the event before it: give events oldest first.")
            moments.append(float(moment))
        span = moments[-1] - np.array(moments[: len(events)])
        ago = np.zeros((1, self.config.data.history_length), np.int32)
        ago[0, -len(events) :] = np.minimum(span, np.iinfo(np.int32).max)
        return {"history/ago": ago}

    def _item(self, where: str, event: Event) -> int:
        if not isinstance(event, Mapping) or "item" not in event:
            raise UserError(f"{where}: expected {_EVENT}, got {reprlib.repr(event)}.")
        title = event["item"]
        if not isinstance(title, str) or title not in self._items:
            near = difflib.get_close_matches(str(title), self._items, n=3)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise UserError(f"{where}: {title!r} is no title of the catalogue{hint}")
        return self._items[title]

    def _rating(self, where: str, event: Event) -> int:
        encodes = self.config.integration.kind != "none"
        reads = where == "about" or (encodes and "rating" in self.config.encoder.features)
        if "rating" not in event and not reads:
            return 0
        rating = event.get("rating")
        if not is_number(rating) or float(rating) not in self._ratings:
            known = ", ".join(f"{value:g}" for value in self._ratings)
            raise UserError(f"{where}: rating {reprlib.repr(rating)}; expected one of {known}")
        return self._ratings[float(rating)]


def load(workdir: str | Path) -> UserModel:
    """Loads a finished run from its workdir, on this process' first device; the dataset is not needed.

    Raises:
      FileNotFoundError: the folder holds no run, or one that is not finished.
      UserError: no folder; a run that trained no contextualised LLM, or one of another version.
    """
    workdir = folder_path("workdir", workdir)
    config = read_config(workdir)
    check_kept(workdir)
    # The vocabulary's copy is in the workdir; all else that answers need is read where it lies.
    unread = ("llm.vocabulary", "evaluation.second_encoder")
    refuse_swapped(workdir, config, contents(config, [key for key in BORROWED if key not in unread]))
    if "user_llm" not in config.stages:
        raise UserError(f"{workdir} trained only {', '.join(config.stages)}: answering needs stage user_llm.")
    return UserModel(Experiment(config, workdir, one_device()))
