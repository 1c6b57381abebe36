"""The kernel's calls as this machine makes them (see ``kernel_interface``)."""

from __future__ import annotations

import array
import functools
import os
import re
import select
import socket
import struct
import sys

from .._errors import short_of
from . import raw_splice
from .end_events import KqueueEndEvents, SystemPollSet
from .kernel_interface import Capabilities, capabilities_of
from .tcp import KERNEL_TLS

__all__ = ["SystemKernelCalls"]

if sys.platform != "win32":
    import fcntl
    import termios

    TCP_INFO = 32
    SENT_TLS, RECEIVED_TLS = KERNEL_TLS["freebsd"]
    SO_SNDLOWAT = 0x1003
    FIONSPACE = 0x40046676
    OPENBSD_TCP_NOPUSH = 0x10  # OpenBSD's netinet/tcp.h; FreeBSD's is 4, and isn't used

    class SystemKernelCalls:
        """The calls of the running kernel.

        The options' numbers are FreeBSD's, unless their name says OpenBSD. OpenBSD's capabilities
        keep it from being asked with the others.
        """

        @functools.cached_property
        def capabilities(self) -> Capabilities:
            """The running kernel's; a jail can fake uname's ``release``, not its ``version``."""
            found = re.match(r"\w+ (\d+)\.(\d+)", os.uname().version)
            return capabilities_of(
                "OpenBSD" if sys.platform.startswith("openbsd") else "FreeBSD",
                (int(found[1]), int(found[2])) if found else (0, 0),
            )

        def set_splice(self, source: int, drain: int, max_bytes: int, idle: float) -> None:
            """Splice source to drain. ``max_bytes`` 0 and ``idle`` (seconds) 0 mean no limit."""
            raw_splice.set_splice(source, drain, max_bytes, idle)

        def end_splice(self, source: int) -> None:
            """End source's splice."""
            raw_splice.end_splice(source)

        def spliced_count(self, source: int) -> int:
            """Return the bytes moved by source's current or last splice."""
            return raw_splice.spliced_count(source)

        def tcp_state(self, descriptor: int) -> int:
            """Return the first byte of TCP_INFO."""
            return raw_splice.read_option(descriptor, socket.IPPROTO_TCP, TCP_INFO, 1)[0]

        def transmit_tls_mode(self, descriptor: int) -> int:
            """Return getsockopt(TCP_TXTLS_MODE)."""
            return _integer(raw_splice.read_option(descriptor, *SENT_TLS, 4))

        def receive_tls_mode(self, descriptor: int) -> int:
            """Return getsockopt(TCP_RXTLS_MODE)."""
            return _integer(raw_splice.read_option(descriptor, *RECEIVED_TLS, 4))

        def writable_now(self, descriptor: int) -> bool:
            """Return whether poll(2) for POLLOUT reports anything, without waiting."""
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            return bool(poll.poll(0))

        def send_space(self, descriptor: int) -> int:
            """Return ioctl(FIONSPACE), in bytes."""
            return _ask(descriptor, FIONSPACE)

        def send_low_water(self, descriptor: int) -> int:
            """Return getsockopt(SO_SNDLOWAT), in bytes."""
            return _integer(raw_splice.read_option(descriptor, socket.SOL_SOCKET, SO_SNDLOWAT, 4))

        def unread(self, descriptor: int) -> int:
            """Return ioctl(FIONREAD), in bytes."""
            return _ask(descriptor, termios.FIONREAD)

        def push(self, drain: int) -> None:
            """Set and clear TCP_NOPUSH, which makes TCP send; then restore the caller's value."""
            level, option = socket.IPPROTO_TCP, OPENBSD_TCP_NOPUSH
            before = _integer(raw_splice.read_option(drain, level, option, 4))
            for value in (1, 0, 1) if before else (1, 0):
                raw_splice.write_option(drain, level, option, value)

        def end_events(self) -> KqueueEndEvents:
            """Make a kqueue(2)."""
            try:
                return KqueueEndEvents()
            except OSError as error:
                raise short_of(error, "no kqueue for the ends of splices") from None

        def poll_set(self) -> SystemPollSet:
            """Make a set for poll(2)."""
            return SystemPollSet()

    def _ask(descriptor: int, request: int) -> int:
        answer = array.array("i", [0])
        fcntl.ioctl(descriptor, request, answer)
        return answer[0]

    def _integer(value: bytes) -> int:
        return int(struct.unpack("i", value)[0])
