"""``Splice``: one direction, every byte of it, and the reason for its end."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from ._core.flow import End, Reason
from ._core.time_limits import TimeLimits
from ._errors import InvalidArgument, why
from ._operation import Operation
from ._platform.interface import SocketLike
from ._runtime import current

#: The largest number of ``off_t``, the type of the kernel's limit.
_MAX_BYTES = (1 << 63) - 1

_Bytes = bytes  # ``bytes`` is a field's name below, as it is a file's size elsewhere


@dataclass(frozen=True, init=False)
class Outcome:
    """How a splice, or one direction of a relay, ended.

    ``str(outcome)`` says it in one line, as the proxies' log does::

        10000 bytes, limit, 0.012 s, kernel/SO_SPLICE
        4096 bytes, drain error (Connection reset by peer), 1.250 s, userspace/copy; unsent: 300

    Attributes:
        bytes: how many bytes the drain's send buffer has taken, those of ``initial`` included.
        unsent: the bytes that were taken from the source, or given as ``initial``, and that the
            drain has not taken. They are in no socket's buffer any more: a program that goes on
            with the sockets must send these first.
        reason: why it ended.
        error: the connection's failure, where the reason is SOURCE_ERROR or DRAIN_ERROR; else None.
        backend: which backend served, "kernel" or "userspace".
        mover: what moved the bytes: "SO_SPLICE", "os.splice" or "copy"; in ``freebsd_splice.aio``
            also "streams" (the event loop, where no splice was needed or possible) and "none" (it
            ended before any byte moved).
        seconds: the time from the start to the end.
        fallback: why userspace served this pair although the kernel has SO_SPLICE; else None.
        undelivered: how many of ``bytes`` may not have reached the drain's peer, as its system had
            not acknowledged them when a ``Relay`` with ``close=True`` gave up waiting for that
            (its ``linger``), was cancelled, or was ended by a time limit. None: this system doesn't
            tell (Windows). For a ``Splice`` always 0: it leaves its sockets open.
    """

    bytes: int
    unsent: _Bytes
    reason: Reason
    error: OSError | None
    backend: str
    mover: str
    seconds: float
    fallback: str | None = None
    undelivered: int | None = 0

    def __init__(
        self,
        bytes: int,
        unsent: _Bytes,
        reason: Reason,
        error: OSError | None,
        backend: str,
        mover: str,
        seconds: float,
        fallback: str | None = None,
        undelivered: int | None = 0,
    ) -> None:
        # A frozen class's own costs three times that, and as much as a short transfer's write.
        made = self.__dict__
        made["bytes"] = bytes
        made["unsent"] = unsent
        made["reason"] = reason
        made["error"] = error
        made["backend"] = backend
        made["mover"] = mover
        made["seconds"] = seconds
        made["fallback"] = fallback
        made["undelivered"] = undelivered

    def __str__(self) -> str:
        """Return one line: bytes, reason and error, seconds, backend and mover, what is missing."""
        failure = "" if self.error is None else f" ({why(self.error)})"
        line = f"{self.bytes} bytes, {self.reason.value}{failure}, {self.seconds:.3f} s, "
        line += f"{self.backend}/{self.mover}"
        if self.unsent:
            line += f"; unsent: {len(self.unsent)}"
        if self.undelivered:
            line += f"; may not have arrived: {self.undelivered}"
        return line


class Splice(Operation[Outcome]):
    """Deliver every byte that arrives at ``source`` to ``drain``, in order, until the end.

    A splice starts at once and runs by itself; ``wait()`` returns its ``Outcome``. Until its end
    both sockets are non-blocking, and the caller must not read the source or write the drain. At
    the end both sockets are the caller's again, in the blocking mode that they had. A splice does
    not pass the source's EOF on to the drain, and closes nothing; ``Relay`` does.

    Closing one of the two socket objects ends the splice within a second. The system reports a
    connection's failure only once, and the splice consumes that report; anyone else reading the
    drain sees EOF instead.

    Args:
        source: the connected stream socket to read from: TCP, or a Unix socket. An object with
            ``fileno()`` will do, if that returns -1 or raises once the object is closed. A bare
            descriptor won't, as nobody could tell that it was closed.
        drain: the socket to write to, likewise. It can be the source itself: an echo.
        max_bytes: how many bytes to move at most, those of ``initial`` included. The bytes after
            them stay readable at the source. 0 moves nothing and ends at once. None: no limit.
        idle_timeout: end after this many seconds in which not one byte moved, neither into the
            drain nor out of its send buffer to a slow reader. None: no limit. It means the same
            on every platform, unlike the kernel's own on FreeBSD (F11: that ends a busy splice
            too). Never early, and late by at most 0.1 s or 25 %, whichever is more. After SIGSTOP
            and SIGCONT, what has arrived meanwhile is moved first, and counts.
        timeout: end this many seconds after the start, with the same tolerance. None: no limit.
        initial: bytes that the caller has read from the source already; they go to the drain first.
        fallback: whether userspace may serve a pair that the kernel can't: it has no SO_SPLICE, a
            socket is not a TCP socket, or the kernel does TLS for it. ``Outcome.fallback`` then
            says why userspace served. False: BackendUnavailable is raised instead.
            ``FREEBSD_SPLICE_BACKEND=kernel`` has the effect of False on all splices.

    Raises:
        OSError: EBUSY: the source is the source of a splice already, or the drain is the drain of
            one; EBADF: a socket is closed; EINVAL: one is listening; EPROTONOSUPPORT: one is not a
            stream socket; EMFILE, ENFILE, ENOBUFS, ENOMEM: descriptors or memory are short, and the
            text says for what.
        InvalidArgument: (an OSError with EINVAL and a ValueError) ``max_bytes`` is negative, or
            larger than 2**63 - 1.
        BackendUnavailable: (an OSError, ENOPROTOOPT or EPROTONOSUPPORT) the kernel was demanded
            and can't serve this pair.
        ValueError: ``timeout`` or ``idle_timeout`` is not a positive number of seconds.
        TypeError: a socket is a bare descriptor, or speaks TLS in this process. On Windows: it is
            not a ``socket.socket``.
        RuntimeError: no thread can be started; ``shutdown()`` runs at the same time; or gevent has
            replaced parts of the standard library that the package needs.

    Where it raises, no socket has been touched. A failure of one of the connections raises nothing:
    it is the outcome's ``reason`` and ``error``.

    Example::

        with Splice(source, drain, max_bytes=10_000, idle_timeout=60) as splice:
            outcome = splice.wait()
        print(outcome)  # 10000 bytes, limit, 0.012 s, kernel/SO_SPLICE
        if outcome.reason is Reason.EOF:
            drain.shutdown(socket.SHUT_WR)  # the source's peer has sent all it had
    """

    def __init__(
        self,
        source: SocketLike,
        drain: SocketLike,
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
        self._time_limits = TimeLimits(
            runtime.platform,
            runtime.timers,
            idle_timeout=idle_timeout,
            timeout=timeout,
            moved=self._flow.moved,
            undelivered=self._undelivered,
            expire=self._flow.stop,
            run_blocking=runtime.run_blocking,
        )
        self._started = runtime.platform.now()
        runtime.add(self)
        try:
            self._acquire(source, drain)
        except BaseException:
            self._not_made()
            raise
        try:
            self._start(limit, ahead)
            self._time_limits.start()
        except BaseException:  # raised by a signal handler, as by Ctrl-C
            self._flow.stop()
            if not self._flow.is_started:  # it ends at once, and the sockets are given back
                self._start(limit, ahead)
            raise

    @property
    def bytes(self) -> int:
        """How many bytes the drain has taken so far, those of ``initial`` included."""
        self._check_process()
        return self._flow.moved()

    def __repr__(self) -> str:
        state = self._outcome.reason.value if self._outcome is not None else "live"
        return f"<Splice {self._source.original!r} -> {self._drain.original!r}, {state}>"

    def _acquire(self, source: SocketLike, drain: SocketLike) -> None:
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

    def _start(self, limit: int | None, initial: _Bytes) -> None:
        self._flow.start(self._source, self._drain, limit, initial, self._ended)

    def _undelivered(self) -> int:
        return self._runtime.platform.unacknowledged(self._drain.endpoint) or 0

    def _stop(self) -> None:
        self._flow.stop()

    def _socket_closed(self) -> None:
        self._flow.stop(Reason.CLOSED)

    def _ended(self, end: End) -> None:
        self._time_limits.cancel()
        self._release_source()
        self._release_drain()
        self._settle(make_outcome(end, self._runtime.platform.now() - self._started))

    def _release_source(self) -> None:
        self._runtime.sockets.release(
            self._source, source=True, drain=False, on_closed=self._socket_closed
        )

    def _release_drain(self) -> None:
        self._runtime.sockets.release(
            self._drain, source=False, drain=True, on_closed=self._socket_closed
        )


def make_outcome(end: End, seconds: float, undelivered: int | None = 0) -> Outcome:
    """Return the outcome of a flow with this end."""
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
    """Return ``max_bytes`` unchanged.

    Raises:
        InvalidArgument: negative, or larger than the kernel's limit can be.
        TypeError: not an int.
    """
    if max_bytes is None and may_be_none:
        return None
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int):
        kind = "an int or None" if may_be_none else "an int"
        raise TypeError(f"{name} must be {kind}, not {max_bytes!r}")
    if not 0 <= max_bytes <= _MAX_BYTES:
        raise InvalidArgument(errno.EINVAL, f"{name} must be from 0 to 2**63 - 1, not {max_bytes}")
    return max_bytes


def check_bytes(name: str, data: bytes | bytearray | memoryview) -> bytes:
    """Return a copy of ``data``.

    Raises:
        TypeError: it isn't bytes.
    """
    if type(data) is bytes:
        return data
    try:
        return memoryview(data).tobytes()
    except TypeError:
        raise TypeError(f"{name} must be bytes, not {type(data).__name__}") from None
