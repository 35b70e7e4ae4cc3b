"""A finished run as it answers batches of requests: how each kind of them is computed, and how long it takes."""

import copy
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from user_llm.answerable import AnswerableItems, Changes
from user_llm.api import Answer, UserModel
from user_llm.embeddings import UserEmbeddings
from user_llm.errors import UserError
from user_llm.given import ids_of
from user_llm.serving.catalogue_items import SharedItems, TitleSearch
from user_llm.serving.catalogue_map import CatalogueMap
from user_llm.serving.problems import Refused
from user_llm.serving.settings import Settings
from user_llm.store.engine import StoreError
from user_llm.store.user_store import UserStore
from user_llm.tasks import TASKS

RECOMMEND, ANSWER, GENERATE, APPEND = "recommend", "answer", "generate", "append"

_WARM_TEXT = "The user's next", 40  # what a request asks for if it names no length

_MEASURED = 3  # batches of a size; something else may run beside one of them

_logger = logging.getLogger(__name__)


class Person(NamedTuple):
    """Who is asked about.

    Attributes:
      read: their events, as `EventReader.read` gives them of one user; None: of a user who is kept.
      user: who is kept.
    """

    read: Mapping[str, np.ndarray] | None
    user: str | None = None


class Key(NamedTuple):
    """What the requests of a batch have in common.

    Attributes:
      served: the run that they began with.
      kind: what is computed.
      options: of the computation.
    """

    served: "Served"
    kind: str
    options: tuple = ()


class Payload(NamedTuple):
    """What a request of a batch has of its own: its person, and `exclude`, `about` or prompt and length."""

    person: Person
    own: Any = None


class Found(NamedTuple):
    """Recommended items, and the version of the items that they are chosen from."""

    answers: list[Answer]
    items_version: int


