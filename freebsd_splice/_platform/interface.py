"""The platform: everything through which flows, ``Splice`` and ``Relay`` touch the system.

They use sockets, pipes, readiness, time and threads only through the protocols here.
``system.SystemPlatform`` is this machine. A test can hand in another platform, whose clock the test
moves or whose kernel is a model.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Protocol


class SocketLike(Protocol):
    """A socket, or an object that stands for one: the type of every source, drain and side.

    Every ``socket.socket`` is one. So is any other object with a ``fileno()`` method, such as
    another library's socket; on Windows, ``Splice`` and ``Relay`` take only ``socket.socket``.

    The package also uses these attributes, if the object has them: ``family``, ``type`` and
    ``proto`` (else the system is asked); ``gettimeout()``, as a socket with a timeout stays
    non-blocking after the splice; and ``close()``, which ``Relay(close=True)`` calls.
    """

    def fileno(self) -> int:
        """Return the socket's descriptor; once the socket is closed, return -1 or raise."""
        ...


class Endpoint(Protocol):
    """A duplicate of a caller's socket, made and closed by the platform."""

    def fileno(self) -> int: ...


class Pipe(Protocol):
    """A pipe for ``os.splice``; it is empty while no flow holds it."""

    @property
    def size(self) -> int:
        """The pipe's capacity in bytes."""
        ...


class Readiness(enum.IntFlag):
    """The readiness of a socket, as a poller watches for and reports it.

    Attributes:
        NONE: nothing.
        READ: there are bytes to read, or EOF.
        WRITE: there is room for bytes to send.
        HANGUP: the connection can take no more bytes. It is reported without being asked for.
        ERROR: an error may be pending on the socket. It is reported without being asked for.
    """

    NONE = 0
    READ = 1
    WRITE = 2
    #: The connection can take no more bytes. It is reported without being asked for.
    HANGUP = 4
    #: An error may be pending on the socket. It is reported without being asked for.
    ERROR = 8


class Poller(Protocol):
    """Level-triggered readiness.

    ``wait`` and ``quieten`` are called by the thread that waits; any thread may call the others.
    """

    def watch(self, endpoint: Endpoint, interest: Readiness) -> None:
        """Report ``interest`` on ``endpoint`` from now on, in place of the interest before.

        With ``Readiness.NONE``, HANGUP and ERROR are still reported, where the poller sees them.

        Raises:
            OSError: there is no room, or no memory. The endpoint may then be watched as before, or
                not at all; it can be asked again.
        """
        ...

    def forget(self, endpoint: Endpoint) -> None:
        """Report nothing more of the endpoint. This must be called before it is closed.

        It outlasts a shortage: nobody could make up for a socket that is reported for ever.
        """
        ...

    def quieten(self, endpoint: Endpoint) -> None:
        """Report the endpoint less often, as its last report led to nothing.

        There is only a notice in its error queue. While that lasts, report the endpoint only when
        something has changed, or else at intervals that double. The thread that waits calls this.
        """
        ...

    def listen(self, descriptor: int) -> None:
        """Report READ while ``descriptor`` can be read: a listening socket, or another poller.

        Only pollers with a ``fileno()`` can do that. The thread that waits calls this.
        """
        ...

    def unlisten(self, descriptor: int) -> None:
        """Undo ``listen``. The descriptor may be closed already."""
        ...

    def wait(self, timeout: float | None) -> list[tuple[int, Readiness]]:
        """Wait for a report, for ``wake``, or for ``timeout`` seconds (None: without limit).

        Returns:
            Descriptors, each with its readiness.
        """
        ...

    def wake(self) -> None:
        """Make the ``wait`` in progress return, or else the next one."""
        ...

    def fileno(self) -> int:
        """Readable while there is something to report; -1: it has no such descriptor."""
        ...

    def close(self) -> None: ...


class Event(Protocol):
    """As ``threading.Event``."""

    def set(self) -> None: ...

    def is_set(self) -> bool: ...

    def wait(self, timeout: float | None = None) -> bool: ...


class Notice(Protocol):
    """A descriptor that becomes readable once, and stays so."""

    def fileno(self) -> int: ...

    def give(self) -> None:
        """Make the descriptor readable."""
        ...

    def close(self) -> None: ...


class Mailbox(Protocol):
    """A queue of calls between threads."""

    def put(self, call: Callable[[], object]) -> None: ...

    def take(self, timeout: float) -> Callable[[], object] | None:
        """Remove and return the first call; None if none arrives within ``timeout`` seconds."""
        ...


class Runner(Protocol):
    """A loop that has been started."""

    def join(self) -> None:
        """Wait until the loop has returned."""
        ...


