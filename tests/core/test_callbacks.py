"""Done callbacks: what a caller may do in one, and whom it must not hold up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

import freebsd_splice
from conformance.harness import DEADLINE, Harness
from freebsd_splice import Reason, Relay, Splice, aio
from freebsd_splice._core import blocking_pool
from support.platforms import RecordingPlatform, runtime

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and fork are POSIX's")


class OneWorker(RecordingPlatform):
    """Whoever holds up the one worker holds up everybody."""

    def cpus(self) -> int:
        return 1


class Called:
    """Runs something as a done callback, and has what it gave or raised."""

    def __init__(self, work: Callable[[Any], object] = lambda ended: None) -> None:
        self._work = work
        self._over = threading.Event()
        self._result: object = None
        self._error: BaseException | None = None

    def __call__(self, ended: Any) -> None:
        try:
            self._result = self._work(ended)
        except BaseException as error:
            self._error = error
        finally:
            self._over.set()

    def result(self) -> Any:
        assert self._over.wait(DEADLINE), "the callback never returned"
        if self._error is not None:
            raise self._error
        return self._result


def end_one(harness: Harness, *callbacks: Callable[[Any], object]) -> Splice:
    """A splice that has ended, with those callbacks added before."""
    source, sender = harness.pair()
    drain, _ = harness.pair()
    splice = Splice(source, drain)
    for callback in callbacks:
        splice.add_done_callback(callback)
    sender.fin()
    assert splice.wait(DEADLINE).reason is Reason.EOF
    return splice


def passes_bytes(harness: Harness) -> bool:
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    with Splice(source, drain):
        sender.write(b"served")
        return receiver.read(6) == b"served"


# What may be done in one


@posix
def test_a_process_that_is_started_there_can_be_terminated(harness: Harness) -> None:
    def start_and_stop(_: object) -> int:
        with subprocess.Popen(
            [sys.executable, "-c", "print('up', flush=True); import time; time.sleep(1000)"],
            stdout=subprocess.PIPE,
        ) as child:
            try:
                assert child.stdout is not None
                assert child.stdout.readline() == b"up\n"
                child.terminate()
                return child.wait(DEADLINE)
            finally:
                child.kill()

    called = Called(start_and_stop)
    end_one(harness, called)
    assert called.result() == -signal.SIGTERM


def test_another_splice_can_be_waited_for(harness: Harness) -> None:
    with runtime(OneWorker()):
        source, sender = harness.pair()
        drain, receiver = harness.pair()
        other = Splice(source, drain)

        def wait_for_other(_: object) -> object:
            sender.write(b"more")
            sender.fin()
            return other.wait(DEADLINE).bytes

        called = Called(wait_for_other)
        end_one(harness, called)
        assert called.result() == 4
        assert receiver.read(4) == b"more"


def test_another_relay_can_be_made_and_ended(harness: Harness) -> None:
    with runtime(OneWorker()):

        def relay_once(_: object) -> Reason:
            left, client = harness.pair()
            right, server = harness.pair()
            with Relay(left, right) as relay:
                client.write(b"question")
                assert server.read(8) == b"question"
            return relay.wait(0).reason

        called = Called(relay_once)
        end_one(harness, called)
        assert called.result() is Reason.CANCELLED


def test_a_lock_held_while_others_are_served_can_be_taken(harness: Harness) -> None:
    lock = threading.Lock()

    def take(_: object) -> bool:
        with lock:
            return True

    called = Called(take)
    with runtime(OneWorker()):
        with lock:
            end_one(harness, called)
            assert passes_bytes(harness)
        assert called.result()


def test_shutdown_can_be_called(harness: Harness) -> None:
    left, _ = harness.pair()
    right, _ = harness.pair()
    live = Relay(left, right)
    queued = [Called() for _ in range(5)]
    called = Called(lambda _: freebsd_splice.shutdown())
    live.add_done_callback(queued[0])
    end_one(harness, called, *queued[1:])
    called.result()
    assert live.wait(0).reason is Reason.CANCELLED
    for each in queued:
        each.result()
    assert passes_bytes(harness)


def test_two_callbacks_in_shutdown_do_not_wait_for_each_other(harness: Harness) -> None:
    both = threading.Barrier(2)

    def stop(_: object) -> None:
        both.wait(DEADLINE)
        freebsd_splice.shutdown()

    called = [Called(stop), Called(stop)]
    for each in called:
        end_one(harness, each)
    for each in called:
        each.result()


@pytest.mark.parametrize("failure", [ZeroDivisionError, SystemExit])
def test_what_one_raises_is_logged_and_the_others_are_called(
    harness: Harness, caplog: pytest.LogCaptureFixture, failure: type[BaseException]
) -> None:
    def fail(_: object) -> None:
        raise failure("of the program's")

    for _ in range(3):
        called = Called()
        end_one(harness, fail, called)
        called.result()
    assert "a done callback of <Splice" in caplog.text
    assert "of the program's" in caplog.text


# Whom it holds up


def test_those_that_hang_hold_up_no_splice_and_no_callback(harness: Harness) -> None:
    let_go = threading.Event()
    with runtime(OneWorker()):
        hanging = [Called(lambda _: let_go.wait(DEADLINE)) for _ in range(blocking_pool.USUAL + 2)]
        for each in hanging:
            end_one(harness, each)
        assert passes_bytes(harness)
        called = Called()
        end_one(harness, called)
        called.result()
        let_go.set()
        assert all(each.result() for each in hanging)


def test_those_of_one_splice_are_called_in_order(harness: Harness) -> None:
    order: list[int] = []
    begun, go_on = threading.Event(), threading.Event()
    last = Called(lambda _: order.append(4))

    def first(splice: Splice) -> None:
        begun.set()
        assert go_on.wait(DEADLINE)
        splice.add_done_callback(last)
        order.append(1)

    splice = end_one(harness, first, lambda _: order.append(2))
    assert begun.wait(DEADLINE)
    splice.add_done_callback(lambda _: order.append(3))
    assert order == []
    go_on.set()
    last.result()
    assert order == [1, 2, 3, 4]


def test_one_added_to_a_splice_long_over_is_called_at_once(harness: Harness) -> None:
    splice = end_one(harness)
    threads: list[threading.Thread] = []
    splice.add_done_callback(lambda _: threads.append(threading.current_thread()))
    assert threads == [threading.current_thread()]


def test_what_it_is_told_of_is_over(harness: Harness) -> None:
    for _ in range(20):
        called = Called(lambda splice: (splice.done, splice.wait(0), splice.cancel()))
        end_one(harness, called)
        assert called.result()[0]


# Signals and threads


@posix
def test_it_takes_the_signals_of_the_thread_that_added_it(harness: Harness) -> None:
    assert sys.platform != "win32"

    def blocked(_: object = None) -> set[Any]:
        return set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    before = blocked()
    called = [Called(blocked), Called(blocked)]
    source, sender = harness.pair()
    drain, _ = harness.pair()
    splice = Splice(source, drain)
    splice.add_done_callback(called[0])
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        splice.add_done_callback(called[1])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    sender.fin()
    assert called[0].result() == before
    assert called[1].result() == before | {signal.SIGUSR1}


def test_shutdown_waits_for_those_under_way_and_those_to_come(harness: Harness) -> None:
    called: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def slow(_: object) -> None:
        begun.set()
        go_on.wait(DEADLINE)
        called.append(0)

    left, _ = harness.pair()
    right, _ = harness.pair()
    live = Relay(left, right)
    live.add_done_callback(lambda _: called.append(1))
    end_one(harness, slow)
    assert begun.wait(DEADLINE)
    waiting = threading.Thread(target=freebsd_splice.shutdown)
    waiting.start()
    live.wait(DEADLINE)
    assert waiting.is_alive()
    go_on.set()
    waiting.join(DEADLINE)
    assert sorted(called) == [0, 1]


def test_without_one_there_is_no_thread_for_them(harness: Harness) -> None:
    """aio waits for ends without them."""
    import asyncio

    async def relay() -> None:
        left, client = harness.pair()
        right, server = harness.pair()
        client.fin()
        server.fin()
        for one in (left, right):
            one.setblocking(False)
        await aio.relay(left, right)

    asyncio.run(relay())
    end_one(harness)
    assert not [one for one in threading.enumerate() if "callbacks" in one.name]


@posix
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_that_is_forked_in_one_calls_no_other(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sys.platform != "win32"
    monkeypatch.setattr(blocking_pool, "USUAL", 1)
    begun, go_on = threading.Event(), threading.Event()
    mine, theirs = os.pipe()
    parent = os.getpid()

    def fork(_: object) -> int:
        begun.set()
        assert go_on.wait(DEADLINE)
        return os.fork()

    called = Called(fork)
    end_one(harness, called)
    assert begun.wait(DEADLINE)
    end_one(harness, lambda _: os.write(theirs, b"%d " % os.getpid()))
    go_on.set()
    os.waitpid(called.result(), 0)
    freebsd_splice.shutdown()
    os.close(theirs)
    with os.fdopen(mine) as written:
        assert written.read() == f"{parent} "


@posix
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_forked_in_one_calls_no_other_of_the_splice(harness: Harness) -> None:
    assert sys.platform != "win32"
    mine, theirs = os.pipe()
    parent = os.getpid()
    called = Called(lambda _: os.fork())
    splice = Splice(harness.pair()[0], harness.pair()[0])
    splice.add_done_callback(called)
    splice.add_done_callback(lambda _: os.write(theirs, b"%d " % os.getpid()))
    splice.cancel()
    os.waitpid(called.result(), 0)
    freebsd_splice.shutdown()
    os.close(theirs)
    with os.fdopen(mine) as written:
        assert written.read() == f"{parent} "


@posix
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_forked_after_shutdown_calls_none_to_come(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sys.platform != "win32"
    monkeypatch.setattr(blocking_pool, "USUAL", 1)
    begun, go_on, closed, end = (threading.Event() for _ in range(4))
    mine, theirs = os.pipe()
    parent = os.getpid()

    def stop(_: object) -> None:
        begun.set()
        assert go_on.wait(DEADLINE)
        freebsd_splice.shutdown()
        closed.set()
        assert end.wait(DEADLINE)

    called = Called(stop)
    end_one(harness, called)
    assert begun.wait(DEADLINE)
    last = Called(lambda _: os.write(theirs, b"%d " % os.getpid()))
    end_one(harness, last)
    go_on.set()
    assert closed.wait(DEADLINE)
    child = os.fork()
    if not child:
        freebsd_splice.shutdown()
        os._exit(0)
    os.waitpid(child, 0)
    end.set()
    last.result()
    os.close(theirs)
    with os.fdopen(mine) as written:
        assert written.read() == f"{parent} "


def test_the_program_waits_for_a_callback_that_called_shutdown() -> None:
    program = """
import socket, threading, time
import freebsd_splice
begun = threading.Event()
def stop(_):
    begun.set()
    freebsd_splice.shutdown()
    time.sleep(0.3)
    print("to its end", flush=True)
pairs = socket.socketpair(), socket.socketpair()
splice = freebsd_splice.Splice(pairs[0][1], pairs[1][0])
splice.add_done_callback(stop)
pairs[0][0].close()
begun.wait()
for one in (*pairs[0], *pairs[1]): one.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=2 * DEADLINE
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "to its end\n", "")


def test_without_a_thread_they_are_called_by_shutdown_at_last(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    class NoThreads(RecordingPlatform):
        refused = 0

        def run(self, step: Any, name: str) -> Any:
            if "callbacks" in name:
                self.refused += 1
                raise RuntimeError("can't start new thread")
            return super().run(step, name)

    called = Called()
    platform = NoThreads()
    with runtime(platform):
        end_one(harness, called)
        harness.until(lambda: platform.refused > 2, "more tries")
    called.result()
    assert "its calls wait" in caplog.text
    assert len(caplog.records) == 1
