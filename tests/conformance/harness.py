"""The small language the conformance cases are written in.

A case makes connections with ``Harness.pair``. It holds one end of each, the socket a program
would hand to this package, and lets the ``Peer`` at the other end write, read, send FIN, reset.
Cases touch the network, time and threads through nothing else, so that the same cases run in a
modelled world (``model.harness``).
"""

from __future__ import annotations

import os
import select
import selectors
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import pytest

from freebsd_splice._diagnostics.facts.kernel_rig import POLLRDHUP
from freebsd_splice._platform import raw_splice
from support.slowness import SLOWNESS

T = TypeVar("T")

DEADLINE = 25.0 * SLOWNESS  # seconds; only a failing case ever waits this long
ALWAYS_FITS = 16 * 1024  # bytes that the buffers between two ends take on every system
SMALL_BUFFER = 8192  # bytes asked for each buffer of a small pair
RESET_ON_CLOSE = struct.pack("HH" if os.name == "nt" else "ii", 1, 0)
LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}

#: By poll(2) where there is one: select(2) takes no descriptor past 1,023.
_Selector: type[selectors.BaseSelector] = getattr(
    selectors, "PollSelector", selectors.SelectSelector
)
#: IP_MINTTL, which Python doesn't name, on the systems that have it.
_MINIMUM_TTL = {"linux": 21, "freebsd": 66, "openbsd": 32}.get(sys.platform.rstrip("0123456789"))


class Peer:
    """The far end of a connection: what the other machine does. Every wait has a deadline."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.settimeout(DEADLINE)

    @property
    def address(self) -> tuple[object, ...]:
        """The far end's own address."""
        return tuple(self._connection.getsockname())

    def write(self, data: bytes) -> None:
        """Send all of data; more than any system's buffers hold only where the case reads on."""
        if len(data) > ALWAYS_FITS and threading.current_thread() is threading.main_thread():
            raise AssertionError(
                f"{len(data)} bytes, and nobody reads while they are written: harness.in_background"
            )
        self._connection.sendall(data)

    def write_what_fits(self, data: bytes = b"f" * 65536) -> int:
        """Send until every buffer on the way is full; the number of bytes sent."""
        sent = 0
        self._connection.settimeout(0)
        try:
            while True:
                sent += self._connection.send(data)
        except BlockingIOError:
            return sent
        finally:
            self._connection.settimeout(DEADLINE)

    def read(self, size: int) -> bytes:
        """Exactly size bytes; fewer only where the stream ends first."""
        data = bytearray()
        while len(data) < size:
            piece = self._connection.recv(min(size - len(data), 1 << 20))
            if not piece:
                break
            data += piece
        return bytes(data)

    def read_to_end(self) -> bytes:
        """Everything up to the end of the stream."""
        data = bytearray()
        while piece := self._connection.recv(1 << 20):
            data += piece
        return bytes(data)

    def has_nothing_to_read(self) -> bool:
        """True while neither data nor an end has arrived."""
        self._connection.settimeout(0)
        try:
            self._connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        finally:
            self._connection.settimeout(DEADLINE)
        return False

    def fin(self) -> None:
        """Say that no more data will follow; reading goes on."""
        self._connection.shutdown(socket.SHUT_WR)

    def finish(self, data: bytes) -> None:
        """Send all of data, then FIN."""
        self.write(data)
        self.fin()

    def reset(self) -> None:
        """Break the connection with RST."""
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self._connection.close()

    def close(self) -> None:
        """Close the connection in the ordinary way."""
        self._connection.close()


class Background(Protocol):
    """Something that a case does in another thread."""

    def join(self) -> None:
        """Wait until it is done; what it raised is raised here."""
        ...


