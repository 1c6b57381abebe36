"""One direction, moved in userspace by a worker of the engine."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable
from typing import Protocol

from .._core.flow import End, Reason, SoFar, closed_or
from .._core.shared_sockets import SharedSocket
from .._platform.interface import Endpoint, Platform
from .movers import CopyMover, Mover, MoverRefusedError

logger = logging.getLogger("freebsd_splice")

#: How often a flow may go back to its source in one turn, and after how many bytes it may not, for
#: the other flows to get their turns.
MOVES_A_TURN = 16
BYTES_A_TURN = 1 << 22
#: A flow that takes at least this many bytes at once is served by a worker with a thread, and by
#: the mover for busy flows.
MUCH_BYTES = 1 << 15
#: From this many messages on, a connection does not count as short any more.
MANY_MESSAGES = 16
#: No bytes held.
_EMPTY = memoryview(b"")
#: The most bytes to ask of the source at once where there is no limit.
_NO_LIMIT = 1 << 30


class FlowWorker(Protocol):
    """The interface through which a flow uses the worker that it belongs to."""

    @property
    def platform(self) -> Platform: ...

    @property
    def is_local(self) -> bool:
        """Whether flows are started here on the same thread that gives them their turns."""
        ...

    @property
    def message_buffer(self) -> memoryview:
        """A buffer of MUCH_BYTES that all flows of this worker use, each during its own turn."""
        ...

    def mover(self, *, copy: bool = False, busy: bool = False) -> Mover:
        """Return a mover for one flow.

        Args:
            copy: return the mover that can serve any socket.
            busy: the flow has shown that it has much to move.
        """
        ...

    def expect(self, flow: UserspaceFlow, *, read: bool, write: bool) -> None:
        """Give ``flow`` a turn once its source can be read, or once its drain can be written.

        Call its ``drain_failed`` when the drain fails, even while it has nothing to write.

        Raises:
            OSError: the poller has no room.
        """
        ...

    def quieten(self, endpoint: Endpoint) -> None:
        """Have ``endpoint`` reported less often, because its last report led to nothing."""
        ...

    def release(self, flow: UserspaceFlow) -> None:
        """Stop watching the sockets of ``flow`` on its behalf, so that they can be closed."""
        ...


class UserspaceFlow:
    """A flow (see ``_core.flow.Flow``) that a worker moves."""

    def __init__(self, worker: FlowWorker, home: FlowWorker) -> None:
        self.queued = False  # set by the worker: the flow waits for its turn
        self.source: Endpoint
        self.drain: Endpoint
        self._source_socket: SharedSocket
        self._drain_socket: SharedSocket
        self._source_lock: threading.Lock
        self._drain_lock: threading.Lock
        self._worker = worker
        self._home = home  # the worker it moves to once it has much to move
        self._has_much = self._is_settled = False
        self._has_all = False  # the last fill took all that the source had
        self._messages = 0
        #: The flow ends with LIMIT, although no limit is reached, once it has shown that it has
        #: much to move or lasts long. Its creator then continues in another way.
        self.ends_when_busy = False
        #: Set by the worker: the poller reports only changes of the source.
        self.reads_until_empty = False
        self._platform = worker.platform
        self._mover = worker.mover()
        self._lock = threading.Lock()  # keeps a turn apart from a stop by another thread
        self._waiting = (False, False)
        #: The flow waits for a message, holds nothing, has no limit and copies: see
        #: ``_pass_message``.
        self.takes_messages = False
        self._limit: int | None = None
        self._on_end: Callable[[End], None]
        self._moved = 0
        self._ahead = memoryview(b"")  # sent before anything that the mover takes
        self._surplus = b""  # the part of ``initial`` past the limit
        self._started = False
        self._stopped_early: Reason | None = None
        self._end: End | None = None

    def prepare(self, source: SharedSocket, drain: SharedSocket) -> None:
        """Do nothing: userspace serves any pair."""

    def look_soon(self) -> None:
        """Do nothing: the poller reports every end."""

    def goes_on_from(self, so_far: SoFar) -> None:
        self._moved, self._messages = so_far.moved, so_far.messages
        self._has_much = so_far.has_much

    def start(
        self,
        source: SharedSocket,
        drain: SharedSocket,
        limit: int | None,
        initial: bytes,
        on_end: Callable[[End], None],
    ) -> None:
        self.source, self.drain = source.endpoint, drain.endpoint
        self._source_socket, self._drain_socket = source, drain
        self._source_lock, self._drain_lock = source.lock, drain.lock
        self._limit = limit
        self._on_end = on_end
        allowed = len(initial) if limit is None else min(limit, len(initial))
        self._ahead, self._surplus = memoryview(initial)[:allowed], initial[allowed:]
        with self._lock:
            self._started = True
            end: End | None
            if self._stopped_early is not None:
                end = self._finish(self._stopped_early)
            elif limit == 0:
                end = self._finish(Reason.LIMIT)
            elif not self._worker.is_local and not self._platform.is_connected(self.drain):
                # Some systems (kqueue) report nothing at all about a socket that is not connected.
                error = OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
                end = self._finish(Reason.DRAIN_ERROR, self._drain_failure() or error)
            else:
                end = self._begin()
        if end is not None:
            self._tell(end)

    def _begin(self) -> End | None:
        if self._worker.is_local:
            try:
                end = self._begin_here()
            except Exception as error:
                end = self._failed(error)
            if end is not None or self._waiting != (False, False):
                return end
        # Wait for both, so that the flow gets a turn at once. That turn finds what is there already
        # (bytes, EOF, or a socket that can't be read at all), and not on the caller's thread.
        return self._wait(read=True, write=True)

    def _begin_here(self) -> End | None:
        """Give the flow its first turn now, because most clients have already sent something."""
        if self._ahead or not self._copies_all():
            return self._advance(self._moved)
        if not self._pass_message() and self._has_much:
            return self._advance(self._moved)
        if self._end is not None or self._ahead:
            return self._end
        return self._wait(read=True, write=False)

    def _tell(self, end: End) -> None:
        """Call ``on_end`` and drop the reference to it, which would be part of a cycle."""
        on_end, self._on_end = self._on_end, _nothing
        on_end(end)

    @property
    def is_started(self) -> bool:
        return self._started

    def moved(self) -> int:
        return self._moved

    def served_by(self) -> tuple[str, str]:
        return "userspace", self._mover.name

    def stop(self, reason: Reason = Reason.CANCELLED) -> End:
        with self._lock:
            if self._end is not None:
                return self._end
            if not self._started:
                # The other flow of a pair has ended, or a socket was closed, in the meantime.
                self._stopped_early = reason
                return End(reason, 0, None, b"", None, "userspace", self._mover.name)
            end = self._finish(reason)
        self._tell(end)
        return end

    def turn(self) -> bool:
        """Move what can be moved now, within bounds; return whether there was more."""
        interruption = None
        with self._lock:
            if self._end is not None:
                return False
            before = self._moved
            try:
                if not (self.takes_messages and self._pass_message()):
                    end = self._advance(before)
                elif self._end is None:
                    return False
                else:
                    end = self._end
            except Exception as error:
                end = self._failed(error)
            except BaseException as error:
                # A signal handler raised this on an event loop's thread, possibly between any two
                # steps: the bytes held can't be trusted from now on.
                interruption, end = error, self._failed(error)
            if end is None:
                return self._waiting == (False, False)
        self._tell(end)
        if interruption is not None:
            raise interruption
        return False

    def drain_failed(self) -> None:
        """End the flow: the poller has reported that the drain can take nothing any more."""
        with self._lock:
            if self._end is not None:
                return
            end = self._finish(Reason.DRAIN_ERROR, self._drain_failure() or _broken_pipe())
        self._tell(end)

    def drain_has_failed(self) -> bool:
        with self._lock:
            return self._end is None and self._drain_failure() is not None

    def source_has_failed(self) -> bool:
        with self._lock, self._source_lock:
            return self._end is None and self._source_socket.failure() is not None

    def _pass_message(self) -> bool:
        """Move a message with one recv and one send, where ``_advance`` would take many steps.

        Only for a flow that holds nothing, has no limit and copies (``takes_messages``).

        Returns:
            False if ``_advance`` must do the remainder of the turn.
        """
        if self.reads_until_empty:
            return False
        buffer = self._worker.message_buffer
        source, drain = self._source_socket.connection, self._drain_socket.connection
        with source.lock:
            try:
                taken = self._platform.receive_into(self.source, buffer)
                failure = None if taken else source.failure()
            except BlockingIOError:
                return False
            except OSError as error:
                source.failed(error)
                taken, failure = 0, error
        if not taken:
            self._finish_source(failure)
            return True
        # Hold all of it until it is known how much was sent: a signal handler may raise in between.
        self._ahead = buffer[:taken]
        sent = 0
        with drain.lock:
            try:
                sent = self._platform.send(self.drain, buffer[:taken])
            except BlockingIOError:
                pass
            except OSError as error:
                failure = self._why_drain_failed(error)
        self._moved += sent
        # Copy what was not sent: other flows use the buffer next.
        self._ahead = memoryview(bytes(buffer[sent:taken])) if sent < taken else _EMPTY
        if failure is not None:
            self._finish(Reason.DRAIN_ERROR, failure)
            return True
        self._has_much = taken >= MUCH_BYTES
        if self._ahead:  # the drain is full
            self._wait(read=False, write=True)
            return True
        if self._has_much:
            return False
        self._count_message()
        return True

    def _count_message(self) -> End | None:
        self._messages += 1
        if self.ends_when_busy and self._messages >= MANY_MESSAGES:
            return self._finish(Reason.LIMIT)
        return None

    def _advance(self, before: int) -> End | None:
        """Move what can be moved in this turn; return the end, if the flow has ended.

        Args:
            before: how many bytes had been moved when this turn began.
        """
        told = self._waiting == (True, False)
        try:
            for _ in range(MOVES_A_TURN):
                try:
                    end = self._push()
                    if end is None and self._has_much and not self._is_settled:
                        if self.ends_when_busy:
                            return self._finish(Reason.LIMIT)
                        self._settle()
                    if end is None and self._moved - before >= BYTES_A_TURN:
                        break  # while nothing is held, which a copy would have to keep
                    end = end or self._pull(told=told and self._moved == before)
                    if end is None and self._has_all and not self.reads_until_empty:
                        end = self._push() or self._count_message()
                        if end is None:
                            # Asking again would waste a system call: the poller reports more.
                            raise _NotNow(read=True)
                except MoverRefusedError:
                    self._ahead = memoryview(self._mover.take_back())
                    self._mover = self._worker.mover(copy=True)
                    continue
                if end is not None:
                    return end
        except _GoneHome as gone:
            return gone.end
        except _NotNow as wanted:
            self._mover.release_buffers()
            if self._waiting == (wanted.read, not wanted.read) and self._moved == before:
                # The poller reported it ready, yet it isn't: to select(2), an error queue looks
                # like that.
                self._worker.quieten(self.source if wanted.read else self.drain)
            return self._wait(read=wanted.read, write=not wanted.read)
        # There is more to move, but it is the other flows' turn.
        self._mover.release_buffers()
        self._waiting = (False, False)
        return None

    def _settle(self) -> None:
        """Serve the flow as a busy one from now on: it has shown that it has much to move.

        The drain must have taken all that was taken from the source.

        Raises:
            _GoneHome: the flow now belongs to another worker.
        """
        self._is_settled = True
        self.takes_messages = False
        self._mover.release_buffers()
        if self._worker is self._home:
            self._mover = self._worker.mover(busy=True)
            return
        self._worker.release(self)
        self._worker, self._waiting = self._home, (False, False)
        self._mover = self._worker.mover(busy=True)
        # From here on the other worker's thread may wait for this flow's lock.
        raise _GoneHome(self._wait(read=True, write=True))

    def _push(self) -> End | None:
        """Push all bytes that have been taken from the source into the drain."""
        if not (self._mover.held or self._ahead):
            return None
        try:
            with self._drain_lock:
                try:
                    # What takes a part is full, and asking again would waste a system call.
                    if self._ahead:
                        taken = self._platform.send(self.drain, self._ahead)
                        self._ahead = self._ahead[taken:]
                        self._moved += taken
                    if self._mover.held and not self._ahead:
                        self._moved += self._mover.pour(self.drain)
                except BlockingIOError:
                    raise _NotNow(read=False) from None
                except OSError as error:
                    raise self._why_drain_failed(error) from None
        except OSError as error:
            return self._finish(Reason.DRAIN_ERROR, error)
        if self._ahead or self._mover.held:
            raise _NotNow(read=False)
        return None

    def _why_drain_failed(self, error: OSError) -> OSError:
        """Note the error that a send raised; return its cause. Hold the drain's lock."""
        failure = None
        if isinstance(error, BrokenPipeError):
            # The BSDs raise this for a connection that was reset; SO_ERROR has the cause there.
            failure = self._drain_socket.failure()
        self._drain_socket.failed(error)
        return failure or error

    def _pull(self, *, told: bool) -> End | None:
        """Take bytes from the source; called only while nothing is held."""
        room = _NO_LIMIT if self._limit is None else self._limit - self._moved
        if room == 0:
            return self._finish(Reason.LIMIT)
        with self._source_lock:
            try:
                taken = self._mover.fill(self.source, room, told=told)
                if taken:
                    self._has_much = self._has_much or taken >= MUCH_BYTES
                    self._has_all = self._mover.drained
                    return None
                failure = self._source_socket.failure()
            except BlockingIOError:
                raise _NotNow(read=True) from None
            except OSError as error:
                self._source_socket.failed(error)
                failure = error
        return self._finish_source(failure)

    def _finish_source(self, failure: OSError | None) -> End:
        """End the flow, because the source has no more bytes.

        Args:
            failure: what ended the source's connection; None after a FIN.
        """
        if failure is None or isinstance(failure, BrokenPipeError):
            # EPIPE belongs to the sending side, or to a reset that came after the FIN.
            return self._finish(Reason.EOF)
        return self._finish(Reason.SOURCE_ERROR, failure)

    def _wait(self, *, read: bool, write: bool) -> End | None:
        if (read, write) != self._waiting:
            try:
                self._worker.expect(self, read=read, write=write)
            except OSError as error:  # the poller has no room
                return self._finish(Reason.SOURCE_ERROR, error)
            self._waiting = (read, write)
            self.takes_messages = read and not write and self._copies_all()
        return None

    def _copies_all(self) -> bool:
        """Return whether the flow copies, has no limit, and has had little to move so far."""
        return not self._has_much and self._limit is None and isinstance(self._mover, CopyMover)

    def _failed(self, error: BaseException) -> End:
        """End the flow after an unexpected error: a defect must not leave it unended."""
        logger.error("moving bytes failed unexpectedly", exc_info=error)
        failure = OSError(errno.EIO, f"moving bytes failed unexpectedly: {error!r}")
        return self._finish(Reason.SOURCE_ERROR, failure)

    def _finish(self, reason: Reason, error: OSError | None = None) -> End:
        """Let go of both sockets; store and return the end.

        Where several reasons hold, the one that stands first in ``Reason`` is reported.
        """
        self.takes_messages = False
        self._worker.release(self)
        if reason is not Reason.DRAIN_ERROR:
            # Bytes that a dead drain has taken are not a success: after a reset by the drain's peer
            # they can be lost (F16).
            failure = self._drain_failure()
            if failure is not None:
                reason, error = Reason.DRAIN_ERROR, failure
            else:
                reason = closed_or(reason, self._platform, self._source_socket, self._drain_socket)
        self._end = End(
            reason=reason,
            moved=self._moved,
            limit=self._limit,
            unsent=bytes(self._ahead) + self._mover.take_back() + self._surplus,
            error=error,
            backend="userspace",
            mover=self._mover.name,
        )
        return self._end

    def _drain_failure(self) -> OSError | None:
        with self._drain_lock:
            return self._drain_socket.failure()


class _GoneHome(Exception):
    """Not an error: another worker continues the flow, or ``end`` is set because it can't."""

    def __init__(self, end: End | None) -> None:
        self.end = end


class _NotNow(Exception):
    """Not an error: the source has no data now (``read``), or the drain has no room."""

    def __init__(self, *, read: bool) -> None:
        self.read = read


def _nothing(end: End) -> None: ...


def _broken_pipe() -> OSError:
    return BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