class Platform(Protocol):
    """One operating system. Every socket call is non-blocking: BlockingIOError means "not now"."""

    # Sockets
    def is_open(self, original: SocketLike) -> bool:
        """Return whether the caller's socket object is still open."""
        ...

    def duplicate(self, original: SocketLike) -> tuple[Endpoint, bool]:
        """Duplicate the caller's descriptor and set O_NONBLOCK, which all duplicates share.

        Returns:
            The duplicate; and whether the socket was blocking before, so that
            ``restore_blocking`` is due at the end.
        """
        ...

    def identity(self, endpoint: Endpoint) -> object:
        """Return a value that only duplicates of the same open socket share; None: unknown."""
        ...

    def close(self, endpoint: Endpoint) -> None: ...

    def last_close_waits(self, endpoint: Endpoint) -> bool:
        """Return whether the caller has set a time in SO_LINGER: the last close may wait then."""
        ...

    def close_original(self, original: SocketLike) -> None:
        """Close the caller's own socket object (``Relay(close=True)``)."""
        ...

    def restore_blocking(self, original: SocketLike, endpoint: Endpoint) -> None:
        """Clear O_NONBLOCK, unless the caller has closed the socket or given it a timeout."""
        ...

    def lower_read_mark(self, endpoint: Endpoint) -> int:
        """Let a single byte make the socket readable (SO_RCVLOWAT).

        Returns:
            The mark before, in bytes; 0 if it was not changed.
        """
        ...

    def restore_read_mark(self, endpoint: Endpoint, mark: int) -> None:
        """Restore that mark (bytes), unless the caller has set another one meanwhile."""
        ...

    def receive_into(self, endpoint: Endpoint, buffer: memoryview) -> int: ...

    def peek(self, endpoint: Endpoint, *, told: bool = True) -> int:
        """Return 1 if there is a byte to read, 0 at EOF; raise BlockingIOError if there is neither.

        Args:
            endpoint: the source.
            told: a poller has reported the socket readable. With SO_PEEK_OFF the system may then
                wrongly answer that there is nothing; without such a report, it is believed.
        """
        ...

    def send(self, endpoint: Endpoint, data: memoryview) -> int: ...

    def write_through(self, original: SocketLike, data: bytes | bytearray) -> int:
        """``send`` by the caller's own descriptor, which nobody else can close meanwhile."""
        ...

    def is_connected(self, endpoint: Endpoint) -> bool: ...

    def shutdown_write(self, endpoint: Endpoint) -> None: ...

    def reset_on_close(self, endpoint: Endpoint) -> None:
        """Make the last close of this connection send a reset in place of a FIN."""
        ...

    def unacknowledged(self, endpoint: Endpoint) -> int | None:
        """Return the bytes that were sent and not acknowledged by the peer; None: unknown."""
        ...

    def take_error(self, endpoint: Endpoint) -> OSError | None:
        """Take the pending error (SO_ERROR) off the socket and return it.

        Errors that the connection survives are left out, unless the caller asked for them
        (IP_RECVERR).
        """
        ...

    # os.splice; these are called only if ``can_splice`` returns True
    def can_splice(self) -> bool:
        """Return whether this system has ``os.splice`` between pipes and sockets."""
        ...

    def open_pipe(self, size: int) -> Pipe:
        """Open a pipe of ``size`` bytes, or of fewer where the system allows no more."""
        ...

    def close_pipe(self, pipe: Pipe) -> None: ...

    def splice_in(self, source: Endpoint, pipe: Pipe, count: int) -> int: ...

    def splice_out(self, pipe: Pipe, drain: Endpoint, count: int) -> int: ...

    def read_pipe(self, pipe: Pipe, count: int) -> bytes: ...

    # Waiting, time and threads
    def poller(self, *, few: bool = False) -> Poller:
        """Make a poller; with ``few``, for a handful of descriptors that may include a kqueue."""
        ...

    def mailbox(self) -> Mailbox: ...

    def event(self) -> Event: ...

    def notice(self) -> Notice: ...

    def now(self) -> float:
        """Return the seconds on a clock that never goes back."""
        ...

    def cpus(self) -> int:
        """Return how many engine workers this machine should have."""
        ...

    def run(self, step: Callable[[], bool], name: str) -> Runner:
        """Call ``step`` again and again on a new thread, until it returns False."""
        ...

    def is_own_thread(self) -> bool:
        """Return whether the caller runs on a thread that ``run`` has started."""
        ...

    def abandon(self) -> None:
        """In a forked child, close the child's copies of everything the platform has opened."""
        ...
