"""The public face: language models and finished runs from Python (docs/python.md)."""

import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from user_llm.arguments import folder_path, whole
from user_llm.errors import UserError
from user_llm.events import Event, EventReader
from user_llm.experiment.borrowed import contents
from user_llm.experiment.experiment import Experiment
from user_llm.experiment.export import save_language_model
from user_llm.experiment.seal import check_kept, refuse_swapped
from user_llm.experiment.training import RestoredStages
from user_llm.experiment.workdir import BORROWED, read_config
from user_llm.parallel.mesh import one_device
from user_llm.tasks import TASKS, Answer, Asker, Study
from user_llm.tasks.extra_items import WithExtraItems
from user_llm.text_model import TextModel, load_language_model

__all__ = ["Answer", "Event", "TextModel", "UserModel", "load", "load_language_model"]

BATCHES = (1, 8, 64)
"""Users at once: as many rows as the next of these, so that each is compiled for once."""

Users = Sequence[Event] | Sequence[Sequence[Event]]
"""One user's events, or those of many."""


class UserModel:
    """A finished run: encoder, LLM and vocabularies, for users it has never seen.

    Attributes:
      config, catalogue, tokenizer: of the run.
      tasks: names of the tasks that it was trained for.
      events: reads events, and knows what has to stand in them.
    """

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
        self.events = EventReader(self.config, self.catalogue.titles, experiment.rating_names)

    def recommend(
        self,
        events: Users,
        k: int = 10,
        *,
        now: float | Sequence[float] | None = None,
        answers: str = "beams",
        extra_items: Sequence[Mapping[str, str]] = (),
    ) -> list[Any]:
        """The `k` likeliest next items of a user, or of each of many, best first.

        None of them is among the events read.

        Args:
          events: oldest first, each `{"item": title, "rating": number}`; the latest `history_length` are read. The
            rating may be left out only where no encoder reads it. An encoder that reads times (`encoder.time`) needs
            `"time"`, too: seconds since 1970. Of many users: a list of such lists, which get a list of answers.
          k: how many; the whole rest of the catalogue where that is less. Up to 100 are found by beam search, with
            as many beams or the config's where those are more; more are ranked exactly, in the same memory.
          now: of the answer, in seconds since 1970; for `encoder.time=asked`, which needs it. Of many users: one for
            all, or for each.
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
        events: Users,
        task: str | None = None,
        k: int = 10,
        *,
        about: Event | Sequence[Event] | None = None,
        now: float | Sequence[float] | None = None,
        answers: str = "beams",
    ) -> list[Any]:
        """The `k` likeliest answers to a task's question about a user, or about each of many, best first.

        Args:
          events: as for `recommend`.
          task: one the run was trained for; None: its first.
          about: the event, with its rating, that a review is to be written of; of many users one for each.
          now, answers: as for `recommend`.

        Raises:
          UserError: as `recommend`.
        """
        return self._answer(events, self.tasks[0] if task is None else task, k, about=about, now=now, answers=answers)

    def _answer(
        self,
        events: Users,
        task: str,
        k: int,
        *,
        about: Any = None,
        now: Any,
        answers: str,
        extra: tuple[str, ...] = (),
    ) -> list[Any]:
        if task not in self.tasks:
            raise UserError(f"{self._experiment.workdir} answers {' and '.join(self.tasks)}: train a run of {task!r}.")
        k = whole("k", k, 1)
        if (about is not None) != TASKS[task].asks_about_label:
            raise UserError(f"task {task!r} asks about {'an event: give it with about=' if about is None else 'none'}.")
        many = _is_list(events) and len(events) > 0 and _is_list(events[0])
        users = list(events) if many else [events]
        where = [f"user {user}, " for user in range(len(users))] if many else [""]
        moments, asked = _each("now", now, users, many), _each("about", about, users, many)
        asker = self._asker(task, k, answers, extra)
        found: list[list[Answer]] = []
        for start in range(0, len(users), BATCHES[-1]):
            part = slice(start, start + BATCHES[-1])
            found += self._ask(asker, task, users[part], moments[part], asked[part], where[part])
        return found if many else found[0]

    def _ask(
        self,
        asker: Asker,
        task: str,
        users: Sequence[Any],
        now: Sequence[float | None],
        about: Sequence[Event | None],
        where: Sequence[str],
    ) -> list[list[Answer]]:
        """The answers about users who fit into a batch."""
        read = self.events.read(users, now, where)
        asked: list[np.ndarray] = []
        if about[0] is not None:
            names = [f"{prefix}about" for prefix in where]
            pairs = [(name, event) for name, event in zip(names, about, strict=True) if event is not None]
            asked = [np.array([self.events.item(*pair) for pair in pairs])]
            asked += [np.array([self.events.rating(*pair, asked=True) for pair in pairs])]
        return self._ask_of(asker, task, read, asked)

    def _ask_of(
        self, asker: Asker, task: str, read: Mapping[str, np.ndarray], asked: Sequence[np.ndarray] = ()
    ) -> list[list[Answer]]:
        """The answers about the users of a batch that has been read."""
        tokens, lengths, _ = self._experiment.prompts(task).build(read["history/item"], *asked)
        batch = {"prompt_tokens": tokens, "prompt_lengths": lengths, **read}
        count = len(tokens)
        filled = next(size for size in BATCHES if size >= count) - count
        rows = {name: np.pad(x, ((0, filled), *((0, 0),) * (x.ndim - 1))) for name, x in batch.items()}
        return asker(rows)[:count]

    def recommend_read(
        self, read: Mapping[str, np.ndarray], k: int = 10, *, answers: str = "beams"
    ) -> list[list[Answer]]:
        """As `recommend`, of users who are arrays already, no more than the last of `BATCHES`.

        Args:
          read: `history/item`, `history/rating` int32 `[B, S]`, ids and classes of the run, oldest first, left-padded
            with 0; and `history/ago`, seconds from each event until the user is asked, where `events.reads_times`.
        """
        return self._ask_of(self._asker("next_item", whole("k", k, 1), answers, ()), "next_item", read)

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
            if title in self.events.items or title in titles:
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


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _each(name: str, value: Any, users: Sequence[Any], many: bool) -> list[Any]:
    """One value for each of the users."""
    if not many or value is None or isinstance(value, (int, float)):
        return [value] * len(users)
    if not _is_list(value) or len(value) != len(users):
        raise UserError(f"{name} must be one for each of the {len(users)} users, got {reprlib.repr(value)}.")
    return list(value)


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
