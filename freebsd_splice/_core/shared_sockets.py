"""The callers' sockets while flows use them.

A flow works on a duplicate of a socket, never on the caller's descriptor: that number can be
closed at any moment and belong to another file the next. Each socket has one duplicate, which its
flows share, and which stays non-blocking until the last of them has ended (F24: a blocking call on
a spliced socket stalls other splices). While it is a source, a single byte makes it readable
(SO_RCVLOWAT).
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

#: Seconds between two looks for sockets that their owner has closed. The remaining 0.2 s are for
#: the look itself and a busy machine, so that a flow ends within a second after the closing.
SWEEP_SECONDS = 0.8


class _Connection:
    """One open socket, whichever of its descriptors the flows on it were given."""

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
        #: The value of SO_RCVLOWAT before it was lowered, to be restored; 0: it wasn't lowered.
        self.owes_mark = 0
        #: Whether the kernel leaves the cause of a splice's end in SO_ERROR (F10: OpenBSD does).
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
        """Return whether ``error`` is the cause of a splice's end, not the connection's failure.

        No connection fails with one of these errnos, and one that is connected has not failed.
        """
        ends = (errno.EFBIG, errno.EPIPE, errno.ELOOP, errno.ENOBUFS)
        return error.errno in ends or self._platform.is_connected(self.endpoint)


class SharedSocket:
    """One of the program's socket objects that flows use, with the calls to make once it is closed.

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
        self.told = False  # whether ``on_closed`` has been called

    @property
    def endpoint(self) -> Endpoint:
        """The package's own duplicate."""
        return self.connection.endpoint

    @property
    def lock(self) -> threading.Lock:
        """The lock to hold over each call that can return an error, until ``failed`` has it."""
        return self.connection.lock

    def keep_causes(self) -> None:
        """Have ``failure`` leave causes for ``take_cause``: this kernel keeps them (OpenBSD)."""
        self.connection.keeps_causes = True

    def failed(self, error: OSError) -> None:
        """Note ``error``, which a call raised and the system reports only once (with ``lock``)."""
        self.connection.failed(error)

    def failure(self) -> OSError | None:
        """Return the error that the connection died of; None where it lives (with ``lock``).

        The system reports each error only once, to the first call that asks (any call, or
        SO_ERROR), and EOF from then on. The flow of the other direction must not take that for a
        FIN.
        """
        return self.connection.failure()

    def take_cause(self) -> OSError | None:
        """Return why the kernel ended this source's splice, where it says so (with ``lock``)."""
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
            run_blocking  # runs a call that may have to wait where the kernel serves
        )
        self._wait = wait  # runs a call that will have to wait, whichever backend serves
        self._lock = threading.Lock()
        # By the descriptor of the caller's open object.
        self._shared: dict[int, SharedSocket] = {}
        self.in_use: set[SharedSocket] = set()
        # By the identity of the open socket (see ``Platform.identity``).
        self._connections: dict[object, _Connection] = {}
        self._sweep: Timer | None = None

    def acquire(
        self, original: SocketLike, *, source: bool, drain: bool, on_closed: Callable[[], None]
    ) -> SharedSocket:
        """Take the socket for use as a source, a drain or both, until ``release``.

        Args:
            original: the caller's object.
            source: whether a flow reads from it.
            drain: whether a flow writes to it.
            on_closed: called once the program has closed the object.

        Raises:
            OSError: EBUSY: a flow uses it in that role already; EBADF: it is closed;
                EPROTONOSUPPORT: not a stream socket; EINVAL: it is listening.
            TypeError: not an object with ``fileno()``, or one that speaks TLS.
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
                    try:
                        self._use(shared, source, drain, on_closed)
                    except BaseException:
                        self._give_back_unused(shared)
                        raise
                    return shared
            # All objects that stood for this socket were closed since the last sweep, and this is
            # a new one: the old objects' flows are ended now.
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
        # A socket may have been closed since the last sweep, and its number may be another
        # socket's by now.
        if shared is not None and self._platform.is_open(shared.original):
            return shared
        return SharedSocket(original, descriptor, self._connection(original))

    def _use(
        self, shared: SharedSocket, source: bool, drain: bool, on_closed: Callable[[], None]
    ) -> None:
        # First what can fail: no descriptor or thread for the watcher, no memory.
        if self._sweep is None:
            self._sweep = self._timers.after(SWEEP_SECONDS, self._look_for_closed)
        connection = shared.connection
        if source:  # the system may report it readable only once more bytes are there
            connection.owes_mark = self._platform.lower_read_mark(connection.endpoint)
        self._shared[shared.descriptor] = shared
        self.in_use.add(shared)
        shared.users += 1
        shared.on_closed.append(on_closed)
        if shared not in connection.objects:
            connection.objects.append(shared)
        connection.users += 1
        connection.is_source |= source
        connection.is_drain |= drain

    def release(
        self, shared: SharedSocket, *, source: bool, drain: bool, on_closed: Callable[[], None]
    ) -> None:
        """Undo ``acquire``. The last release gives the caller's socket its blocking mode back."""
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
        """Return the open socket that this object stands for; flows may have it already.

        Two flows that don't know that they share a socket would take each other's errors, give it
        its blocking mode back too soon (F24: that stalls other splices), and set a second splice on
        a live one (F23: that resets its count).
        """
        endpoint, owes_blocking = self._platform.duplicate(original)
        try:
            identity = self._platform.identity(endpoint)
            known = self._connections.get(identity)
            # The identity can be that of a new connection with the same addresses, if the first
            # died.
            is_known = known is not None and self._platform.identity(known.endpoint) == identity
        except BaseException:
            if owes_blocking:
                self._platform.restore_blocking(original, endpoint)
            self._platform.close(endpoint)
            raise
        if known is not None and is_known:
            self._platform.close(endpoint)
            return known
        made = _Connection(self._platform, endpoint, owes_blocking, identity)
        if identity is not None:
            self._connections[identity] = made
        return made

    def _give_back_unused(self, shared: SharedSocket) -> None:
        """Undo ``_find``, where what came after it has failed."""
        connection = shared.connection
        if not connection.users:
            connection.objects.append(shared)
            self._forget(connection)
            self._platform.close(connection.endpoint)

    def _forget(self, connection: _Connection) -> None:
        """Forget a socket whose last flow has ended, and give it its blocking mode back."""
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
    """Return the calls to make for the objects that were closed."""
    ends = []
    for shared in objects:
        if not platform.is_open(shared.original) and not shared.told:
            shared.told = True  # once is enough, and the call can hang (F24: it waits for a lock)
            ends += shared.on_closed
    return ends


def _left_behind(platform: Platform, objects: Sequence[SharedSocket]) -> list[Callable[[], None]]:
    """Return the calls to make for a connection whose objects were all closed; else none."""
    if any(platform.is_open(shared.original) for shared in objects):
        return []
    return _ends_of_closed(platform, objects)


def _busy(original: SocketLike, as_source: bool) -> OSError:
    role = "source" if as_source else "drain"
    return OSError(
        errno.EBUSY,
        f"{os.strerror(errno.EBUSY)}: {original!r} is the {role} of a splice; end that one first",
    )
