"""The callers' sockets while flows use them.

A flow works on a duplicate of a socket, never on the caller's descriptor: that number can be
closed at any moment and be a stranger's the next.  There is one duplicate a socket, shared by the
flows on it, and non-blocking until the last of them has ended (F24).  As long as it is a source,
a single byte makes it readable (SO_RCVLOWAT).
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from .._platform.interface import Endpoint, Platform, SocketLike
from .timers import Timer, Timers

#: Seconds between two looks for sockets that their owner has closed.  With what a look takes and
#: what a busy machine adds, a flow ends within a second of the closing.
SWEEP_SECONDS = 0.8


class _Connection:
    """One open socket, by whichever of its descriptors flows have come to it."""

    def __init__(
        self, platform: Platform, endpoint: Endpoint, owes_blocking: bool, identity: object
    ) -> None:
        self.endpoint = endpoint
        self.identity = identity
        self.owes_blocking = owes_blocking
        self.objects: list[SharedSocket] = []
        self.users = 0
        self.is_source = False
        self.is_drain = False
        #: What SO_RCVLOWAT was before it was lowered, and so is owed back; 0: it wasn't.
        self.owes_mark = 0
        #: On OpenBSD the cause of a splice's end is left in its source's SO_ERROR.
        self.keeps_causes = False
        self.lock = threading.Lock()
        self._platform = platform
        self._failure: OSError | None = None
        self._cause: OSError | None = None

    def failed(self, error: OSError) -> None:
        self._failure = self._failure or error

    def failure(self) -> OSError | None:
        if self._failure is None:
            error = self._platform.take_error(self.endpoint)
            if error is not None and self.keeps_causes and self._is_cause(error):
                self._cause = error
            else:
                self._failure = error
        return self._failure

    def take_cause(self) -> OSError | None:
        cause, self._cause = self._cause, None
        return cause

    def _is_cause(self, error: OSError) -> bool:
        """No connection dies of these, and one that lives has not died of anything."""
        ends = (errno.EFBIG, errno.EPIPE, errno.ELOOP, errno.ENOBUFS)
        return error.errno in ends or self._platform.is_connected(self.endpoint)


class SharedSocket:
    """One socket object of the program's that flows use, and who must be told when it is closed.

    All else belongs to the open socket, which other objects can stand for as well (``dup``).
    """

    def __init__(self, original: SocketLike, descriptor: int, connection: _Connection) -> None:
        self.original = original
        self.descriptor = descriptor  # the caller's
        #: There is no duplicate: the flows have the socket itself, and nobody else has it.
        self.is_given_up = False
        self.connection = connection
        self.users = 0
        self.on_closed: list[Callable[[], None]] = []
        self.told = False  # that it is closed

    @property
    def endpoint(self) -> Endpoint:
        """Our own duplicate."""
        return self.connection.endpoint

    @property
    def lock(self) -> threading.Lock:
        """Held over each call that can be told an error, until ``failed`` knows of it."""
        return self.connection.lock

    def keep_causes(self) -> None:
        """OpenBSD's: have ``failure`` leave them for ``take_cause``."""
        self.connection.keeps_causes = True

    def failed(self, error: OSError) -> None:
        """A call on it has raised ``error``, which is now known to nobody else (with ``lock``)."""
        self.connection.failed(error)

    def failure(self) -> OSError | None:
        """What the connection died of, if anything (with ``lock``).

        The system tells each error once, whoever asks (a call, SO_ERROR), and reports EOF from
        then on.  The flow of the other direction must not take that for a FIN.
        """
        return self.connection.failure()

    def take_cause(self) -> OSError | None:
        """Why the kernel has ended the splice of this source, where it says so (with ``lock``)."""
        return self.connection.take_cause()


