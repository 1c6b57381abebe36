"""The callers' sockets while flows use them.

A flow works on a duplicate of a socket, never on the caller's descriptor: that number can be
closed at any moment and be a stranger's the next.  There is one duplicate a socket, shared by the
flows on it, and non-blocking until the last of them has ended (F24).
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable

from ._port import Endpoint, Port, Source
from ._watcher import Timer, Watcher

#: Seconds between two looks for sockets that their owner has closed.  With what a look takes and
#: what a busy machine adds, a flow ends within a second of the closing.
SWEEP_SECONDS = 0.8


class SharedSocket:
    """One socket that flows use, and who must be told when its owner closes it."""

    def __init__(
        self,
        port: Port,
        original: Source,
        descriptor: int,
        endpoint: Endpoint,
        owes_blocking: bool,
    ) -> None:
        self.original = original
        self.descriptor = descriptor  # the caller's
        self.endpoint = endpoint
        self.owes_blocking = owes_blocking
        self.users = 0
        self.is_source = False
        self.is_drain = False
        self.on_closed: list[Callable[[], None]] = []
        self.told = False  # that it is closed
        #: On OpenBSD the cause of a splice's end is left in its source's SO_ERROR.
        self.keeps_causes = False
        #: Held over each call that can be told an error, until ``failed`` knows of it.
        self.lock = threading.Lock()
        self._port = port
        self._failure: OSError | None = None
        self._cause: OSError | None = None

    def failed(self, error: OSError) -> None:
        """A call on it has raised ``error``, which is now known to nobody else (with ``lock``)."""
        self._failure = self._failure or error

    def failure(self) -> OSError | None:
        """What the connection died of, if anything (with ``lock``).

        The system tells each error once, whoever asks (a call, SO_ERROR), and reports EOF from
        then on.  The flow of the other direction must not take that for a FIN.
        """
        if self._failure is None:
            error = self._port.take_error(self.endpoint)
            if error is not None and self.keeps_causes and self._is_cause(error):
                self._cause = error
            else:
                self._failure = error
        return self._failure

    def _is_cause(self, error: OSError) -> bool:
        """No connection dies of these, and one that lives has not died of anything."""
        ends = (errno.EFBIG, errno.EPIPE, errno.ELOOP, errno.ENOBUFS)
        return error.errno in ends or self._port.is_connected(self.endpoint)

    def take_cause(self) -> OSError | None:
        """Why the kernel has ended the splice of this source, where it says so (with ``lock``)."""
        cause, self._cause = self._cause, None
        return cause


class Sockets:
    """All of one runtime's shared sockets."""

    def __init__(
        self, port: Port, watcher: Watcher, errand: Callable[[Callable[[], object]], object]
    ) -> None:
        self._port = port
        self._watcher = watcher
        self._errand = errand  # makes a call that may have to wait
        self._lock = threading.Lock()
        # By the descriptor of the caller's open object.
        self._shared: dict[int, SharedSocket] = {}
        self._in_use: set[SharedSocket] = set()
        self._sweep: Timer | None = None

    def acquire(
        self, original: Source, *, source: bool, drain: bool, on_closed: Callable[[], None]
    ) -> SharedSocket:
        """The socket, for use as a source, a drain or both, until ``release``.

        Raises OSError: EBUSY where a flow uses it so already, EBADF where it is closed,
        EPROTONOSUPPORT where it is no stream socket, EINVAL where it is listening; TypeError
        where it is no object with ``fileno()`` or speaks TLS.
        """
        descriptor = _descriptor(self._port, original)
        with self._lock:
            if self._sweep is None:
                self._sweep = self._watcher.after(SWEEP_SECONDS, self._look_for_closed)
            shared = self._shared.get(descriptor)
            if shared is None or not self._port.is_open(shared.original):
                # The number of a socket that was closed, and that the sweep has not met yet, can
                # be another socket's by now.
                endpoint, owes_blocking = self._port.duplicate(original)
                shared = SharedSocket(self._port, original, descriptor, endpoint, owes_blocking)
                self._shared[descriptor] = shared
                self._in_use.add(shared)
            elif (source and shared.is_source) or (drain and shared.is_drain):
                role = "source" if source and shared.is_source else "drain"
                raise OSError(
                    errno.EBUSY,
                    f"{os.strerror(errno.EBUSY)}: {original!r} is the {role} of a splice; "
                    "end that one first",
                )
            shared.users += 1
            shared.is_source |= source
            shared.is_drain |= drain
            shared.on_closed.append(on_closed)
        return shared

    def release(
        self, shared: SharedSocket, *, source: bool, drain: bool, on_closed: Callable[[], None]
    ) -> None:
        """The reverse.  The last release gives the caller's socket its blocking mode back."""
        with self._lock:
            shared.users -= 1
            shared.is_source &= not source
            shared.is_drain &= not drain
            shared.on_closed.remove(on_closed)
            if shared.users:
                return
            self._in_use.discard(shared)
            if self._shared.get(shared.descriptor) is shared:
                del self._shared[shared.descriptor]
            if shared.owes_blocking:
                self._port.restore_blocking(shared.original, shared.endpoint)
        self._port.close(shared.endpoint)  # outside: SO_LINGER can make the last close wait

    def _look_for_closed(self) -> None:
        with self._lock:
            self._sweep = (
                self._watcher.after(SWEEP_SECONDS, self._look_for_closed) if self._in_use else None
            )
            is_open = self._port.is_open
            closed = [
                shared
                for shared in self._in_use
                if not is_open(shared.original) and not shared.told
            ]
            calls = []
            for shared in closed:
                shared.told = True  # once is enough, and the call can hang (F24)
                calls += shared.on_closed
        for on_closed in calls:
            self._errand(on_closed)


def _descriptor(port: Port, original: Source) -> int:
    if isinstance(original, int) or not hasattr(original, "fileno"):
        raise TypeError(
            f"a socket object is needed, not {original!r}: only an object can tell that it was "
            "closed (socket.socket(fileno=...) makes one from a descriptor)"
        )
    ssl = sys.modules.get("ssl")
    if ssl is not None and isinstance(original, ssl.SSLSocket):
        raise TypeError(
            f"{original!r} speaks TLS in this process: what arrives at its descriptor is "
            "ciphertext, and splicing it would deliver that"
        )
    if not port.is_open(original):
        raise OSError(errno.EBADF, f"{os.strerror(errno.EBADF)}: {original!r} is closed")
    return original.fileno()
