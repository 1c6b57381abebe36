"""The rig on this machine's kernel: real sockets over loopback, and plain setsockopt."""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import re
import select
import socket
import struct
import sys
import time
from typing import Any

from .fact import Fact

SO_SPLICE = 0x1023
FIONREAD = getattr(importlib.import_module("termios"), "FIONREAD", 0) if os.name == "posix" else 0
#: This system's POLLRDHUP, by which poll(2) shows a lost EOF (F14); 0 where it has none, as OpenBSD
#: (F39). FreeBSD has it whether or not its Python says so.
POLLRDHUP: int = getattr(select, "POLLRDHUP", 0x4000 if sys.platform.startswith("freebsd") else 0)
#: A descriptor that no open file has. One that was just closed would be used by the next open.
CLOSED = 2**31 - 1
RESET_ON_CLOSE = struct.pack("ii", 1, 0)

#: The factor by which every wait is stretched, as emulated machines are slow.
SLOWNESS = float(os.environ.get("FREEBSD_SPLICE_SLOWNESS", "1"))
#: Seconds for which nothing must change before everything counts as having happened.
QUIET = 0.05
#: The size, in bytes, of the buffers between the drain and its peer.
BUFFER = 65_536
#: Seconds after which any other wait fails.
PATIENCE = 20.0

_select: Any = select
_unix: Any = os


def cannot_run() -> str | None:
    """Return why no fact can be run on this machine; None: they can be run."""
    if not sys.platform.startswith(("freebsd", "openbsd")):
        return f"{sys.platform} has no SO_SPLICE"
    with socket.socket() as probe:
        try:
            probe.getsockopt(socket.SOL_SOCKET, SO_SPLICE, 8)
        except OSError as error:
            return f"this kernel has no SO_SPLICE: {error.strerror}"
    return None


