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
from freebsd_splice._core.blocking_pool import USUAL, BlockingPool
from freebsd_splice._core.timers import Timers
from freebsd_splice._platform.interface import Runner
from freebsd_splice._platform.system import SystemPlatform


class CountingPlatform(SystemPlatform):
    def __init__(self) -> None:
        super().__init__()
        self.started: list[str] = []
        self.refuses = 0

    def run(self, step: object, name: str) -> Runner:
        if "blocking" in name:
            if self.refuses:
                self.refuses -= 1
                raise RuntimeError("can't start new thread")
            self.started.append(name)
        return super().run(step, name)  # type: ignore[arg-type]


@pytest.fixture
def platform() -> CountingPlatform:
    return CountingPlatform()


@pytest.fixture
def pool(platform: CountingPlatform) -> Iterator[BlockingPool]:
    timers = Timers(platform)
    made = BlockingPool(platform, timers)
    yield made
    made.close()
    timers.close()


def test_without_a_call_there_is_no_thread(pool: BlockingPool, platform: CountingPlatform) -> None:
    assert platform.started == []


def test_few_threads_make_many_calls(pool: BlockingPool, platform: CountingPlatform) -> None:
    made: list[int] = []
    for number in range(500):
        pool.submit(lambda number=number: made.append(number))  # type: ignore[misc]
    Harness().until(lambda: len(made) == 500, "all calls made")
    assert sorted(made) == list(range(500))
    assert len(platform.started) <= USUAL


def test_calls_that_hang_hold_up_no_other(pool: BlockingPool, platform: CountingPlatform) -> None:
    """F24: the kernel's calls hang as long as somebody else holds the socket's lock."""
    let_go, made = threading.Event(), threading.Event()
    for _ in range(5):
        pool.submit(lambda: let_go.wait(DEADLINE))
    pool.submit(made.set)
    assert made.wait(DEADLINE)
    assert len(platform.started) == 6
    let_go.set()


def test_a_call_that_fails_ends_no_thread(
    pool: BlockingPool, platform: CountingPlatform, caplog: pytest.LogCaptureFixture
) -> None:
    def leave() -> None:
        raise SystemExit

    made = threading.Event()
    for _ in range(USUAL + 1):
        pool.submit(leave)
    pool.submit(made.set)
    assert made.wait(DEADLINE)
    assert len(platform.started) <= USUAL
    assert "SystemExit" in caplog.text


def test_a_thread_without_calls_ends_and_another_one_starts(
    pool: BlockingPool, platform: CountingPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking_pool, "IDLE_SECONDS", 0.01)
    first, second = threading.Event(), threading.Event()
    pool.submit(first.set)
    assert first.wait(DEADLINE)
    Harness().until(lambda: not pool._runners, "the thread's end")
    pool.submit(second.set)
    assert second.wait(DEADLINE)


def test_a_thread_that_cannot_be_started_is_tried_again(
    pool: BlockingPool, platform: CountingPlatform
) -> None:
    platform.refuses = 2
    made = threading.Event()
    pool.submit(made.set)
    assert made.wait(DEADLINE)


def test_without_thread_and_descriptor_the_next_call_tries_again(
    pool: BlockingPool, platform: CountingPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the first one goes on: it is made by whoever ends a splice, in the middle of that."""

    def refuse(**_: object) -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(platform, "poller", refuse)
    platform.refuses = 1
    made = [threading.Event() for _ in range(2)]
    pool.submit(made[0].set)
    assert not made[0].is_set()
    pool.submit(made[1].set)
    assert made[0].wait(DEADLINE)
    assert made[1].wait(DEADLINE)


def test_without_a_descriptor_to_watch_the_next_call_tries_again(
    pool: BlockingPool, platform: CountingPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    let_go = threading.Event()
    made = [threading.Event() for _ in range(2)]
    for _ in range(USUAL):
        pool.submit(lambda: let_go.wait(DEADLINE))
    with monkeypatch.context() as patch:
        patch.setattr(platform, "poller", refuse)
        pool.submit(made[0].set)
    pool.submit(made[1].set)
    assert made[0].wait(DEADLINE)
    assert made[1].wait(DEADLINE)
    let_go.set()


def test_what_no_thread_was_to_be_had_for_is_done_by_the_close(platform: CountingPlatform) -> None:
    timers = Timers(platform)
    pool = BlockingPool(platform, timers)
    platform.refuses = 1_000_000
    made: list[int] = []
    pool.submit(lambda: made.append(1))
    pool.close()
    timers.close()
    assert made == [1]


def test_what_waits_is_done_before_the_close(platform: CountingPlatform) -> None:
    timers = Timers(platform)
    pool = BlockingPool(platform, timers)
    made: list[int] = []
    for number in range(100):
        pool.submit(lambda number=number: made.append(number))  # type: ignore[misc]
    pool.close()
    timers.close()
    assert len(made) == 100


@pytest.mark.parametrize("no_more_threads", [False, True])
def test_calls_that_wait_for_each_other_hold_up_no_close(
    platform: CountingPlatform, caplog: pytest.LogCaptureFixture, no_more_threads: bool
) -> None:
    """Done callbacks may; and Python 3.12 gives no thread any more when it exits."""
    timers = Timers(platform)
    pool = BlockingPool(platform, timers)
    both, last = threading.Barrier(USUAL + 1), threading.Event()

    def wait() -> None:
        both.wait(DEADLINE)
        last.wait()

    for _ in range(USUAL):
        pool.submit(wait)
    both.wait(DEADLINE)
    platform.refuses = 1_000_000 if no_more_threads else 0
    pool.expect_close()
    pool.submit(last.set)
    closing = Harness().in_background(pool.close)
    closing.join()
    assert last.is_set()
    assert not pool._runners
    timers.close()
    assert not caplog.records


def test_a_call_may_close_what_it_is_made_by(platform: CountingPlatform) -> None:
    timers = Timers(platform)
    pool = BlockingPool(platform, timers)
    closed, made = threading.Event(), threading.Event()

    def close() -> None:
        pool.close()
        closed.set()

    pool.submit(close)
    pool.submit(made.set)
    assert closed.wait(DEADLINE)
    pool.close()
    assert made.is_set()
    assert not pool._runners
    timers.close()


def test_an_empty_mailbox_that_is_not_waited_for_answers_at_once() -> None:
    """Python 3.10's queue waits for ever when it is given no time at all."""
    for _ in range(1000):
        assert SystemPlatform().mailbox().take(0) is None
