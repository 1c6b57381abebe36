"""What the cases of the thin layer share."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import sys
from collections.abc import Iterator
from typing import TypeVar

import pytest

import freebsd_splice
from conformance.harness import Harness, Peer

T = TypeVar("T")


class Thin:
    """The three calls of one backend, and how cases ask about its splices."""

    def __init__(self, backend: str, harness: Harness) -> None:
        self.backend = backend
        self.splice = freebsd_splice.splice
        self.unsplice = freebsd_splice.unsplice
        self.spliced_bytes = freebsd_splice.spliced_bytes
        self._harness = harness

    def differs(self, *, kernel: T, userspace: T, because: str) -> T:
        """What to expect where the backends aren't alike, and why they aren't."""
        assert because
        return kernel if self.backend == "kernel" else userspace

    @property
    def none_to_end(self) -> int:
        """What ending says where there is no splice: OpenBSD's kernel has its own errno."""
        openbsd = self.backend == "kernel" and sys.platform.startswith("openbsd")
        return errno.EPROTO if openbsd else errno.ENOTCONN

    def moved(self, source: socket.socket, size: int) -> None:
        """Wait until size bytes have been moved, and hold that it isn't more."""
        self._harness.until(lambda: self.spliced_bytes(source) >= size, f"{size} bytes moved")
        assert self.spliced_bytes(source) == size

    def fill(self, peer: Peer) -> int:
        """Have the peer write until nothing moves any more; the number of bytes written."""
        sent, quiet = 0, 0

        def stalled() -> bool:
            nonlocal sent, quiet
            more = peer.write_what_fits()
            sent += more
            quiet = 0 if more else quiet + 1
            return quiet == 15

        self._harness.until(stalled, "everything on the way full")
        return sent

    def is_live(self, source: socket.socket) -> None:
        """State that there is a splice to end, and end it."""
        self.unsplice(source)

    def is_over(self, source: socket.socket, drain: socket.socket) -> None:
        """State that the splice ends by itself: ending by hand says that there is none (F19).

        The kernel's end comes from its own thread and shows at the drain (F20); userspace looks
        when it is asked.
        """
        if self.backend == "kernel":
            self._harness.until(
                lambda: any(select.select([], [drain], [drain], 0)), "the drain released"
            )
        with self.refused(self.none_to_end):
            self.unsplice(source)

    def hangup(self, ours: socket.socket) -> None:
        """Wait until the peer's FIN or reset has arrived at our end."""
        if sys.platform == "win32":
            pytest.skip("Windows has no poll() that tells")
        poll = select.poll()
        poll.register(ours, getattr(select, "POLLRDHUP", 0x4000))
        self._harness.until(lambda: poll.poll(0), "a FIN or a reset")

    @contextlib.contextmanager
    def refused(self, *numbers: int) -> Iterator[pytest.ExceptionInfo[OSError]]:
        """The block raises an OSError with one of these errnos, of the class that belongs to it."""
        with pytest.raises(OSError) as caught:
            yield caught
        assert caught.value.errno in numbers, caught.value
        assert isinstance(caught.value, type(OSError(caught.value.errno, "")))
