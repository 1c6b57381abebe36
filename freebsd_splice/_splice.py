"""``Splice``: one direction, every byte of it, and the reason of its end."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from ._deadlines import Deadlines
from ._errors import InvalidArgument
from ._flow import End, Reason
from ._port import Source
from ._runtime import current
from ._waitable import Waitable

#: The most that ``off_t`` can say, which the kernel's own limit is.
_MAX_BYTES = (1 << 63) - 1

_Bytes = bytes  # ``bytes`` is a field's name below, as it is a file's size elsewhere


@dataclass(frozen=True)
class Outcome:
    """How a splice, or one direction of a relay, ended."""

    #: Bytes that the drain has taken, ``initial`` ones included.
    bytes: int
    #: Bytes that were taken from the source, or given as ``initial``, and not taken by the drain.
    #: They are in nobody's buffer any more: whoever goes on with the sockets starts with these.
    unsent: _Bytes
    reason: Reason
    #: What failed, where the reason is SOURCE_ERROR or DRAIN_ERROR; else None.
    error: OSError | None
    #: "userspace" or "kernel".
    backend: str
    #: What moved the bytes: "SO_SPLICE", "os.splice" or "copy".
    mover: str
    #: From the start to the end.
    seconds: float
    #: Why userspace served this pair although the kernel has SO_SPLICE; else None.
    fallback: str | None = None
    #: Bytes of ``bytes`` that may not have reached the drain's peer: it had not acknowledged them
    #: when a ``Relay`` that closes gave up waiting for that (its ``linger``), was cancelled, or was
    #: ended by a time limit.
    #: None: this system doesn't tell.
    undelivered: int | None = 0


class Splice(Waitable[Outcome]):
    """Deliver every byte that arrives at ``source`` to ``drain``, in order, until the end.

    It starts at once and runs by itself.  It does not pass EOF on and closes nothing (``Relay``
    does): when it is over, both sockets are the caller's again, in the blocking mode they had.
    Until then both are non-blocking, and the caller must not read the source or write the drain.
    Closing one of the two objects ends it within a second.  The system tells the failure of a
    connection once: it is told to the splice, and who reads the drain meanwhile sees an EOF in its
    place.

    source, drain:
        Connected stream sockets (or objects whose ``fileno()`` is one and turns to -1, or raises,
        when they are closed).  A socket can be its own drain: an echo.
    max_bytes:
        The most to move, ``initial`` included; what follows stays readable at the source.  0 moves
        nothing and ends at once.  None: no limit.
    idle_timeout:
        End after that many seconds in which not one byte moved, neither into the drain nor out of
        its send buffer to a slow reader.  True on every backend, other than the kernel's own on
        FreeBSD (docs/so_splice.md, F11): never early, and late by at most 0.1 s or 25 %, whichever
        is more.
    timeout:
        End that many seconds after the start, with the same tolerance.
    initial:
        What the caller has read from the source already; goes to the drain first.
    fallback:
        False: raise BackendUnavailable where the kernel can't serve this pair (it has no
        SO_SPLICE; a socket is no TCP socket, or encrypts in the kernel).  True: userspace serves
        it then, and ``Outcome.fallback`` says why.  ``FREEBSD_SPLICE_BACKEND=kernel`` is False
        for all.

    Raises OSError: EBUSY where the source is a splice's source already, or the drain one's drain;
    EBADF where one is closed; EINVAL where one is listening; EPROTONOSUPPORT where one is no
    stream socket; EMFILE.  InvalidArgument (an OSError with EINVAL and a ValueError) for a
    ``max_bytes`` that is negative or past 2**63 - 1, ValueError for a time that is none, TypeError
    for a descriptor without an object, for TLS sockets, and for what has another type.  Then
    nothing has been touched.  What goes wrong on the connections is no exception but the outcome's
    ``reason`` and ``error``.
    """

    def __init__(
        self,
        source: Source,
        drain: Source,
        *,
        max_bytes: int | None = None,
        idle_timeout: float | None = None,
        timeout: float | None = None,
        initial: bytes | bytearray | memoryview = b"",
        fallback: bool = True,
    ) -> None:
        runtime = current()
        super().__init__(runtime)
        limit, ahead = check_limit(max_bytes), check_bytes("initial", initial)
        [self._flow] = runtime.flows(1, fallback=fallback)
        self._deadlines = Deadlines(
            runtime.port,
            runtime.watcher,
            idle_timeout=idle_timeout,
            timeout=timeout,
            moved=self._flow.moved,
            undelivered=self._undelivered,
            expire=self._flow.stop,
            errand=runtime.errand,
        )
        self._started = runtime.port.now()
        runtime.add(self)
        try:
            self._acquire(source, drain)
        except BaseException:
            self._not_made()
            raise
        self._flow.start(self._source, self._drain, limit, ahead, self._ended)
        self._deadlines.start()

    @property
    def bytes(self) -> int:
        """Bytes that the drain has taken so far, ``initial`` ones included."""
        self._check_process()
        return self._flow.moved()

    def __repr__(self) -> str:
        state = self._outcome.reason.value if self._outcome is not None else "live"
        return f"<Splice {self._source.original!r} -> {self._drain.original!r}, {state}>"

    def _acquire(self, source: Source, drain: Source) -> None:
        sockets = self._runtime.sockets
        self._source = sockets.acquire(
            source, source=True, drain=False, on_closed=self._socket_closed
        )
        try:
            self._drain = sockets.acquire(
                drain, source=False, drain=True, on_closed=self._socket_closed
            )
        except BaseException:
            self._release_source()
            raise
        try:
            self._flow.prepare(self._source, self._drain)
        except BaseException:
            self._release_source()
            self._release_drain()
            raise

    def _undelivered(self) -> int:
        return self._runtime.port.unacknowledged(self._drain.endpoint) or 0

    def _stop(self) -> None:
        self._flow.stop()

    def _socket_closed(self) -> None:
        self._flow.stop(Reason.CLOSED)

    def _ended(self, end: End) -> None:
        self._deadlines.cancel()
        self._release_source()
        self._release_drain()
        self._settle(make_outcome(end, self._runtime.port.now() - self._started))

    def _release_source(self) -> None:
        self._runtime.sockets.release(
            self._source, source=True, drain=False, on_closed=self._socket_closed
        )

    def _release_drain(self) -> None:
        self._runtime.sockets.release(
            self._drain, source=False, drain=True, on_closed=self._socket_closed
        )


def make_outcome(end: End, seconds: float, undelivered: int | None = 0) -> Outcome:
    """What the user is told of a flow's end."""
    return Outcome(
        bytes=end.moved,
        unsent=end.unsent,
        reason=end.reason,
        error=end.error,
        backend=end.backend,
        mover=end.mover,
        seconds=seconds,
        fallback=end.fallback,
        undelivered=undelivered,
    )


def check_limit(
    max_bytes: int | None, name: str = "max_bytes", *, may_be_none: bool = True
) -> int | None:
    """``max_bytes`` as it is; InvalidArgument or TypeError where it is no number of bytes."""
    if max_bytes is None and may_be_none:
        return None
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int):
        kind = "an int or None" if may_be_none else "an int"
        raise TypeError(f"{name} must be {kind}, not {max_bytes!r}")
    if not 0 <= max_bytes <= _MAX_BYTES:
        raise InvalidArgument(errno.EINVAL, f"{name} must be from 0 to 2**63 - 1, not {max_bytes}")
    return max_bytes


def check_bytes(name: str, data: bytes | bytearray | memoryview) -> bytes:
    """A copy of ``data``; TypeError where it isn't bytes."""
    try:
        return memoryview(data).tobytes()
    except TypeError:
        raise TypeError(f"{name} must be bytes, not {type(data).__name__}") from None