class Sockets:
    """All of one runtime's shared sockets."""

    def __init__(
        self,
        platform: Platform,
        timers: Timers,
        run_blocking: Callable[[Callable[[], object]], object],
        wait: Callable[[Callable[[], object]], object],
    ) -> None:
        self._platform = platform
        self._timers = timers
        self._run_blocking = (
            run_blocking  # makes a call that may have to wait where the kernel serves
        )
        self._wait = wait  # makes one that will have to wait, whoever serves
        self._lock = threading.Lock()
        # By the descriptor of the caller's open object.
        self._shared: dict[int, SharedSocket] = {}
        self.in_use: set[SharedSocket] = set()
        # By what tells one open socket from another.
        self._connections: dict[object, _Connection] = {}
        self._sweep: Timer | None = None

    def acquire(
        self, original: SocketLike, *, source: bool, drain: bool, on_closed: Callable[[], None]
    ) -> SharedSocket:
        """The socket, for use as a source, a drain or both, until ``release``.

        Raises OSError: EBUSY where a flow uses it so already, EBADF where it is closed,
        EPROTONOSUPPORT where it is no stream socket, EINVAL where it is listening; TypeError
        where it is no object with ``fileno()`` or speaks TLS.
        """
        descriptor = _descriptor(self._platform, original)
        while True:
            with self._lock:
                shared = self._find(original, descriptor)
                connection = shared.connection
                left_behind = _left_behind(self._platform, connection.objects)
                if not left_behind:
                    if (source and connection.is_source) or (drain and connection.is_drain):
                        raise _busy(original, connection.is_source and source)
                    self._use(shared, source, drain, on_closed)
                    return shared
            # Somebody has taken the socket over from an object that was closed since the last
            # sweep: whoever had that object's flows is told now.
            for end in left_behind:
                end()

    def take_over(self, given: Endpoint) -> SharedSocket:
        """A socket that its owner gives up, until ``release``, which closes it.

        It is connected and non-blocking, a single byte makes it readable, and no other object
        stands for it: nothing has to be asked, changed, watched or given back. Only the time for
        which its close may wait is asked for: whoever opened it can have set one.
        """
        if given.fileno() < 0:
            raise OSError(errno.EBADF, f"{os.strerror(errno.EBADF)}: {given!r} is closed")
        shared = SharedSocket(
            given, given.fileno(), _Connection(self._platform, given, False, None)
        )
        shared.is_given_up = True
        return shared

    def are_free(self, source: SocketLike, drain: SocketLike) -> bool:
        """Whether no flow has the one for its source, nor the other for its drain."""
        with self._lock:
            reads, writes = (self._known(each) for each in (source, drain))
            return not ((reads and reads.is_source) or (writes and writes.is_drain))

    def _known(self, original: SocketLike) -> _Connection | None:
        """The connection of an open socket, if flows are on it."""
        shared = self._shared.get(original.fileno())
        if shared is not None and self._platform.is_open(shared.original):
            return shared.connection
        return self._connections.get(self._platform.identity(original))

    def _find(self, original: SocketLike, descriptor: int) -> SharedSocket:
        shared = self._shared.get(descriptor)
        # The number of a socket that was closed, and that the sweep has not met yet, can be
        # another socket's by now.
        if shared is not None and self._platform.is_open(shared.original):
            return shared
        return SharedSocket(original, descriptor, self._connection(original))

    def _use(
        self, shared: SharedSocket, source: bool, drain: bool, on_closed: Callable[[], None]
    ) -> None:
        if self._sweep is None:
            self._sweep = self._timers.after(SWEEP_SECONDS, self._look_for_closed)
        self._shared[shared.descriptor] = shared
        self.in_use.add(shared)
        shared.users += 1
        shared.on_closed.append(on_closed)
        connection = shared.connection
        if shared not in connection.objects:
            connection.objects.append(shared)
        connection.users += 1
        if source:  # which the system may report only once there is more
            connection.owes_mark = self._platform.lower_read_mark(connection.endpoint)
        connection.is_source |= source
        connection.is_drain |= drain

    def release(
        self, shared: SharedSocket, *, source: bool, drain: bool, on_closed: Callable[[], None]
    ) -> None:
        """The reverse.  The last release gives the caller's socket its blocking mode back."""
        connection = shared.connection
        if shared.is_given_up:
            self._close(connection.endpoint)
            return
        with self._lock:
            shared.users -= 1
            shared.on_closed.remove(on_closed)
            connection.users -= 1
            if source and connection.owes_mark:
                self._platform.restore_read_mark(connection.endpoint, connection.owes_mark)
                connection.owes_mark = 0
            connection.is_source &= not source
            connection.is_drain &= not drain
            if not shared.users:
                self.in_use.discard(shared)
                if self._shared.get(shared.descriptor) is shared:
                    del self._shared[shared.descriptor]
            if connection.users:
                return
            self._forget(connection)
        self._close(connection.endpoint)

    def _close(self, endpoint: Endpoint) -> None:
        close = partial(self._platform.close, endpoint)
        if self._platform.last_close_waits(endpoint):
            self._wait(close)
        else:
            close()

    def _connection(self, original: SocketLike) -> _Connection:
        """The open socket that this object stands for, which others may stand for already.

        Two flows that don't know that they have one socket would take each other's errors, give
        it its blocking mode back too soon (F24), and set a second splice on a live one (F23).
        """
        endpoint, owes_blocking = self._platform.duplicate(original)
        identity = self._platform.identity(endpoint)
        known = self._connections.get(identity)
        # A name in the network can be another connection's by now, if the first one has died.
        if known is not None and self._platform.identity(known.endpoint) == identity:
            self._platform.close(endpoint)
            return known
        made = _Connection(self._platform, endpoint, owes_blocking, identity)
        if identity is not None:
            self._connections[identity] = made
        return made

    def _forget(self, connection: _Connection) -> None:
        """The last flow on it has ended."""
        if self._connections.get(connection.identity) is connection:
            del self._connections[connection.identity]
        if connection.owes_blocking:
            for shared in connection.objects:
                if self._platform.is_open(shared.original):
                    self._platform.restore_blocking(shared.original, connection.endpoint)
                    break

    def _look_for_closed(self) -> None:
        with self._lock:
            self._sweep = (
                self._timers.after(SWEEP_SECONDS, self._look_for_closed) if self.in_use else None
            )
            ends = _ends_of_closed(self._platform, self.in_use)
        for end in ends:
            self._run_blocking(end)


def _descriptor(platform: Platform, original: SocketLike) -> int:
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
    if not platform.is_open(original):
        raise OSError(errno.EBADF, f"{os.strerror(errno.EBADF)}: {original!r} is closed")
    return original.fileno()


def _ends_of_closed(
    platform: Platform, objects: Iterable[SharedSocket]
) -> list[Callable[[], None]]:
    """What to call because of the objects that were closed."""
    ends = []
    for shared in objects:
        if not platform.is_open(shared.original) and not shared.told:
            shared.told = True  # once is enough, and the call can hang (F24)
            ends += shared.on_closed
    return ends


def _left_behind(platform: Platform, objects: Sequence[SharedSocket]) -> list[Callable[[], None]]:
    """The same of a connection whose objects all were closed."""
    if any(platform.is_open(shared.original) for shared in objects):
        return []
    return _ends_of_closed(platform, objects)


def _busy(original: SocketLike, as_source: bool) -> OSError:
    role = "source" if as_source else "drain"
    return OSError(
        errno.EBUSY,
        f"{os.strerror(errno.EBUSY)}: {original!r} is the {role} of a splice; end that one first",
    )
