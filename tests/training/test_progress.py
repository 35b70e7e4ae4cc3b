"""What a person sees: lines with loss, speed and time left in a log, a bar on a terminal."""

import io
import logging
import re
import sys
from types import SimpleNamespace

import pytest

from user_llm.training import progress
from user_llm.training.progress import Progress


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.isatty = lambda: terminal


@pytest.fixture
def stderr(monkeypatch):
    """Puts a stream in the place of standard error: pytest puts its own there after the fixtures."""

    def attach(*, terminal):
        monkeypatch.setattr(sys, "stderr", Stream(terminal))
        return sys.stderr

    return attach


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when told to."""
    clock = SimpleNamespace(now=100.0)
    clock.perf_counter = lambda: clock.now
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def log(caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger=progress.__name__)
    # `user_llm.main` stops its lines from propagating; a test before this one may have run it.
    monkeypatch.setattr(logging.getLogger("user_llm"), "propagate", True)
    return caplog


def test_a_log_tells_loss_speed_and_time_left_now_and_then(clock, log, stderr):
    stream = stderr(terminal=False)
    with Progress("encoder", 0, 100, 32) as bar:
        for step in range(1, 101):
            clock.now += 1.0
            bar.advance(step)
            if step % 5 == 0:
                bar.show(step, loss=10 / step)
    # A line every 15 seconds at most, and one at the end.
    steps = [int(re.search(r"step (\d+)/100", line)[1]) for line in log.messages]
    assert steps == [15, 30, 45, 60, 75, 90, 100]
    assert log.messages[0] == "encoder: step 15/100  loss 0.6667  32 examples/s  01:25 left"
    assert log.messages[-1] == "encoder: step 100/100  loss 0.1000  32 examples/s  00:00 left"
    assert stream.getvalue() == ""


def test_a_resumed_stage_counts_its_own_steps_only(clock, log, stderr):
    stderr(terminal=False)
    with Progress("user_llm", 60, 100, 8, seconds_between_lines=0) as bar:
        clock.now += 10.0
        bar.advance(80)
        bar.show(80, loss=1.0)
    assert log.messages == ["user_llm: step 80/100  loss 1.0000  16 examples/s  00:10 left"]


def test_a_validation_is_always_told(clock, log, stderr):
    stderr(terminal=False)
    with Progress("encoder", 0, 10, 8) as bar:
        bar.show(5, validation={"recall@10": 0.125, "loss": 2.0})
    assert log.messages == ["encoder: step 5/10  validation recall@10 0.1250  loss 2.0000"]


def test_a_terminal_gets_a_bar_and_no_lines(clock, log, stderr, monkeypatch):
    terminal = stderr(terminal=True)
    monkeypatch.setenv("COLUMNS", "150")
    with Progress("encoder", 0, 10, 32) as bar:
        for step in range(1, 11):
            clock.now += 0.5
            bar.advance(step)
            bar.show(step, loss=3.0 - step / 10)
        bar.show(10, validation={"loss": 1.5})
    shown = terminal.getvalue()
    assert "\r" in shown
    last = shown.rstrip().rsplit("\r", 1)[-1]
    assert last.startswith("encoder: 100%")
    assert "10/10 [" in last
    assert re.search(r"\d\d:\d\d<\d\d:\d\d", last)  # passed and left
    assert "loss 2.0000, 64 examples/s" in last
    assert "encoder: step 10/10  validation loss 1.5000" in shown
    assert log.messages == []
