"""Where a scenario of ``test_shortages`` is played: connections, witnesses, and the accounts."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import freebsd_splice
from conformance.harness import DEADLINE, Harness, Peer
from freebsd_splice import Reason, Relay, RelayOutcome
from freebsd_splice._thin import emulation
from support.leaks import open_descriptors
from support.platforms import UserspacePlatform, runtime

from .injection import Injection

#: What a sender says in all: more than one turn of a mover that is served as a busy one.
DATA = bytes(range(256)) * 700
AHEAD = b"said before"


class Stage:
    """One play of a scenario."""

    def __init__(self, injection: Injection) -> None:
        self.injection = injection
        self.harness = Harness()
        self.records: list[logging.LogRecord] = []

    def pair(self) -> tuple[socket.socket, Peer]:
        ours, peer = self.harness.pair()
        ours.setblocking(True)
        return ours, peer

    def check(self, error: BaseException, text: str = "") -> None:
        """Check an exception that the package has raised: it says what to do as well."""
        self.injection.check(error, text)
        self.injection.check_text(error, self.injection.shortage.advice)

    @contextmanager
    def may_fail(self) -> Iterator[None]:
        """Let the block fail of the shortage."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            self.check(error)

    def ended_by(self, reason: Reason, error: OSError | None) -> None:
        """Check that an end was the stream's own, or the shortage's."""
        if error is not None:
            self.injection.check(error)
        else:
            assert reason is Reason.EOF, reason

    def unsent_of(self, outcome: RelayOutcome) -> tuple[bytes, bytes]:
        """Check the end of a relay; return the bytes that it holds."""
        self.ended_by(outcome.reason, outcome.error)
        return outcome.left_to_right.unsent, outcome.right_to_left.unsent


class Sending:
    """A peer that sends all of its data, then FIN, while somebody reads."""

    def __init__(self, on: Stage, peer: Peer, data: bytes = DATA) -> None:
        self._peer = peer
        self._data = data
        self.was_reset = False
        self._doing = on.harness.in_background(self._send)

    def _send(self) -> None:
        try:
            for start in range(0, len(self._data), 8192):
                self._peer.write(self._data[start : start + 8192])
            self._peer.fin()
        except OSError as error:  # the relay has closed its end: its outcome has what it had taken
            self.was_reset = isinstance(error, ConnectionResetError)

    def join(self) -> None:
        self._doing.join()


class Reading:
    """A peer that reads to the end, whichever that is."""

    def __init__(self, on: Stage, peer: Peer) -> None:
        self._peer = peer
        self.data = bytearray()
        self.was_reset = False
        self._doing = on.harness.in_background(self._read)

    def _read(self) -> None:
        try:
            while piece := self._peer._connection.recv(1 << 16):
                self.data += piece
        except ConnectionError:
            self.was_reset = True

    def join(self) -> bytes:
        self._doing.join()
        return bytes(self.data)


def rest_of(source: socket.socket) -> bytes:
    """Read what is left at our own end, up to the FIN."""
    source.settimeout(DEADLINE)
    data = bytearray()
    while piece := source.recv(1 << 16):
        data += piece
    return bytes(data)


class Witness:
    """Another relay of the same process, which nothing may happen to."""

    def __init__(self, on: Stage) -> None:
        left, self._near = on.pair()
        right, self._far = on.pair()
        self._relay = Relay(left, right)
        # The peers have the first words before the worker's turn is over, in which it still changes
        # what it waits for. Once they have the second, nothing of that is left to fail.
        self._talk()
        self._talk()

    def check(self) -> None:
        assert not self._relay.done, self._relay
        self._talk()
        self._relay.cancel()

    def _talk(self) -> None:
        self._near.write(b"how are you")
        assert self._far.read(11) == b"how are you"
        self._far.write(b"fine")
        assert self._near.read(4) == b"fine"


@contextmanager
def stage(
    injection: Injection,
    injecting: AbstractContextManager[object],
    platform: UserspacePlatform,
    *,
    mover: str | None = None,
    witness: bool = False,
) -> Iterator[Stage]:
    """Play inside the block; afterwards nothing is left open, and nobody has complained."""
    threads, descriptors = set(threading.enumerate()), open_descriptors()
    on = Stage(injection)
    with ExitStack() as undo:
        undo.callback(on.harness.close)
        _listen(on, undo)
        with runtime(platform, mover):
            seen = Witness(on) if witness else None
            with injecting:
                yield on
                if seen is None:
                    freebsd_splice.shutdown()
            if seen is not None:
                seen.check()
        emulation.shutdown()
    left = set(threading.enumerate()) - threads
    for thread in left:
        thread.join(DEADLINE)
        assert not thread.is_alive(), thread
    now = open_descriptors()
    assert len(now) <= len(descriptors), {n: f for n, f in now.items() if n not in descriptors}
    defects = [each for each in on.records if each.exc_info or each.levelno >= logging.CRITICAL]
    assert not defects, [(each.getMessage(), each.exc_info) for each in defects]


def _listen(on: Stage, undo: ExitStack) -> None:
    """Collect what is logged, and the exceptions that end a thread."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            on.records.append(record)

    handler = Handler()
    for name in ("freebsd_splice", "asyncio"):
        log = logging.getLogger(name)
        undo.callback(log.setLevel, log.level)
        log.setLevel(logging.INFO)
        log.addHandler(handler)
        undo.callback(log.removeHandler, handler)
    before = threading.excepthook

    def hook(args: Any) -> None:
        record = logging.LogRecord("thread", logging.CRITICAL, "", 0, repr(args), (), None)
        on.records.append(record)

    threading.excepthook = hook
    undo.callback(setattr, threading, "excepthook", before)
