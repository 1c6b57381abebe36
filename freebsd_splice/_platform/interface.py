"""The platform: everything through which flows, ``Splice`` and ``Relay`` touch the system.

Sockets, pipes, readiness, time and threads come in through the protocols here, and in no other way.
``system.SystemPlatform`` is this machine.  A test can hand in another one, whose clock it turns by
hand or whose kernel is a model.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Protocol


class SocketLike(Protocol):
    """A socket, or an object that stands for one: what ``Splice`` and ``Relay`` take as a side."""

    def fileno(self) -> int:
        """Return the socket's descriptor; once it is closed, return -1 or raise."""
        ...


class Endpoint(Protocol):
    """A duplicate of a caller's socket, made and closed by the platform."""

    def fileno(self) -> int: ...


class Pipe(Protocol):
    """A pipe for ``os.splice``; it is empty whenever nobody holds it."""

    @property
    def size(self) -> int:
        """Its capacity in bytes."""
        ...


class Readiness(enum.IntFlag):
    """What a poller watches for and reports."""

    NONE = 0
    READ = 1
    WRITE = 2
    #: The connection can take no more bytes.  Watched always, reported without being asked for.
    HANGUP = 4
    #: An error may be pending on the socket.  As HANGUP.
    ERROR = 8


class Poller(Protocol):
    """Level-triggered readiness.  Every method but ``wait`` may be called from any thread."""

    def watch(self, endpoint: Endpoint, interest: Readiness) -> None:
        """Report ``interest`` on ``endpoint`` from now on, in place of what was watched before.

        ``Readiness.NONE`` still reports HANGUP and ERROR, where the poller can see them.
        """
        ...

    def forget(self, endpoint: Endpoint) -> None:
        """Report nothing more; to be called before the endpoint is closed."""
        ...

    def quieten(self, endpoint: Endpoint) -> None:
        """What was reported of it last has led to nothing: a mere notice in its error queue.

        While that lasts, report it only when something has changed, or else ever more seldom.
        Called by the thread that waits.
        """
        ...

    def wait(self, timeout: float | None) -> list[tuple[int, Readiness]]:
        """Wait for something to report, for ``wake``, or for ``timeout`` seconds."""
        ...

    def wake(self) -> None:
        """Make the ``wait`` under way, or else the next one, return."""
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
        """Make it readable."""
        ...

    def close(self) -> None: ...


class Mailbox(Protocol):
    """A queue of calls between threads."""

    def put(self, call: Callable[[], object]) -> None: ...

    def take(self, timeout: float) -> Callable[[], object] | None:
        """The first of them; None where there was none for ``timeout`` seconds."""
        ...


class Runner(Protocol):
    """A loop that has been started."""

    def join(self) -> None:
        """Wait until it has returned."""
        ...


class Platform(Protocol):
    """One operating system.  Every socket call is non-blocking: BlockingIOError says "not now"."""

    # Sockets
    def is_open(self, original: SocketLike) -> bool:
        """Whether the caller's socket object is still open."""
        ...

    def duplicate(self, original: SocketLike) -> tuple[Endpoint, bool]:
        """A duplicate that is non-blocking, as from now on every duplicate of that socket is.

        True beside it where O_NONBLOCK was clear before, and so is owed back to the caller.
        """
        ...

    def identity(self, endpoint: Endpoint) -> object:
        """What the open socket has in common with its duplicates alone; None: can't be told."""
        ...

    def close(self, endpoint: Endpoint) -> None: ...

    def last_close_waits(self, endpoint: Endpoint) -> bool:
        """Whether the caller has set a time in SO_LINGER, for which the last close may wait."""
        ...

    def close_original(self, original: SocketLike) -> None:
        """Close the caller's own socket object (``Relay(close=True)``)."""
        ...

    def restore_blocking(self, original: SocketLike, endpoint: Endpoint) -> None:
        """Clear O_NONBLOCK, unless the caller has closed the socket or given it a timeout."""
        ...

    def lower_read_mark(self, endpoint: Endpoint) -> int:
        """Have a single byte make it readable (SO_RCVLOWAT); the mark before, 0 if unchanged."""
        ...

    def restore_read_mark(self, endpoint: Endpoint, mark: int) -> None:
        """The reverse, unless the caller has set another one meanwhile."""
        ...

    def receive_into(self, endpoint: Endpoint, buffer: memoryview) -> int: ...

    def peek(self, endpoint: Endpoint, *, told: bool = True) -> int:
        """1 where there is something to read, 0 at EOF.

        With SO_PEEK_OFF the system's "nothing there" can be wrong. Without ``told``, i.e. where
        no poller has said that there is something, it is believed all the same.
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
        """Bytes that were sent and that the peer has not acknowledged; None: it can't be told."""
        ...

    def take_error(self, endpoint: Endpoint) -> OSError | None:
        """The error pending on the socket (SO_ERROR), which is thereby taken off it.

        What a connection survives is left out, unless the caller has asked for it (IP_RECVERR).
        """
        ...

    # os.splice; only called where ``can_splice`` says so
    def can_splice(self) -> bool:
        """Whether this system has ``os.splice`` between pipes and sockets."""
        ...

    def open_pipe(self) -> Pipe: ...

    def close_pipe(self, pipe: Pipe) -> None: ...

    def splice_in(self, source: Endpoint, pipe: Pipe, count: int) -> int: ...

    def splice_out(self, pipe: Pipe, drain: Endpoint, count: int) -> int: ...

    def read_pipe(self, pipe: Pipe, count: int) -> bytes: ...

    # Waiting, time and threads
    def poller(self, *, few: bool = False) -> Poller:
        """``few``: for a handful of descriptors, a kqueue among them perhaps."""
        ...

    def mailbox(self) -> Mailbox: ...

    def event(self) -> Event: ...

    def notice(self) -> Notice: ...

    def now(self) -> float:
        """Seconds on a clock that never goes back."""
        ...

    def cpus(self) -> int:
        """How many engine workers this machine should have."""
        ...

    def run(self, step: Callable[[], bool], name: str) -> Runner:
        """Call ``step`` again and again, in a thread of its own, until it returns False."""
        ...

    def is_own_thread(self) -> bool:
        """Whether the caller runs in a thread that ``run`` has started."""
        ...

    def abandon(self) -> None:
        """In a forked child: close this process's copies of all that the platform has opened."""
        ...