class KernelRig:
    """See ``Rig``."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._kqueue = self._open_kqueue()
        self.source, self.sender = self._pair()
        self.drain, self.receiver = self._pair()
        self.sent = 0
        self._events: list[str] = []
        self._armed = False
        self._arrived = bytearray()
        self._descriptors: dict[str, int] = {}

    def close(self) -> None:
        self._stack.close()

    def shows(self, fact: Fact) -> Fact | None:
        return fact

    # Methods that another rig over real sockets may replace

    def _open_kqueue(self) -> Any:
        kqueue = _select.kqueue()
        self._stack.callback(kqueue.close)
        return kqueue

    def _set(self, source: int, drain: int, max: int = 0, idle: float = 0.0) -> None:
        _set(source, drain, max, idle)

    def _end(self, source: int) -> None:
        _set(source, -1)

    def _set_with_length(self, source: int, drain: int, length: int) -> None:
        _set(source, drain, length=length)

    @property
    def system(self) -> str:
        return platform.system()

    @property
    def sockets(self) -> str:
        return platform.system()

    @property
    def release(self) -> tuple[int, int]:
        # A jail fakes the release, not the version (F36).
        found = re.match(r"\w+ (\d+)\.(\d+)", _unix.uname().version)
        return (int(found[1]), int(found[2])) if found else (0, 0)

    # What is seen

    def seen_events(self) -> list[str]:
        return self._events

    def seen_poll(self, which: str) -> set[str]:
        poll = _select.poll()
        poll.register(self._descriptor(which), _select.POLLIN | _select.POLLOUT | POLLRDHUP)
        shown = poll.poll(0)
        bits = {
            "IN": _select.POLLIN,
            "OUT": _select.POLLOUT,
            "HUP": _select.POLLHUP,
            "RDHUP": POLLRDHUP,
        }
        return {name for name, bit in bits.items() if shown and shown[0][1] & bit}

    def seen_count(self) -> int:
        value = self.source.getsockopt(socket.SOL_SOCKET, SO_SPLICE, 8)
        return int.from_bytes(value, sys.byteorder, signed=True)

    def seen_error(self, which: str) -> int:
        chosen = self.source if which == "source" else self.drain
        return chosen.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def seen_left(self) -> bytes:
        return self._take_all(self.source)

    def seen_arrived(self) -> bytes:
        self._arrived += self._take_all(self.receiver)
        return bytes(self._arrived)

    def _take_all(self, made: socket.socket) -> bytes:
        """Read until nothing more comes; reading makes room for more."""
        taken = b""
        while (more := _take(made)) or self._settle():
            taken += more
        return taken

    def expected(self, first: int, count: int) -> bytes:
        return _pattern(first, count)

    # The words of a script

    def do_nothing(self) -> None: ...

    def do_splice(
        self,
        where: str = "",
        max: int = 0,
        idle: float = 0.0,
        length: int | None = None,
    ) -> None:
        source, drain = self._descriptor("source"), self._descriptor("drain")
        if where == "back":
            self._set(self.drain.fileno(), self.source.fileno())
        elif where == "other":
            self._set(self._pair()[0].fileno(), drain)
        elif length is not None:
            self._set_with_length(source, drain, length)
        else:
            self._arm()
            self._set(source, drain, max, idle * SLOWNESS)
        self._settle()

    def do_end(self) -> None:
        self._end(self._descriptor("source"))
        self._settle()

    def do_count(self, length: int) -> None:
        value = self.source.getsockopt(socket.SOL_SOCKET, SO_SPLICE, length)
        assert len(value) == length
        assert int.from_bytes(value, sys.byteorder) == self.seen_count()

    def do_send(self, count: int) -> None:
        self.sender.sendall(_pattern(self.sent, count))
        self.sent += count
        self._settle()

    def do_answer(self, count: int) -> None:
        self.receiver.sendall(_pattern(0, count))
        self.sender.settimeout(PATIENCE * SLOWNESS)
        got = b""
        while len(got) < count:
            got += self.sender.recv(count - len(got))
        assert got == _pattern(0, count)

    def do_fill(self) -> None:
        """Send until the drain takes no more, and a little is left at the source."""
        while True:
            self._settle()
            if self.seen_count() < self.sent:
                return
            self.sender.sendall(_pattern(self.sent, 20_000))
            self.sent += 20_000

    def do_fin(self) -> None:
        self.sender.shutdown(socket.SHUT_WR)
        self._settle()

    def do_reset(self) -> None:
        _reset(self.sender)
        self._settle()

    def do_drain(self, what: str) -> None:
        """Let the drain's peer do something, or check what it sees."""
        if what == "fin":
            self.receiver.shutdown(socket.SHUT_WR)
        elif what == "close":
            self.receiver.close()
        elif what == "reset":
            _reset(self.receiver)
        else:
            self._arrived += _take(self.receiver)
            ended = self.receiver in select.select([self.receiver], [], [], 0)[0]
            assert ended == (what == "ended"), "the drain's peer sees an end or does not"
        self._settle()

    def do_sender(self, what: str) -> None:
        """Check what the source's peer sees."""
        if what == "ended":
            assert self.sender.recv(1) == b"", "the sender sees no end"
            return
        with contextlib.suppress(ConnectionResetError):
            self.sender.recv(1)
            raise AssertionError("the sender sees no reset")

    def do_shut(self, which: str) -> None:
        if which == "drain":
            self.drain.shutdown(socket.SHUT_WR)
        else:
            self.source.shutdown(socket.SHUT_RD)
        self._settle()

    def do_close(self, which: str) -> None:
        (self.source if which == "source" else self.drain).close()
        self._settle()

    def do_take_error(self) -> None:
        self.seen_error("source")

    def do_shrink(self, which: str) -> None:
        self.drain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    def do_duplicates(self) -> None:
        for made in (self.source, self.drain):
            made.dup().close()

    def do_wait(self, seconds: float) -> None:
        time.sleep(seconds * SLOWNESS)
        self._settle()

    def do_read(self) -> None:
        self.seen_arrived()

    def do_receive(self) -> None:
        self.source.recv(1)

    def do_use(self, source: str = "", drain: str = "") -> None:
        for role, kind in (("source", source), ("drain", drain)):
            if kind == "IPv6":
                self.source, self.sender = self._pair(socket.AF_INET6)
            elif kind == "fresh":
                self.drain, self.receiver = self._pair()
                self._descriptors.pop(role, None)
                self._armed = False
            elif kind == "self":
                self.drain, self.receiver = self.source, self.sender
            elif kind:
                self._descriptors[role] = self._special(kind)

    # Helpers

    def _descriptor(self, which: str) -> int:
        plain = self.source if which == "source" else self.drain
        return self._descriptors.get(which, plain.fileno())

    def _special(self, kind: str) -> int:
        keep = self._stack.enter_context
        if kind == "closed":
            return CLOSED
        if kind == "file":
            descriptor = os.open(os.devnull, os.O_RDONLY)
            self._stack.callback(os.close, descriptor)
            return descriptor
        if kind == "unix":
            one, other = socket.socketpair()
            keep(other)
            return keep(one).fileno()
        if kind == "udp":
            made = keep(socket.socket(type=socket.SOCK_DGRAM))
            made.connect(("127.0.0.1", 9))
            return made.fileno()
        made = keep(socket.socket())
        if kind == "listening":
            made.bind(("127.0.0.1", 0))
            made.listen(1)
        return made.fileno()

    def _pair(self, family: int = socket.AF_INET) -> tuple[socket.socket, socket.socket]:
        address = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        with socket.socket(family) as listener:
            listener.bind((address, 0))
            listener.listen(1)
            far = self._stack.enter_context(socket.socket(family))
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)  # small, so soon full
            far.settimeout(PATIENCE * SLOWNESS)
            far.connect(listener.getsockname())
            near = self._stack.enter_context(listener.accept()[0])
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        near.setblocking(False)
        return near, far

    def _arm(self) -> None:
        """Ask for events before the splice, and discard the drain's initial event.

        That order is the way to know the end (F19).
        """
        if self._armed or self._descriptors or self._kqueue is None:
            return
        self._armed = True
        flags = _select.KQ_EV_ADD | _select.KQ_EV_CLEAR
        changes = [
            _select.kevent(self.source.fileno(), _select.KQ_FILTER_READ, flags),
            _select.kevent(self.drain.fileno(), _select.KQ_FILTER_WRITE, flags),
        ]
        self._kqueue.control(changes, 0, 0)
        self._collect()
        self._events.clear()

    def _collect(self) -> bool:
        events = self._kqueue.control(None, 16, 0) if self._kqueue else []
        for event in events:
            name = "src.R" if event.filter == _select.KQ_FILTER_READ else "drain.W"
            self._events.append(name + (" EOF" if event.flags & _select.KQ_EV_EOF else ""))
        return bool(events)

    def _settle(self) -> bool:
        """Wait until nothing changes any more; return whether anything did."""
        changed, before = False, self._snapshot()
        end = time.monotonic() + PATIENCE * SLOWNESS
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < QUIET * SLOWNESS:
            select.select([self._kqueue] if self._kqueue else [], [], [], 0.005)
            now = self._snapshot()
            if self._collect() or now != before:
                changed, before, quiet_since = True, now, time.monotonic()
            if time.monotonic() > end:
                raise TimeoutError("the kernel does not come to rest")
        return changed

    def _snapshot(self) -> list[object]:
        found: list[object] = []
        for made in (self.source, self.drain, self.sender, self.receiver):
            if made.fileno() >= 0:
                unread = bytearray(4)
                _ioctl(made.fileno(), unread)
                poll = _select.poll()
                poll.register(made.fileno(), _select.POLLIN | POLLRDHUP)
                found.append((bytes(unread), poll.poll(0)))
        return found


