"""The public face: language models and finished runs from Python (docs/python.md)."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from user_llm.answerable import AnswerableItems
from user_llm.arguments import folder_path, whole
from user_llm.asking import BATCHES, Askers, beside, filled
from user_llm.embeddings import UserEmbeddings, catalogue_fingerprint, parameters_fingerprint
from user_llm.errors import UserError
from user_llm.evaluation.evaluator import user_llm_texts
from user_llm.evaluation.users import encoder_queries, user_embeddings
from user_llm.events import Event, EventReader
from user_llm.experiment.borrowed import contents
from user_llm.experiment.experiment import Experiment
from user_llm.experiment.export import save_language_model
from user_llm.experiment.seal import check_kept, refuse_swapped
from user_llm.experiment.training import RestoredStages
from user_llm.experiment.workdir import BORROWED, read_config
from user_llm.given import Given, Users, as_many, is_list, skips
from user_llm.parallel.mesh import one_device
from user_llm.parallel.processes import fetch
from user_llm.tasks import TASKS, Answer, Asker
from user_llm.text_model import TextModel, continuation, load_language_model, prompt_tokens

__all__ = ["Answer", "Event", "TextModel", "UserEmbeddings", "UserModel", "load", "load_language_model"]

_WIDTH = 16  # tokens: prompts of any text are as wide as the next multiple


class UserModel:
    """A finished run: encoder, LLM and vocabularies, for users it has never seen. Threads may share one.

    Attributes:
      config, catalogue, tokenizer: of the run.
      tasks: names of the tasks that it was trained for.
      events: reads events, and knows what has to stand in them.
      items: what may be answered as a next item: `add` and `remove` change it.
      study, contextualised: the run as tasks see it, and its LLM.
    """

    def __init__(self, experiment: Experiment):
        self.config = experiment.config
        self._stages = RestoredStages(experiment)
        # First, as it finds out whether the run is finished: one that is not would build its dataset here.
        self.contextualised = self._stages["user_llm"]
        self.catalogue = experiment.catalogue
        self.tokenizer = experiment.vocabulary
        self.tasks = tuple(task.name for task in experiment.tasks)
        self.study = experiment
        self._askers = Askers(experiment, self._stages)
        self.events = EventReader(self.config, self.catalogue.titles, experiment.rating_names)
        self.items = AnswerableItems(self.catalogue, self.events.items)

    def encode(
        self,
        users: Users,
        *,
        now: float | Sequence[float] | None = None,
        unknown: str = "error",
        query: bool | None = None,
    ) -> UserEmbeddings:
        """What the run makes of users' events: small arrays that may be kept, and asked anything later.

        Args:
          users, now, unknown: as for `recommend`. A single user is a batch of one.
          query: whether what the encoder alone asks for is made, too, for answers "fused" and "encoder"; None: of a run
            whose answers are fused.

        Raises:
          UserError: as `recommend`.
        """
        if query is None:
            query = self.config.evaluation.answers == "fused"
        return UserEmbeddings.join(list(self._parts(as_many(users), now, unknown, query)))

    def encode_arrays(self, read: Mapping[str, np.ndarray], *, query: bool = False) -> UserEmbeddings:
        """As `encode`, of users who are arrays already, no more than the last of `BATCHES`.

        Args:
          read: `history/item`, `history/rating` int32 `[B, S]`, ids and classes of the run, oldest first, left-padded
            with 0; and `history/ago`, seconds from each event until the user is asked, where `events.reads_times`.
        """
        items = read["history/item"]
        embeddings, mask = np.zeros((len(items), 0, 0), np.float32), np.zeros((len(items), 0), bool)
        batch = filled(read)
        if self.config.integration.kind != "none":
            made = user_embeddings(self.contextualised)(batch)
            embeddings, mask = (np.asarray(fetch(x))[: len(items)] for x in made)
        asked = None
        if query:
            if "encoder" not in self._stages:
                raise UserError(f"{self.study.workdir} has trained no encoder that could be asked alone.")
            if self.config.integration.kind == "none" and (
                self.config.encoder.time or len(self.config.encoder.features) > 1
            ):
                raise UserError(
                    f"the LLM of {self.study.workdir} reads events' titles alone, and its encoder more than these: its "
                    "encoder cannot be asked from here."
                )
            asked = np.asarray(fetch(encoder_queries(self._stages["encoder"])(batch)))[: len(items)]
        return UserEmbeddings(items, embeddings, mask, asked, *self.fingerprints)

    def recommend(
        self,
        events: Users,
        k: int = 10,
        *,
        now: float | Sequence[float] | None = None,
        answers: str = "beams",
        exclude: Sequence[str] | Sequence[Sequence[str]] = (),
        allow: Sequence[str] | None = None,
        category: str | None = None,
        extra_items: Sequence[Mapping[str, str]] = (),
        unknown: str = "error",
    ) -> Any:
        """The `k` likeliest next items of a user, or of each of many, best first.

        None of them is among the events read.

        Args:
          events: oldest first, each `{"item": title, "rating": number}`; the latest `history_length` are read. The
            rating may be left out only where no encoder reads it. An encoder that reads times (`encoder.time`) needs
            `"time"`, too: seconds since 1970. Of many users: a list of such lists, which get a list of answers; an
            iterator of them, whose answers are an iterator, in the memory of a batch; or what `encode` has made.
          k: how many; the whole rest of the catalogue where that is less. Up to 100 are found by beam search, with
            as many beams or the config's where those are more; more are ranked exactly, in the same memory.
          now: of the answer, in seconds since 1970; for `encoder.time=asked`, which needs it. Of many users: one for
            all, or for each.
          answers: "beams" of the LLM; "exact", by the probability of every title; "fused" with what its encoder says,
            by a run with `evaluation.answers=fused`; or those of the "encoder" alone.
          exclude: titles that are no answer either; of many users: for all, or a list for each.
          allow, category: titles, and the name of a category, that an answer must be of.
          extra_items: items that came after the training, each `{"title": text}`: they may be answered, too, in this
            call. `self.items.add` is for all calls.
          unknown: what of events whose item or rating the run does not know: an "error", or "skip". Skipped ones are
            counted in `self.events.skipped`; a user without any other gets no answers.

        Raises:
          UserError: the run was not trained for it; no event, or one that is none (an unknown title, an unknown
            rating: the nearest valid ones are named); a `k` that is no number of answers.
        """
        chosen = self.items.chosen(extra_items, allow, category)
        self._check_trained("next_item")
        users, k = as_many(events), whole("k", k, 1)
        closed = users.closed(chosen.ids, exclude)
        asker = self._askers.get("next_item", k, answers, chosen.extra, chosen.allowed)
        query = answers in ("fused", "encoder")
        return self._answer(users, "next_item", asker, now=now, unknown=unknown, query=query, closed=closed)

    def answer(
        self,
        events: Users,
        task: str | None = None,
        k: int = 10,
        *,
        about: Event | Sequence[Event] | None = None,
        now: float | Sequence[float] | None = None,
        unknown: str = "error",
    ) -> Any:
        """The `k` likeliest answers to a task's question about a user, or about each of many, best first.

        Args:
          events: as for `recommend`.
          task: one the run was trained for; None: its first.
          about: the event, with its rating, that a review is to be written of; of many users one for each.
          now, unknown: as for `recommend`.

        Raises:
          UserError: as `recommend`.
        """
        task = self.tasks[0] if task is None else task
        if task == "next_item" and about is None:
            return self.recommend(events, k, now=now, unknown=unknown)
        self._check_trained(task)
        if (about is not None) != TASKS[task].asks_about_label:
            raise UserError(f"task {task!r} asks about {'an event: give it with about=' if about is None else 'none'}.")
        users, asker = as_many(events), self._askers.get(task, whole("k", k, 1), None)
        return self._answer(users, task, asker, now=now, unknown=unknown, about=about)

    def generate(
        self,
        events: Users,
        prompt: str | Sequence[str],
        max_new_tokens: int | Sequence[int] = 40,
        *,
        now: Any = None,
        unknown: str = "error",
    ) -> Any:
        """The text that continues `prompt`, greedily, by an LLM that reads the user: of many users a text for each.

        Args:
          events, now, unknown: as for `recommend`.
          prompt, max_new_tokens: of many users one for all, or a list with one for each.

        Raises:
          UserError: as `recommend`; the LLM has no room for the text.
        """
        users = as_many(events)

        def spread(name: str, value: Any) -> Callable[[slice], list[Any]]:
            if users.many and is_list(value):
                return users.each(name, value)
            return lambda rows: [value] * (rows.stop - rows.start)

        of_each = is_list(max_new_tokens)
        of_all = None if is_list(prompt) or of_each else self._prompt_tokens(prompt, max_new_tokens)
        prompts, limits = spread("prompt", prompt), spread("max_new_tokens", max_new_tokens)
        eos_id = self.tokenizer.eos_id

        def ask(part: UserEmbeddings, rows: slice) -> list[str]:
            own = limits(rows)
            pairs = zip(prompts(rows), own, strict=True)
            read = [of_all] * len(part) if of_all else [self._prompt_tokens(*pair) for pair in pairs]
            lengths = np.array([len(start + words) for start, words in read], np.int32)
            tokens = np.zeros((len(part), _up(lengths.max())), np.int32)
            for row, (start, words) in zip(tokens, read, strict=True):
                row[: len(start + words)] = start + words
            most = _up(max(own)) if of_each else int(max(own))
            texts = user_llm_texts(self.contextualised, eos_id=eos_id, max_new_tokens=most)
            asked = {"prompt_tokens": tokens, "prompt_lengths": lengths, **part.batch()}
            new = np.asarray(fetch(texts(filled(asked))))[: len(part)]
            return [
                continuation(self.tokenizer, words, row[:limit])
                for (_, words), row, limit in zip(read, new, own, strict=True)
            ]

        return self._of_each(users, now, unknown, False, ask)

    def text_lengths(self, prompt: str, max_new_tokens: int) -> tuple[int, int]:
        """How long `generate` makes a prompt and its text, in tokens: users of the same lengths share what is compiled.

        Raises:
          UserError: as `generate`.
        """
        start, words = self._prompt_tokens(prompt, max_new_tokens)
        return _up(len(start + words)), _up(max_new_tokens)

    def _prompt_tokens(self, prompt: Any, max_new_tokens: Any) -> tuple[list[int], list[int]]:
        assembly = self.study.assembly
        room = assembly.language_model_config.max_length - assembly.soft_prompt_length
        return prompt_tokens(self.tokenizer, prompt, max_new_tokens, room)

    def save_language_model(self, folder: str | Path) -> None:
        """Writes the run's language model by itself, as a Hugging Face folder that `load_language_model` loads.

        What tells it about users is left out, adapters are merged. Of a run with a trimmed vocabulary, the table is the
        checkpoint's with the run's rows put in, and the tokenizer whole.

        Raises:
          UserError: `folder` is none.
          CheckpointError: it holds weights already.
        """
        save_language_model(self.study, self.contextualised, folder_path("folder", folder))

    def _check_trained(self, task: str) -> None:
        if task not in self.tasks:
            raise UserError(f"{self.study.workdir} answers {' and '.join(self.tasks)}: train a run of {task!r}.")

    def _answer(
        self,
        given: Given,
        task: str,
        asker: Asker,
        *,
        now: Any,
        unknown: str,
        query: bool = False,
        about: Any = None,
        closed: Callable[[slice], list[list[int]]] | None = None,
    ) -> Any:
        """A task's answers about users; `closed` items of some users are none, `about` is what each is asked about."""
        asked, prompts = given.each("about", about), self.study.prompts(task)

        def ask(part: UserEmbeddings, rows: slice) -> list[list[Answer]]:
            label = self._label(asked(rows), rows, given.many) if about is not None else []
            tokens, lengths, _ = prompts.build(part.items, *label)
            batch = {"prompt_tokens": tokens, "prompt_lengths": lengths, **part.batch()}
            if closed is not None:
                batch["seen/item"] = beside(part.items, closed(rows))
            found = asker(filled(batch))[: len(part)]
            return [answers if items.any() else [] for answers, items in zip(found, part.items, strict=True)]

        return self._of_each(given, now, unknown, query, ask)

    def _of_each(
        self, given: Given, now: Any, unknown: str, query: bool, ask: Callable[[UserEmbeddings, slice], list[Any]]
    ) -> Any:
        """What is answered about each user, in batches."""

        def each() -> Iterator[Any]:
            start = 0
            for part in self._parts(given, now, unknown, query):
                yield from ask(part, slice(start, start + len(part)))
                start += len(part)

        if given.count is None:
            return each()
        found = list(each())
        return found if given.many else found[0]

    def _parts(self, given: Given, now: Any, unknown: str, query: bool) -> Iterator[UserEmbeddings]:
        """The users in batches."""
        skip, size, users = skips(unknown), BATCHES[-1], given.users
        if isinstance(users, UserEmbeddings):
            users.check(*self.fingerprints)
            if now is not None:
                raise UserError("now= was read when the users were encoded: leave it out.")
            if query and users.query is None:
                raise UserError(
                    "these users were encoded without what the encoder asks for: encode them with query=True (a store "
                    "keeps it where evaluation.answers=fused)."
                )
            yield from (users[start : start + size] for start in range(0, len(users), size))
            return
        moments, rest = given.each("now", now), iter(users)
        for start in itertools.count(step=size):
            some = list(itertools.islice(rest, size))
            if not some:
                return
            where = [f"user {start + row}, " if given.many else "" for row in range(len(some))]
            read = self.events.read(some, moments(slice(start, start + len(some))), where, skip=skip)
            yield self.encode_arrays(read, query=query)

    def _label(self, events: Sequence[Any], rows: slice, many: bool) -> list[np.ndarray]:
        """Items and ratings of the events that are asked about."""
        names = [f"user {row}, about" if many else "about" for row in range(rows.start, rows.stop)]
        pairs = list(zip(names, events, strict=True))
        items = [self.events.item(*pair) for pair in pairs]
        return [np.array(items), np.array([self.events.rating(*pair, asked=True) for pair in pairs])]

    @functools.cached_property
    def fingerprints(self) -> tuple[str, str]:
        """Of the encoder and of the catalogue: embeddings belong to both."""
        read = ("encoder/", "perceiver/")
        values = {path: value for path, value in self.contextualised.parameters.items() if path.startswith(read)}
        if self.config.evaluation.answers == "fused":
            alone = self._stages["encoder"].parameters
            values |= {f"alone/{path}": value for path, value in alone.items()}
        return parameters_fingerprint(values), catalogue_fingerprint(self.catalogue)


def _up(length: int) -> int:
    return int(-(-length // _WIDTH) * _WIDTH)


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