class Served:
    """A run that is served. Another one takes its place when the server is told to.

    Args:
      name: of its folder.
      model: the run.
      store: of its users, or None.
      settings: of the server.

    Attributes:
      search, items, map: of the catalogue.
      refusals: why it cannot answer in some way, by that way; whole after `warm_up`.
    """

    def __init__(self, name: str, model: UserModel, store: UserStore | None, settings: Settings):
        self.name, self.model, self.store, self.settings = name, model, store, settings
        self.search = TitleSearch(model.catalogue, model.items)
        self.items = SharedItems(model, store, prepare=self._prepare)
        self.map = CatalogueMap(model)
        self.refusals: dict[str, str] = {}
        self._measured: dict[tuple, dict[int, float]] = {}

    @property
    def encoder(self) -> str:
        """The fingerprint of what makes its embeddings."""
        return self.model.fingerprints[0][:12]

    @property
    def answers(self) -> list[str]:
        """The ways in which it can answer."""
        if "next_item" not in self.model.tasks:
            return []
        return [answers for answers in self.settings.answers if answers not in self.refusals]

    @property
    def keeps_queries(self) -> bool:
        """Whether of kept users it is known what the encoder alone asks for."""
        return self.store is not None and self.store.layout.query > 0

    def told(self, error: UserError) -> str:
        """What it says, with the run's name in place of its folder, which is nobody's business."""
        return str(error).replace(str(self.model.study.workdir), self.name)

    def seconds(self, key: Key, size: int) -> float:
        """What a batch of a size has taken; of what was never measured all sizes take the same."""
        return self._measured.get(_measured_as(key), {}).get(size, 1.0)

    def run(self, key: Key, payloads: list[Payload]) -> Sequence[Any]:
        """The result of each request, or what is wrong with it: one that is wrong spoils no other."""
        if key.kind == APPEND:
            return self._append(payloads)
        ways: dict[str, Any] = {RECOMMEND: self._recommend, ANSWER: self._answer, GENERATE: self._generate}
        ask = ways[key.kind]
        return _one_by_one(lambda some: ask(some, *key.options), payloads)

    def _made(self, people: Sequence[Person], *, query: bool = False) -> tuple[UserEmbeddings, dict[int, Refused]]:
        """What the run reads of people, and which of them are not there, by their place."""
        given = [place for place, person in enumerate(people) if person.user is None]
        kept = [place for place, person in enumerate(people) if person.user is not None]
        parts = []
        if given:
            reads = [people[place].read or {} for place in given]
            read = {name: np.concatenate([own[name] for own in reads]) for name in reads[0]}
            parts.append(self.model.encode_arrays(read, query=query))
        absent: dict[int, Refused] = {}
        if kept:
            names = [people[place].user or "" for place in kept]
            parts.append(self.kept(names, missing="empty"))
            for row in np.flatnonzero(~parts[-1].items.any(axis=1)).tolist():
                if self.store is not None and names[row] not in self.store:  # who is there may have no events
                    absent[kept[row]] = no_user(names[row])
        order = np.argsort([*given, *kept])
        return UserEmbeddings.join(parts)[order], absent

    def kept(self, users: Sequence[str], missing: str = "error") -> UserEmbeddings:
        """What the store has of users."""
        if self.store is None:
            raise Refused(409, "this server keeps no users: start it with --store, or give events.")
        return self.store.get_many(users, missing=missing, stale="encode")

    def raw_id(self, title: str) -> str:
        """The data's own id of an item; of one that came later its title."""
        item = self.model.events.items.get(title)
        return title if item is None else self.model.catalogue.raw_ids[item]

    def read(self, events: Sequence[Mapping[str, Any]], now: float | None, unknown: str) -> Person:
        """Somebody's events.

        Raises:
          UserError: as `UserModel.recommend`.
        """
        return Person(self.model.events.read([events], [now], [""], skip=unknown == "skip"))

    def check_further(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Raises UserError where they cannot be added to anybody's."""
        reader, moments = self.model.events, list[float]()
        for index, event in enumerate(events):
            name = f"event {index}"
            reader.item(name, event)
            reader.rating(name, event)
            if reader.reads_times:
                moments.append(reader.moment(f"{name}: its time", event.get("time"), *moments[-1:]))

    def check_chosen(self, exclude: Sequence[str], allow: Sequence[str] | None, category: str | None) -> None:
        """Raises UserError where they choose no items, as `UserModel.recommend`."""
        ids_of("exclude", exclude, self.model.items.chosen((), allow, category).ids)

    def check_question(self, task: str, about: Mapping[str, Any] | None) -> None:
        """Raises UserError where it is none that the run answers."""
        tasks, reader = self.model.tasks, self.model.events
        if task not in tasks:
            raise UserError(f"{self.name} answers {' and '.join(tasks)}: train a run of {task!r}.")
        if (about is not None) != TASKS[task].asks_about_label:
            raise UserError(f"task {task!r} asks about {'an event: give it as about' if about is None else 'none'}.")
        if about is not None:
            reader.item("about", about)
            reader.rating("about", about, asked=True)

    def place(self, person: Person) -> tuple[float, float]:
        """Where somebody stands on the map."""
        if person.read is None:
            items = self.items_of(person.user or "")[None]
        else:
            items = person.read["history/item"]
        unread = np.zeros((1, 0, 0), np.float32), np.zeros((1, 0), bool), None  # a map is of items alone
        return self.map.place(UserEmbeddings(items, *unread, *self.model.fingerprints))

    def items_of(self, user: str) -> np.ndarray:
        """The items of a kept user's events, int32 `[S]`, 0 for none."""
        found = self.kept([user], missing="empty").items[0]
        if not found.any() and self.store is not None and user not in self.store:
            raise no_user(user)
        return found

    def _recommend(self, payloads: list[Payload], answers: str, allow: Any, category: str | None) -> list[Any]:
        made, absent = self._made([payload.person for payload in payloads], query=answers in ("fused", "encoder"))
        chosen: dict[str, Any] = dict(answers=answers, allow=allow and list(allow), category=category)
        while True:
            version = self.model.items.version
            # Always a list, so that none is another program than some.
            exclude = [list(payload.own) for payload in payloads]
            found = self.model.recommend(made, self.settings.k, exclude=exclude, **chosen)
            if self.model.items.version == version:
                return [absent.get(place) or Found(own, version) for place, own in enumerate(found)]

    def _answer(self, payloads: list[Payload], task: str) -> list[Any]:
        made, absent = self._made([payload.person for payload in payloads])
        about = [payload.own for payload in payloads] if TASKS[task].asks_about_label else None
        found = self.model.answer(made, task, self.settings.k, about=about)
        return [absent.get(place) or own for place, own in enumerate(found)]

    def _generate(self, payloads: list[Payload], *lengths: int) -> list[Any]:
        del lengths  # requests of a batch have the same, so that who is asked besides changes no program
        made, absent = self._made([payload.person for payload in payloads])
        prompts, most = ([payload.own[part] for payload in payloads] for part in (0, 1))
        found = self.model.generate(made, prompts, most)
        return [absent.get(place) or own for place, own in enumerate(found)]

    def _append(self, payloads: list[Payload]) -> list[Any]:
        """Adds to users, each of whom stands once in a write: what is wrong of one request is not of the next."""
        results: list[Any] = [None] * len(payloads)
        left = list(range(len(payloads)))
        while left:
            first = {payloads[place].person.user: place for place in reversed(left)}
            for place, wrong in zip(
                first.values(), self._append_once([payloads[p] for p in first.values()]), strict=True
            ):
                results[place] = wrong
            left = [place for place in left if place not in first.values()]
        return results

    def _append_once(self, payloads: list[Payload]) -> list[Exception | None]:
        if self.store is None:
            raise RuntimeError("nobody is kept")
        refused: dict[str, UserError] = {}
        events = {payload.person.user or "": payload.own for payload in payloads}
        self.store.append_many(events, stale="encode", refused=refused)
        return [refused.get(user) for user in events]

    def take_over(self, changes: Changes) -> None:
        """Lets be answered what another run of this catalogue answers, where that is newer."""
        if changes.version > self.model.items.version:
            self._prepare(changes)
            self.model.items.follow(changes)

    def _prepare(self, changes: Changes) -> None:
        """Computes what will be answered once, before that is so: what that compiles or builds is there then."""
        shadow, now = copy.copy(self), self.model.items.state
        shadow.model = copy.copy(self.model)
        shadow.model.items = AnswerableItems(self.model.catalogue, self.model.events.items)
        shadow.model.items.follow(changes)
        # Fewer items are another argument of the same programs; further ones may need longer arrays.
        sizes = self.settings.sizes if changes.added != now.added else self.settings.sizes[:1]
        somebody = self._somebody()
        for key, own in shadow._recommendations():
            for size in sizes:
                for wrong in shadow.run(key, [Payload(somebody, own)] * size):
                    if isinstance(wrong, Exception):
                        raise wrong

    def warm_up(self, going: Callable[[], bool]) -> None:
        """Computes batches of each size of all that may be asked, so that nothing is compiled later.

        Args:
          going: whether to go on.
        """
        somebody = self._somebody()
        for key, own in self._kinds():
            for size in self.settings.sizes:
                if not going() or not self._warm(key, [Payload(somebody, own)] * size):
                    break
        for size in self.settings.sizes if self.keeps_queries else ():
            self._made([somebody] * size, query=True)  # as users are kept, whatever is asked

    def _warm(self, key: Key, payloads: list[Payload]) -> bool:
        """Whether a batch can be answered; how long it takes is measured once it is compiled."""
        wrong = [found for found in self.run(key, payloads) if isinstance(found, Exception)]
        if wrong and key.kind == RECOMMEND and isinstance(wrong[0], UserError):
            self.refusals[key.options[0]] = self.told(wrong[0])
            return False
        if wrong:
            raise wrong[0]
        if _is_measured(key):
            took = min(self._took(key, payloads) for _ in range(_MEASURED))
            self._measured.setdefault(_measured_as(key), {})[len(payloads)] = took
            what = " ".join(map(str, _measured_as(key)))
            _logger.info("%s: %d at once take %.1f ms", what, len(payloads), took * 1e3)
        return True

    def _took(self, key: Key, payloads: list[Payload]) -> float:
        began = time.monotonic()
        self.run(key, payloads)
        return time.monotonic() - began

    def _kinds(self) -> list[tuple[Key, Any]]:
        """What may be asked, with what a request of it has of its own."""
        title = self.model.catalogue.titles[1]
        kinds = self._recommendations()
        rating = next(iter(self.model.events.ratings), None)
        for task in self.model.tasks:
            if task != "next_item":
                kinds.append((Key(self, ANSWER, (task,)), {"item": title, "rating": rating}))
        return [*kinds, (Key(self, GENERATE, self.model.text_lengths(*_WARM_TEXT)), _WARM_TEXT)]

    def _recommendations(self) -> list[tuple[Key, Any]]:
        """All items, and some: which titles are closed is an argument that a program of all has not."""
        chosen = self.model.items.chosen((), None, None)
        some = next(title for title, item in chosen.ids.items() if chosen.allowed is None or chosen.allowed[item])
        return [
            (Key(self, RECOMMEND, (answers, allow, None)), ()) for answers in self.answers for allow in ((some,), None)
        ]

    def _somebody(self) -> Person:
        """Who has met as many items as are read."""
        events = self.model.events
        event: dict[str, Any] = {"item": self.model.catalogue.titles[1]}
        if events.reads_ratings:
            event["rating"] = next(iter(events.ratings))
        if events.reads_times:
            event["time"] = 0
        now = 0.0 if events.reads_times == "asked" else None
        return Person(events.read([[event] * self.model.config.data.history_length], [now], [""]))


def no_user(name: str) -> Refused:
    """That the store has nobody of this name."""
    return Refused(404, f"the store has no user {name!r}.")


def _is_measured(key: Key) -> bool:
    return key.kind != RECOMMEND or key.options[1] is None  # of all items


def _measured_as(key: Key) -> tuple:
    """Keys that take as long as each other: which items may be answered is no matter."""
    return (key.kind, key.options[0]) if key.kind == RECOMMEND else (key.kind, *key.options)


def _one_by_one(ask: Callable[[list[Payload]], list[Any]], payloads: list[Payload]) -> list[Any]:
    """What `ask` answers, each alone where all together are an error."""
    try:
        return ask(payloads)
    except Exception as error:
        if len(payloads) == 1 or isinstance(error, StoreError):  # which fails for all of them
            return [error] * len(payloads)
        return [_one_by_one(ask, [payload])[0] for payload in payloads]
