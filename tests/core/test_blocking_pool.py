"""The threads for calls that may have to wait."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from typing import NoReturn

import pytest

from conformance.harness import DEADLINE, Harness
from freebsd_splice._core import blocking_pool
from freebsd_splice._core.blocking_pool import USUAL, Crew
from freebsd_splice._core.timers import Watcher
from freebsd_splice._platform.interface import Runner
from freebsd_splice._platform.system import SystemPort


class CountingPort(SystemPort):
    def __init__(self) -> None:
        super().__init__()
        self.started: list[str] = []
        self.refuses = 0

    def run(self, step: object, name: str) -> Runner:
        if "crew" in name:
            if self.refuses:
                self.refuses -= 1
                raise RuntimeError("can't start new thread")
            self.started.append(name)
        return super().run(step, name)  # type: ignore[arg-type]


@pytest.fixture
def port() -> CountingPort:
    return CountingPort()


@pytest.fixture
def crew(port: CountingPort) -> Iterator[Crew]:
    watcher = Watcher(port)
    made = Crew(port, watcher)
    yield made
    made.close()
    watcher.close()


def test_without_a_call_there_is_no_thread(crew: Crew, port: CountingPort) -> None:
    assert port.started == []


def test_few_threads_make_many_calls(crew: Crew, port: CountingPort) -> None:
    made: list[int] = []
    for number in range(500):
        crew.submit(lambda number=number: made.append(number))  # type: ignore[misc]
    Harness().until(lambda: len(made) == 500, "all calls made")
    assert sorted(made) == list(range(500))
    assert len(port.started) <= USUAL


def test_calls_that_hang_hold_up_no_other(crew: Crew, port: CountingPort) -> None:
    """F24: the kernel's calls hang as long as somebody else holds the socket's lock."""
    let_go, made = threading.Event(), threading.Event()
    for _ in range(5):
        crew.submit(lambda: let_go.wait(DEADLINE))
    crew.submit(made.set)
    assert made.wait(DEADLINE)
    assert len(port.started) == 6
    let_go.set()


def test_a_call_that_fails_ends_no_thread(
    crew: Crew, port: CountingPort, caplog: pytest.LogCaptureFixture
) -> None:
    def leave() -> None:
        raise SystemExit

    made = threading.Event()
    for _ in range(USUAL + 1):
        crew.submit(leave)
    crew.submit(made.set)
    assert made.wait(DEADLINE)
    assert len(port.started) <= USUAL
    assert "SystemExit" in caplog.text


def test_a_thread_without_calls_ends_and_another_one_starts(
    crew: Crew, port: CountingPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking_pool, "IDLE_SECONDS", 0.01)
    first, second = threading.Event(), threading.Event()
    crew.submit(first.set)
    assert first.wait(DEADLINE)
    Harness().until(lambda: not crew._runners, "the thread's end")
    crew.submit(second.set)
    assert second.wait(DEADLINE)


def test_a_thread_that_cannot_be_started_is_tried_again(crew: Crew, port: CountingPort) -> None:
    port.refuses = 2
    made = threading.Event()
    crew.submit(made.set)
    assert made.wait(DEADLINE)


def test_without_thread_and_descriptor_the_next_call_tries_again(
    crew: Crew, port: CountingPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the first one goes on: it is made by whoever ends a splice, in the middle of that."""

    def refuse(**_: object) -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(port, "poller", refuse)
    port.refuses = 1
    made = [threading.Event() for _ in range(2)]
    crew.submit(made[0].set)
    assert not made[0].is_set()
    crew.submit(made[1].set)
    assert made[0].wait(DEADLINE)
    assert made[1].wait(DEADLINE)


def test_without_a_descriptor_to_watch_the_next_call_tries_again(
    crew: Crew, port: CountingPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    let_go = threading.Event()
    made = [threading.Event() for _ in range(2)]
    for _ in range(USUAL):
        crew.submit(lambda: let_go.wait(DEADLINE))
    with monkeypatch.context() as patch:
        patch.setattr(port, "poller", refuse)
        crew.submit(made[0].set)
    crew.submit(made[1].set)
    assert made[0].wait(DEADLINE)
    assert made[1].wait(DEADLINE)
    let_go.set()


def test_what_no_thread_was_to_be_had_for_is_done_by_the_close(port: CountingPort) -> None:
    watcher = Watcher(port)
    crew = Crew(port, watcher)
    port.refuses = 1_000_000
    made: list[int] = []
    crew.submit(lambda: made.append(1))
    crew.close()
    watcher.close()
    assert made == [1]


def test_what_waits_is_done_before_the_close(port: CountingPort) -> None:
    watcher = Watcher(port)
    crew = Crew(port, watcher)
    made: list[int] = []
    for number in range(100):
        crew.submit(lambda number=number: made.append(number))  # type: ignore[misc]
    crew.close()
    watcher.close()
    assert len(made) == 100


@pytest.mark.parametrize("no_more_threads", [False, True])
def test_calls_that_wait_for_each_other_hold_up_no_close(
    port: CountingPort, caplog: pytest.LogCaptureFixture, no_more_threads: bool
) -> None:
    """Done callbacks may; and Python 3.12 gives no thread any more when it exits."""
    watcher = Watcher(port)
    crew = Crew(port, watcher)
    both, last = threading.Barrier(USUAL + 1), threading.Event()

    def wait() -> None:
        both.wait(DEADLINE)
        last.wait()

    for _ in range(USUAL):
        crew.submit(wait)
    both.wait(DEADLINE)
    port.refuses = 1_000_000 if no_more_threads else 0
    crew.expect_close()
    crew.submit(last.set)
    closing = Harness().in_background(crew.close)
    closing.join()
    assert last.is_set()
    assert not crew._runners
    watcher.close()
    assert not caplog.records


def test_a_call_may_close_what_it_is_made_by(port: CountingPort) -> None:
    watcher = Watcher(port)
    crew = Crew(port, watcher)
    closed, made = threading.Event(), threading.Event()

    def close() -> None:
        crew.close()
        closed.set()

    crew.submit(close)
    crew.submit(made.set)
    assert closed.wait(DEADLINE)
    crew.close()
    assert made.is_set()
    assert not crew._runners
    watcher.close()


def test_an_empty_mailbox_that_is_not_waited_for_answers_at_once() -> None:
    """Python 3.10's queue waits for ever when it is given no time at all."""
    for _ in range(1000):
        assert SystemPort().mailbox().take(0) is None
