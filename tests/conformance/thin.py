"""What the cases of the thin layer share."""

from __future__ import annotations

import contextlib
import errno
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

    def __init__(self, name: str, harness: Harness) -> None:
        self.name = name
        self.backend = "userspace" if name == "userspace" else "kernel"
        self.splice = freebsd_splice.splice
        self.unsplice = freebsd_splice.unsplice
        self.spliced_bytes = freebsd_splice.spliced_bytes
        self._harness = harness
        #: Whether the kernel is OpenBSD's, or the model of it.
        self.openbsd = name == "model openbsd" or (
            name == "kernel" and sys.platform.startswith("openbsd")
        )
        self._told: set[socket.socket] = set()  # sources whose splices' causes have been taken

    def differs(self, *, kernel: T, userspace: T, because: str) -> T:
        """What to expect where the backends aren't alike, and why they aren't."""
        assert because
        return kernel if self.backend == "kernel" else userspace

    @property
    def none_to_end(self) -> int:
        """What ending says where there is no splice: OpenBSD's kernel has its own errno."""
        return errno.EPROTO if self.openbsd else errno.ENOTCONN

    def cause_is(self, source: socket.socket, *numbers: int) -> None:
        """State that the source's SO_ERROR says why its splice has ended: OpenBSD's kernel leaves
        that there, the others leave nothing (F10).  Until it is taken, the next splice of that
        source ends at once."""
        if self.openbsd:
            found: list[int] = []

            def told() -> bool:
                found[:] = [self._harness.error(source)]
                return found[0] != 0

            self._harness.until(told, "a cause in SO_ERROR")
            assert found[0] in numbers
            self._told.add(source)

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

        The kernel's end comes from its own thread and shows at the drain (F20), OpenBSD's at the
        source, which any end makes readable; userspace looks when it is asked.
        """
        if self.openbsd:
            self._harness.until(
                lambda: source in self._told or self._harness.readable(source), "a readable source"
            )
        elif self.backend == "kernel":
            self._harness.until(lambda: self._harness.is_released(drain), "the drain released")
        if self.backend == "kernel" and self._is_dead(drain):
            with contextlib.suppress(OSError):  # the worker may be about to find that out (F19)
                self.unsplice(source)
        with self.refused(self.none_to_end):
            self.unsplice(source)

    def _is_dead(self, drain: socket.socket) -> bool:
        try:
            drain.getpeername()
        except OSError:
            return True
        return False

    def hangup(self, ours: socket.socket) -> None:
        """Wait until the peer's FIN or reset has arrived at our end."""
        self._harness.until(lambda: self._harness.hangs_up(ours), "a FIN or a reset")

    @contextlib.contextmanager
    def drain_refused(self, source: socket.socket, number: int) -> Iterator[None]:
        """The block's splice is refused because of its drain (F21).  OpenBSD's kernel takes any,
        and bytes that wait at the source stay there nevertheless: the splice is ended then."""
        if not self.openbsd:
            with self.refused(number):
                yield
            return
        yield
        with contextlib.suppress(OSError):
            self.unsplice(source)
        self._harness.error(source)

    @contextlib.contextmanager
    def refused(self, *numbers: int) -> Iterator[pytest.ExceptionInfo[OSError]]:
        """The block raises an OSError with one of these errnos, of the class that belongs to it."""
        with pytest.raises(OSError) as caught:
            yield caught
        assert caught.value.errno in numbers, caught.value
        assert isinstance(caught.value, type(OSError(caught.value.errno, "")))
