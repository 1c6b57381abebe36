"""What happens to the process itself: signals, fork, exec, a clock that is set."""

from __future__ import annotations

import ast
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import freebsd_splice
from conformance.backends import Served, not_on
from conformance.harness import DEADLINE, Harness
from faults.bystanders import Bystander
from faults.cells import cell
from freebsd_splice import Reason, Relay, Splice
from support.leaks import descriptors_of_another_program

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals, fork, exec are POSIX's")
real = not_on("model", because="A model's kernel, network and clock aren't this process's")

DATA = random.Random(14).randbytes(2_000_000)
SOON = 0.3
WHOLE = "every byte, as without the signals"


@pytest.fixture
def signals() -> Iterator[list[int]]:
    """A signal every 5 ms, whose handler is run by the main thread: it notes them here."""
    if sys.platform == "win32":
        pytest.skip("signals are POSIX's")
    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: seen.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    try:
        yield seen
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@cell("a signal", "Splice", "moving", sees="`wait` runs the handler and waits on", counted=WHOLE)
@cell("a signal", "Relay", "moving", sees="`wait` runs the handler and waits on", counted=WHOLE)
@real
@pytest.mark.parametrize("kind", [Splice, Relay])
def test_signals_interrupt_no_call(
    kind: Callable[..., Any],
    served: Served,
    harness: Harness,
    bystander: Bystander,
    signals: list[int],
) -> None:
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    got: list[bytes] = []

    def receive() -> None:
        got.append(receiver.read_to_end() if kind is Relay else receiver.read(len(DATA)))
        receiver.fin()

    receiving = harness.in_background(receive)
    made = kind(source, drain)
    sending = harness.in_background(sender.finish, DATA)
    outcome = made.wait(DEADLINE)
    sending.join()
    receiving.join()
    harness.until(lambda: signals, "a signal")
    assert outcome.reason is Reason.EOF
    assert (outcome.left_to_right if kind is Relay else outcome).bytes == len(DATA)
    assert got == [DATA]


@cell("a signal", "Splice", "any", sees="what its handler raises comes out of `wait`; it goes on")
@cell("a signal", "Relay", "any", sees="what its handler raises comes out of `wait`; it goes on")
@posix
@real
@pytest.mark.parametrize("kind", [Splice, Relay])
def test_what_a_handler_raises_ends_the_wait_alone(
    kind: Callable[..., Any], served: Served, harness: Harness, bystander: Bystander
) -> None:
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with kind(source, drain) as made:
            with pytest.raises(KeyboardInterrupt):
                _wait_until_interrupted(made)
            sender.write(b"still here")
            assert receiver.read(10) == b"still here"
            assert not made.done
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _wait_until_interrupted(made: Any) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    made.wait(DEADLINE)


@cell(
    "exec",
    "Splice",
    "moving",
    sees="nothing; the other program is given none of the package's descriptors",
)
@cell(
    "exec",
    "Relay",
    "moving",
    sees="nothing; the other program is given none of the package's descriptors",
)
@posix
@real
@pytest.mark.parametrize("kind", [Splice, Relay])
def test_another_program_is_given_no_descriptor(
    kind: Callable[..., Any], served: Served, harness: Harness, bystander: Bystander
) -> None:
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    before = descriptors_of_another_program()
    with kind(source, drain) as made:
        made.fileno()
        sender.write(b"hello")
        assert receiver.read(5) == b"hello"
        bystander.served()
        assert descriptors_of_another_program() == before


@posix
def test_what_another_program_is_given_is_seen() -> None:
    """Or the test above could not fail."""
    number = os.dup(0)
    try:
        assert str(number) not in descriptors_of_another_program()
        os.set_inheritable(number, True)
        assert str(number) in descriptors_of_another_program()
    finally:
        os.close(number)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock goes a year forward, or back, whenever it is asked."""
    jumps = random.Random(15)
    wall = time.time

    def jumping() -> float:
        return wall() + jumps.choice([-1, 1]) * 365 * 86_400

    monkeypatch.setattr(time, "time", jumping)


CLOCK = "nothing: `timeout` and `idle_timeout` go by the monotonic clock"


@cell("the clock is set", "Splice", "moving", sees=CLOCK)
@cell("the clock is set", "Relay", "moving", sees=CLOCK)
@pytest.mark.parametrize("kind", [Splice, Relay])
def test_a_clock_that_is_set_ends_nothing(
    kind: Callable[..., Any], served: Served, harness: Harness, bystander: Bystander, clock: None
) -> None:
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    with kind(source, drain, timeout=10 * DEADLINE, idle_timeout=10 * DEADLINE) as patient:
        sender.write(b"hello")
        assert receiver.read(5) == b"hello"
        began = harness.now()
        brief = kind(harness.pair()[0], harness.pair()[0], timeout=SOON)
        assert brief.wait(DEADLINE).reason is Reason.TIMEOUT
        assert harness.now() - began > 0.99 * SOON
        sender.write(b"again")
        assert receiver.read(5) == b"again"
        assert not patient.done


@cell("the clock is set", "thin", "any", sees="nothing: no module asks the wall clock")
@cell("the clock is set", "aio", "any", sees="nothing: no module asks the wall clock")
@cell("the clock is set", "processes", "any", sees="nothing but the time in the log's lines")
def test_no_module_asks_the_wall_clock() -> None:
    """The log has its times from logging, which asks by itself."""
    root = Path(freebsd_splice.__file__).parent
    asking = []
    for path in root.rglob("*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if "time" in text else ():
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                asked = f"{node.value.id}.{node.attr}"
                if asked in ("time.time", "time.time_ns", "datetime.now", "datetime.utcnow"):
                    asking.append(f"{path.relative_to(root)}: {asked}")
            if isinstance(node, ast.ImportFrom) and node.module == "time":
                assert {each.name for each in node.names} == {"monotonic"}, path
    assert asking == []


FORK = "the parent's goes on; in the child its methods raise RuntimeError"


@cell("fork", "Splice", "moving", sees=FORK, counted="the parent's, as without the fork")
@cell("fork", "Relay", "moving", sees=FORK, counted="the parent's, as without the fork")
@posix
@real
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("kind", [Splice, Relay])
def test_a_child_that_is_forked_and_killed_ends_nothing(
    kind: Callable[..., Any], served: Served, harness: Harness, bystander: Bystander
) -> None:
    source, sender = harness.pair()
    drain, receiver = harness.pair()
    made = kind(source, drain)
    sender.write(b"hello")
    assert receiver.read(5) == b"hello"
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        try:
            with contextlib.suppress(RuntimeError):
                made.cancel()
                os.write(writing, b"cancelled")
            os.write(writing, b".")
            signal.pause()
        finally:
            os._exit(1)
    try:
        assert os.read(reading, 100) == b"."
        sender.write(b"again")
        assert receiver.read(5) == b"again"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)
    sender.finish(b"and again")
    assert receiver.read(9) == b"and again"
    receiver.fin()
    outcome = made.wait(DEADLINE)
    assert outcome.reason is Reason.EOF
    assert (outcome.left_to_right if kind is Relay else outcome).bytes == 19