def _set(
    source: int, drain: int, max_bytes: int = 0, idle: float = 0.0, length: int | None = None
) -> None:
    """Call setsockopt with this platform's own layout of the struct (F2: they differ)."""
    seconds, microseconds = divmod(round(idle * 1_000_000), 1_000_000)
    if idle < 0:  # pass it on as it is, for the kernel to refuse
        seconds, microseconds = int(idle), 0
    if sys.maxsize > 2**32:
        layout = "i4xqqq"
    else:
        layout = "=iqii" if sys.platform.startswith("freebsd") else "=iqqi"
    value = struct.pack(layout, drain, max_bytes, seconds, microseconds)
    if length is not None:
        value = value[:length].ljust(length, b"\0")
    made = socket.socket(fileno=source)  # not a duplicate, which would have another descriptor
    try:
        made.setsockopt(socket.SOL_SOCKET, SO_SPLICE, value)
    finally:
        made.detach()


def _ioctl(descriptor: int, answer: bytearray) -> None:
    fcntl: Any = importlib.import_module("fcntl")  # not on Windows
    fcntl.ioctl(descriptor, FIONREAD, answer)


def _take(made: socket.socket) -> bytes:
    """Read what can be read without waiting, whatever the socket's timeout is."""
    data = bytearray()
    with contextlib.suppress(ConnectionError):
        while select.select([made], [], [], 0)[0] and (piece := made.recv(1 << 20)):
            data += piece
    return bytes(data)


def _pattern(first: int, count: int) -> bytes:
    """Return ``count`` bytes from the one numbered ``first``; no two short pieces are alike."""
    numbers = range(first // 3, (first + count) // 3 + 1)
    whole = b"".join((number & 0xFFFFFF).to_bytes(3, "big") for number in numbers)
    return whole[first % 3 :][:count]


def _reset(made: socket.socket) -> None:
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    made.close()