class Harness:
    """Makes connections, waits for conditions, and cleans up everything it made."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def pair(
        self, family: int = socket.AF_INET, *, small_buffers: bool = False
    ) -> tuple[socket.socket, Peer]:
        """A connected TCP pair: our end, and the peer at the other."""
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            if small_buffers:
                _shrink(listener)
            listener.bind((LOOPBACK[socket.AddressFamily(family)], 0))
            listener.listen(1)
            far = self.keep(socket.socket(family, socket.SOCK_STREAM))
            if small_buffers:
                _shrink(far)
            far.settimeout(DEADLINE)
            far.connect(listener.getsockname())
            listener.settimeout(DEADLINE)
            near = self.keep(listener.accept()[0])
        if small_buffers:
            _shrink(near)
        near.settimeout(0)
        return near, Peer(far)

    def keep(self, made: socket.socket) -> socket.socket:
        """Have a socket that the case made itself closed at its end."""
        self._sockets.append(made)
        return made

    def unconnected(self) -> socket.socket:
        return self.keep(socket.socket())

    def listening(self) -> socket.socket:
        return self.keep(socket.create_server(("127.0.0.1", 0)))

    def datagrams(self) -> socket.socket:
        return self.keep(socket.socket(type=socket.SOCK_DGRAM))

    def closed(self) -> socket.socket:
        made = socket.socket()
        made.close()
        return made

    def is_blocking(self, ours: socket.socket) -> bool:
        """Whether O_NONBLOCK is clear."""
        return os.get_blocking(ours.fileno())

    def unsplice(self, ours: socket.socket) -> None:
        """Somebody else ends the kernel's splice of this source."""
        raw_splice.end_splice(ours.fileno())

    def is_released(self, drain: socket.socket) -> bool:
        """Whether poll(2) shows that it is no drain, or dead (F20; on OpenBSD it doesn't, F25)."""
        return is_ready(drain, selectors.EVENT_WRITE)

    def hangs_up(self, ours: socket.socket) -> bool:
        """Whether the peer's FIN or reset has come: by POLLRDHUP (F14), by kevent elsewhere (F39).

        Of a socket that is spliced, kevent tells it when the splice is over.
        """
        if sys.platform == "win32":
            pytest.skip("Windows has no poll() that tells")
        if POLLRDHUP:
            poll = select.poll()
            poll.register(ours, POLLRDHUP)
            return bool(poll.poll(0))
        kq: Any = select
        queue = kq.kqueue()
        try:
            read = kq.kevent(ours.fileno(), kq.KQ_FILTER_READ, kq.KQ_EV_ADD)
            return any(event.flags & kq.KQ_EV_EOF for event in queue.control([read], 1, 0))
        finally:
            queue.close()

    def now(self) -> float:
        """Seconds on the clock that the package goes by."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Let time pass, where time itself is the subject."""
        time.sleep(seconds)

    def in_background(self, call: Callable[..., object], *arguments: object) -> Background:
        """Do that in another thread."""
        return _Thread(call, arguments)

    def until(self, condition: Callable[[], T], what: str) -> T:
        """Wait until the condition holds and give its value; fail naming what never happened."""
        deadline = time.monotonic() + DEADLINE
        pause = 0.0002
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"never happened within {DEADLINE:g} s: {what}")
            time.sleep(pause)
            pause = min(pause * 2, 0.02)
        return value

    def readable(self, ours: socket.socket) -> bool:
        """Has our end data or an end of its stream to read (asked once, without waiting)?"""
        return is_ready(ours, selectors.EVENT_READ)

    def waiting(self, ours: socket.socket, size: int) -> bytes:
        """Read exactly size bytes left at our end, which come within the deadline."""
        data = bytearray()

        def complete() -> bool:
            if self.readable(ours):
                data.extend(ours.recv(size - len(data)))
            return len(data) == size

        self.until(complete, f"{size} bytes readable at {ours}")
        return bytes(data)

    def error(self, ours: socket.socket) -> int:
        """SO_ERROR of our end. Reading it takes it away, as in any program."""
        return ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def close(self) -> None:
        """Close everything."""
        while self._sockets:
            self._sockets.pop().close()


class _Thread:
    def __init__(self, call: Callable[..., object], arguments: tuple[object, ...]) -> None:
        self._error: BaseException | None = None

        def run() -> None:
            try:
                call(*arguments)
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def join(self) -> None:
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), "the other thread hangs"
        if self._error is not None:
            raise self._error


def is_ready(ours: socket.socket, event: int) -> bool:
    """Whether it can be read or written, or has failed (asked once, without waiting)."""
    with _Selector() as selector:
        selector.register(ours, event)
        return bool(selector.select(0))


def silent_listener(keep: Callable[[socket.socket], socket.socket]) -> socket.socket:
    """A listener to which connections are neither made nor refused.

    It drops what has less than the highest TTL. A full queue wouldn't do: the connections beyond
    it are made on FreeBSD, and reset. Elsewhere it has to.
    """
    listener = keep(socket.create_server((LOOPBACK[socket.AF_INET], 0), backlog=0))
    if _MINIMUM_TTL is not None:
        listener.setsockopt(socket.IPPROTO_IP, _MINIMUM_TTL, 255)
        return listener
    for _ in range(200):
        waiting = keep(socket.socket())
        waiting.settimeout(0.3)
        try:
            waiting.connect(listener.getsockname())
        except TimeoutError:
            return listener
    raise AssertionError("the listener's queue has no end")


def _shrink(made: socket.socket) -> None:
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
