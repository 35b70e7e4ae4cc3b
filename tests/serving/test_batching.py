"""Batches against what each request would get alone."""

import threading
import time
from concurrent.futures import CancelledError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from user_llm.serving.batching import Batcher, Closed, Full, Late

SIZES = (1, 8, 64)


class Device:
    """Squares numbers, refuses 13, and can be held."""

    def __init__(self):
        self.batches, self.free = [], threading.Event()
        self.free.set()
        self.begun = threading.Semaphore(0)

    def __call__(self, key, payloads):
        self.begun.release()
        self.free.wait(30)
        self.batches.append((key, payloads))
        return [ValueError("no 13") if payload == 13 else (key, payload**2) for payload in payloads]

    def hold(self, batcher):
        """Keeps the thread busy with a request of its own until `free` is set."""
        self.free.clear()
        held = batcher.submit("held", 0)
        assert self.begun.acquire(timeout=30)
        return held


@pytest.fixture
def device():
    return Device()


@pytest.fixture
def lane(device):
    """Makes batchers, all of which end with the test."""
    made = []

    def make(**options):
        made.append(Batcher(device, **{"sizes": SIZES, "max_delay": 0.0, **options}))
        return made[-1]

    yield make
    device.free.set()
    for batcher in made:
        batcher.drain()


@settings(deadline=None, max_examples=60)
@given(
    asked=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 20)), max_size=100),
    delay=st.sampled_from([0.0, 0.001]),
    held=st.booleans(),
)
def test_each_gets_its_own_answer_whoever_asks_besides(asked, delay, held):
    device = Device()
    batcher = Batcher(device, sizes=SIZES, limit=200, max_delay=delay)
    if held:
        device.hold(batcher)
    futures = [batcher.submit(*one) for one in asked]
    device.free.set()
    for (key, payload), future in zip(asked, futures, strict=True):
        if payload == 13:
            with pytest.raises(ValueError, match="no 13"):
                future.result(30)
        else:
            assert future.result(30).value == (key, payload**2)
    batcher.drain()
    taken = [(key, len(payloads)) for key, payloads in device.batches if key != "held"]
    assert sum(count for _, count in taken) == len(asked)
    assert all(count <= SIZES[-1] for _, count in taken)
    if held:  # all waited, so that no key is taken apart before it fills a batch
        keys = [key for key, _ in asked]
        assert len(taken) == sum(-(-keys.count(key) // SIZES[-1]) for key in {*keys})


def test_the_oldest_is_always_among_the_next(device, lane):
    batcher = lane()
    device.hold(batcher)
    order = "abcbbabc"
    futures = [batcher.submit(key, number) for number, key in enumerate(order)]
    device.free.set()
    for future in futures:
        future.result(30)
    assert device.batches[1:] == [("a", [0, 5]), ("b", [1, 3, 4, 6]), ("c", [2, 7])]


@pytest.mark.parametrize(
    ("waiting", "seconds", "expected"),
    [
        (70, {1: 1, 8: 2, 64: 4}, [64, 6]),  # 64 in 4 s are the most a second, and 6 in 2 s
        (5, {1: 1, 8: 6, 64: 99}, [1, 1, 1, 1, 1]),  # 5 in 6 s are fewer than one in one
        (9, {1: 1, 8: 2, 64: 20}, [8, 1]),
        (3, {1: 1, 8: 1, 64: 1}, [3]),
    ],
)
def test_as_many_are_taken_as_give_the_most_users_a_second(device, lane, waiting, seconds, expected):
    batcher = lane(seconds=lambda key, size: seconds[size])
    device.hold(batcher)
    futures = [batcher.submit("a", 20 + number) for number in range(waiting)]
    device.free.set()
    assert [future.result(30).users for future in futures] == [count for count in expected for _ in range(count)]


def test_too_many_are_refused_at_once_and_who_has_gone_makes_room(device, lane):
    batcher = lane(limit=3)
    device.hold(batcher)
    futures = [batcher.submit("a", number) for number in range(3)]
    with pytest.raises(Full):
        batcher.submit("a", 3)
    assert futures[1].cancel()
    last = batcher.submit("a", 4)
    with pytest.raises(Full):
        batcher.submit("a", 5)
    device.free.set()
    assert last.result(30).value == ("a", 16)
    assert device.batches[1:] == [("a", [0, 2, 4])]


def test_who_waited_too_long_is_not_computed(device, lane):
    batcher = lane()
    device.hold(batcher)
    late, patient = batcher.submit("a", 1, timeout=0.01), batcher.submit("a", 2, timeout=30)
    time.sleep(0.05)
    device.free.set()
    assert patient.result(30).value == ("a", 4)
    with pytest.raises(Late):
        late.result(30)
    assert device.batches[1:] == [("a", [2])]


def test_draining_answers_what_waits_and_leaves_no_thread(device, lane):
    before = threading.active_count()
    batcher = lane(max_delay=60.0, seconds=lambda key, size: size if key == "held" else 1)
    device.hold(batcher)
    futures = [batcher.submit("a", number) for number in range(5)]
    ending = threading.Thread(target=batcher.drain)
    ending.start()
    device.free.set()
    ending.join(30)  # which does not wait for others as long as it might
    assert not ending.is_alive()
    assert [future.result(0).value for future in futures] == [("a", number**2) for number in range(5)]
    assert threading.active_count() == before
    with pytest.raises(Closed):
        batcher.submit("a", 1)


def test_an_idle_device_waits_a_little_for_others_but_not_where_alone_is_best(device, lane):
    slow = lane(max_delay=60.0)
    first = slow.submit("a", 1)
    time.sleep(0.05)
    assert not first.done()
    others = [slow.submit("a", number) for number in range(63)]
    assert first.result(30).users == 64  # which are enough
    assert all(other.done() for other in others)
    alone = lane(max_delay=60.0, seconds=lambda key, size: size)
    assert alone.submit("a", 1).result(30).users == 1


def test_an_error_of_the_device_ends_no_thread(lane):
    outcomes = iter([ZeroDivisionError("broken"), [], [7]])

    def run(key, payloads):
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    batcher = Batcher(run, max_delay=0.0)
    with pytest.raises(ZeroDivisionError):
        batcher.submit("a", 1).result(30)
    with pytest.raises(RuntimeError, match="0 results for 1 requests"):
        batcher.submit("a", 1).result(30)
    assert batcher.submit("a", 1).result(30).value == 7
    batcher.drain()


def test_it_tells_of_its_batches(device):
    told = []
    batcher = Batcher(device, max_delay=0.0, observe=lambda *batch: told.append(batch))
    device.hold(batcher)
    futures = [batcher.submit("a", number) for number in range(3)]
    time.sleep(0.02)
    device.free.set()
    [future.result(30) for future in futures]
    batcher.drain()
    (_, _, took), (users, waited, _) = told
    assert users == 3
    assert min(waited, took) >= 0.02
    gone = Batcher(device, max_delay=0.0)
    held = device.hold(gone)
    left = gone.submit("a", 1)
    left.cancel()
    device.free.set()
    held.result(30)
    gone.drain()
    with pytest.raises(CancelledError):
        left.result(0)
