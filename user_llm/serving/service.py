"""What each route does, without HTTP: the run that is served, its lanes, and what happens beside requests."""

import asyncio
import gc
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from user_llm.api import UserModel
from user_llm.serving import requests
from user_llm.serving.batching import Batcher, Closed, Done, Full, Late
from user_llm.serving.metrics import Metrics
from user_llm.serving.problems import Refused
from user_llm.serving.served import ANSWER, APPEND, GENERATE, RECOMMEND, Key, Payload, Person, Served, no_user
from user_llm.serving.settings import Settings
from user_llm.store.user_store import UserStore

LANES = RECOMMEND, ANSWER, GENERATE, APPEND
"""What is computed, each in a lane of its own."""

# The lane of those routes that mostly wait in one: /answer may go to another.
_LANE_OF = {"/recommend": RECOMMEND, "/generate": GENERATE, "/events": APPEND}

WARMING, READY, DRAINING = "warming", "ready", "draining"

Note = Callable[[int], None]
"""Told how many were answered at once."""

_logger = logging.getLogger(__name__)


class Service:
    """A server without HTTP.

    Args:
      name, model: the run, by the name of its folder.
      store: of its users, or None.
      load: a run's name → the run, for `change_model`; None: no other run may be served.

    Attributes:
      settings, metrics: of the server.
      served: the run that answers; another one takes its place at once.
      state: one of `WARMING`, `READY` and `DRAINING`.
      failed: what has ended the warm-up, if anything.
    """

    def __init__(
        self,
        name: str,
        model: UserModel,
        store: UserStore | None,
        settings: Settings,
        load: Callable[[str], UserModel] | None = None,
    ):
        self.settings, self.metrics, self._load = settings, Metrics(), load
        self.served = Served(name, model, store, settings)
        self.state = WARMING
        self.failed: Exception | None = None
        self._loading: str | None = None
        self._changing, self._loading_lock = threading.Lock(), threading.Lock()
        self._stopping, self._threads = threading.Event(), list[threading.Thread]()
        self.metrics.items_version.set_function(lambda: self.served.model.items.version)
        self._lanes = {lane: self._lane(lane) for lane in LANES}

    def _lane(self, name: str) -> Batcher:
        batcher = Batcher(
            lambda key, payloads: key.served.run(key, payloads),
            name=f"lane-{name}",
            sizes=self.settings.sizes,
            limit=self.settings.queue,
            max_delay=self.settings.max_delay,
            seconds=lambda key, size: key.served.seconds(key, size),
            observe=self.metrics.observer(name),
        )
        self.metrics.watch(name, batcher.__len__)
        return batcher

    def start(self, failed: Callable[[], None] = lambda: None) -> None:
        """Warms up in the background; calls `failed` where that ends in an error."""

        def warm_and_follow() -> None:
            try:
                self.served.warm_up(self._going)
            except Exception as error:
                self.failed = error
                failed()
                return
            if self._going():
                _freeze()
                self.state = READY
                self.metrics.ready.set(1)
                _logger.info("ready: %s", self.served.name)
            while not self._stopping.wait(self.settings.poll_seconds):
                self._follow()

        self._begin(warm_and_follow)

    def _begin(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name="service", daemon=True)
        self._threads = [old for old in self._threads if old.is_alive()] + [thread]
        thread.start()

    def _going(self) -> bool:
        return not self._stopping.is_set()

    def _follow(self) -> None:
        """Takes over what other servers have changed of the items."""
        with self._changing:
            try:
                self.served.items.follow()
            except Exception as error:
                _logger.warning("items are not followed: %s", type(error).__name__)

    def drain(self) -> None:
        """Says that it is ready no more; what comes all the same is answered."""
        self.state = DRAINING
        self.metrics.ready.set(0)

    def stop(self) -> None:
        """Answers what was accepted, and ends all threads."""
        self.drain()
        self._stopping.set()
        for lane in self._lanes.values():
            lane.drain()
        for thread in self._threads:
            thread.join()

    def turn_away(self, path: str) -> None:
        """Refuses a request before it is read where its lane is full: beyond capacity that is work saved."""
        lane = _LANE_OF.get(path)
        if lane is not None and self._lanes[lane].is_full():
            raise self._full(lane)

    async def recommend(self, asked: requests.Recommend, note: Note) -> requests.Recommended:
        """See the route."""
        served, k = self._ready(), self._k(asked.k, 10)
        found = await self._recommend(served, asked, asked.answers, note, asked.exclude, asked.allow, asked.category)
        return requests.Recommended(
            items=[
                requests.RecommendedItem(title=text, item=served.raw_id(text), score=score)
                for text, score in found.answers[:k]
            ],
            answers=asked.answers,
            items_version=found.items_version,
            model=served.encoder,
        )

    def _k(self, asked: int | None, default: int) -> int:
        if asked is not None and asked > self.settings.k:
            raise Refused(422, f"k must be a whole number from 1 to {self.settings.k}, got {asked}.")
        return min(default, self.settings.k) if asked is None else asked

    async def _recommend(
        self,
        served: Served,
        asked: requests.Asked,
        answers: str,
        note: Note,
        exclude: Sequence[str] = (),
        allow: Sequence[str] | None = None,
        category: str | None = None,
    ) -> Any:
        if "next_item" not in served.model.tasks:
            raise Refused(422, f"{served.name} answers {' and '.join(served.model.tasks)}: ask POST /answer.")
        if answers not in served.answers:
            reason = served.refusals.get(answers, f"this server answers by {', '.join(served.answers)} alone.")
            raise Refused(422, f"answers={answers!r}: {reason}")
        if len(exclude) > self.settings.exclude:
            raise Refused(422, f"exclude has {len(exclude)} titles: at most {self.settings.exclude}.")
        if asked.user is not None and answers == "encoder" and not served.keeps_queries:
            raise Refused(422, "of kept users it is not known what the encoder alone asks for: give their events.")
        options = answers, None if allow is None else tuple(allow), category
        person = await self._person(served, asked)
        if exclude or allow is not None or category is not None:
            await asyncio.to_thread(served.check_chosen, exclude, allow, category)
        return await self._ask(Key(served, RECOMMEND, options), Payload(person, tuple(exclude)), note)

    async def append(self, asked: requests.Append, note: Note) -> requests.Appended:
        """See the route."""
        served, events = self._ready(), [event.plain() for event in asked.events]
        self._keeping(served)
        await asyncio.to_thread(served.check_further, events)
        await self._ask(Key(served, APPEND), Payload(Person(None, asked.user), events), note)
        return requests.Appended(user=asked.user, events=len(events))

    async def user(self, name: str) -> requests.KeptUser:
        """See the route."""
        served = self._ready()
        self._keeping(served)
        items = (await asyncio.to_thread(served.items_of, name)).tolist()
        titles = served.model.catalogue.titles
        return requests.KeptUser(user=name, items=[titles[item] for item in items if item])

    async def delete(self, name: str) -> None:
        """See the route."""
        store = self._keeping(self._ready())
        if not await asyncio.to_thread(store.delete, [name]):
            raise no_user(name)

    async def answer(self, asked: requests.Question, note: Note) -> requests.Answers:
        """See the route."""
        served, k = self._ready(), self._k(asked.k, 5)
        task = asked.task or served.model.tasks[0]
        about = None if asked.about is None else asked.about.plain()
        if task == "next_item" and about is None:
            found = (await self._recommend(served, asked, "beams", note)).answers
        else:
            await asyncio.to_thread(served.check_question, task, about)
            person = await self._person(served, asked)
            found = await self._ask(Key(served, ANSWER, (task,)), Payload(person, about), note)
        answers = [requests.AnswerText(text=text, score=score) for text, score in found[:k]]
        return requests.Answers(answers=answers, task=task)

    async def generate(self, asked: requests.Generate, note: Note) -> requests.Generated:
        """See the route."""
        served = self._ready()
        if asked.max_new_tokens > self.settings.max_new_tokens:
            raise Refused(422, f"max_new_tokens must be at most {self.settings.max_new_tokens}.")
        wanted = asked.prompt, asked.max_new_tokens
        lengths = await asyncio.to_thread(served.model.text_lengths, *wanted)
        person = await self._person(served, asked)
        return requests.Generated(text=await self._ask(Key(served, GENERATE, lengths), Payload(person, wanted), note))

    async def find(self, query: str, limit: int) -> requests.FoundItems:
        """See the route."""
        served = self._ready()
        found = await asyncio.to_thread(served.search.find, query, limit)
        items = [requests.FoundItem(**item) for item in found.items]
        return requests.FoundItems(items=items, version=found.version, total=found.total)

    async def place(self, asked: requests.Place) -> requests.Point:
        """See the route."""
        served = self._ready()
        x, y = await asyncio.to_thread(served.place, await self._person(served, asked))
        return requests.Point(x=x, y=y)

    async def points(self) -> requests.Points:
        """See the route."""
        return requests.Points(**await asyncio.to_thread(self._ready().map.points))

    def info(self) -> requests.Info:
        """See the route."""
        served = self._ready()
        events, catalogue = served.model.events, served.model.catalogue
        return requests.Info(
            run=served.name,
            model=served.encoder,
            tasks=list(served.model.tasks),
            answers=served.answers,
            ratings=list(events.ratings) if events.reads_ratings else [],
            reads_times=events.reads_times,
            categories=list(catalogue.category_names)[1:],
            k=self.settings.k,
            history_length=served.model.config.data.history_length,
            num_items=catalogue.num_items,
            store=served.store is not None,
            items_version=served.model.items.version,
            loading=self._loading,
        )

    async def add_items(self, asked: requests.AddItems) -> requests.ChangedItems:
        """See the route."""
        items = [item.model_dump() for item in asked.items]
        version = await asyncio.to_thread(self._change_items, lambda served: served.items.add(items))
        return requests.ChangedItems(version=version, added=len(items), removed=0)

    async def remove_items(self, asked: requests.RemoveItems) -> requests.ChangedItems:
        """See the route."""
        version = await asyncio.to_thread(self._change_items, lambda served: served.items.remove(asked.titles))
        return requests.ChangedItems(version=version, added=0, removed=len(asked.titles))

    def _change_items(self, change: Callable[[Served], int]) -> int:
        with self._changing:
            return change(self._ready())

    async def change_model(self, asked: requests.ChangeModel) -> requests.ChangingModel:
        """See the route; returns when the run is loaded, and it answers when it is warm."""
        with self._loading_lock:
            if self._loading is not None:
                raise Refused(409, f"{self._loading} is being loaded: wait until /info says that it is not.")
            self._loading = asked.run
        try:
            coming = await asyncio.to_thread(self._loaded, asked.run)
        except BaseException:
            self._loading = None
            raise
        self._begin(lambda: self._replace_by(coming))
        return requests.ChangingModel(run=asked.run)

    def _loaded(self, name: str) -> Served:
        if self._load is None:
            raise Refused(409, "this server has no folder of runs.")
        served = self._ready()
        try:
            model = self._load(name)
        except FileNotFoundError:
            raise Refused(404, f"beside {served.name} there is no finished run {name!r}.") from None
        if model.fingerprints[1] != served.model.fingerprints[1]:
            raise Refused(409, f"{name} has other items than {served.name}: serve it by a server of its own.")
        store = None if served.store is None else served.store.with_model(model)
        return Served(name, model, store, self.settings)

    def _replace_by(self, coming: Served) -> None:
        """Lets another run answer as soon as it is warm."""
        try:
            coming.model.items.follow(self.served.model.items.state)
            coming.warm_up(self._going)
            with self._changing:
                coming.take_over(self.served.model.items.state)
                if self._going():
                    _freeze()
                    self.served = coming
                    _logger.info("%s answers from now on", coming.name)
        except Exception as error:
            _logger.error("%s cannot be served: %s", coming.name, error)
        finally:
            self._loading = None

    def _ready(self) -> Served:
        if self.state == WARMING:
            raise Refused(503, "the server is not ready yet.", self.settings.retry_after)
        return self.served

    def _keeping(self, served: Served) -> UserStore:
        if served.store is None:
            raise Refused(409, "this server keeps no users: start it with --store.")
        return served.store

    async def _person(self, served: Served, asked: requests.Asked) -> Person:
        """Who is asked about; refused here, before anybody waits for it in a batch."""
        if asked.events is None:
            self._keeping(served)
            if asked.now is not None:
                raise Refused(422, "now= was read when the user's events were kept: leave it out.")
            return Person(None, asked.user)
        events = [event.plain() for event in asked.events]
        if all(event["item"] in served.model.events.items for event in events):
            return served.read(events, asked.now, asked.unknown)
        return await asyncio.to_thread(served.read, events, asked.now, asked.unknown)  # looks for the nearest titles

    async def _ask(self, key: Key, payload: Payload, note: Note) -> Any:
        """What a lane answers.

        Raises:
          Refused: it is full, or came to this too late.
          UserError: what is asked is wrong.
        """
        lane = key.kind
        try:
            future = self._lanes[lane].submit(key, payload, timeout=self.settings.timeout)
        except Full:
            raise self._full(lane) from None
        except Closed:
            raise Refused(503, "the server is ending: come again later.", self.settings.retry_after) from None
        waiting = asyncio.wrap_future(future)
        try:
            finished, _ = await asyncio.wait([waiting], timeout=self.settings.timeout)
            if not finished and future.cancel():
                raise Late
            done: Done = await waiting  # of what has begun, the end is waited for
        except Late:
            sentence = f"this waited for {self.settings.timeout:g} s and was not computed: come again later."
            raise self._turned_away(lane, "late", 503, sentence) from None
        except asyncio.CancelledError:
            waiting.cancel()  # who asked has gone
            raise
        note(done.users)
        return done.value

    def _full(self, lane: str) -> Refused:
        return self._turned_away(lane, "full", 429, "too many requests wait: come again later.")

    def _turned_away(self, lane: str, why: str, status: int, sentence: str) -> Refused:
        self.metrics.turned_away.labels(lane, why).inc()
        return Refused(status, sentence, self.settings.retry_after)


def _freeze() -> None:
    """Takes what is there for good out of the search for garbage, which would halt all threads for half a second."""
    gc.unfreeze()  # a run before this one may be garbage
    gc.collect()
    gc.freeze()
