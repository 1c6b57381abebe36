"""The two directions of a relay that an event loop's thread moves, message by message."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from .._backend import COPY
from .._core.flow import End, Reason, SoFar
from .._platform.interface import Readiness
from .._splice import Outcome, make_outcome
from .._userspace.flow import MUCH_BYTES

if TYPE_CHECKING:
    from ._loop_relay import LoopRelay

#: The backend and the mover.
SERVED_BY = "userspace", COPY

_READ, _NONE, _FAILED = Readiness.READ, Readiness.NONE, int(Readiness.ERROR)


class Way:
    """One direction of a ``LoopRelay``."""

    __slots__ = (
        *("_held", "back", "drain", "end", "has_much", "messages", "moved", "of", "seconds"),
        "source",
    )

    def __init__(self, of: LoopRelay, source: socket.socket, drain: socket.socket) -> None:
        self.of = of
        self.source = source
        self.drain = drain
        self.back: Way
        self.moved = self.messages = 0
        self.has_much = False
        self.end: End | None = None
        self.seconds = 0.0
        self._held: memoryview | None = None  # taken, and not known to be sent

    def ready(self, ready: Readiness) -> None:
        """Move a message, after the poller has reported something of the source.

        The source is the other direction's drain: what the poller says of that matters as long as
        the other direction has not ended.
        """
        of = self.of
        try:
            if self.end is not None or (ready is not _READ and self.back.end is None):
                of.hand_over()
            else:
                self._move(ready)
        except Exception as error:
            of.fail(error)
        except BaseException as error:  # raised by a signal handler, between any two steps
            of.fail(error)
            raise

    def _move(self, ready: Readiness) -> None:
        relays = self.of.relays
        buffer = relays.buffer
        try:
            taken = relays.platform.receive_into(self.source, buffer)
        except BlockingIOError:
            if int(ready) & _FAILED:  # of a notice in the error queue, for instance
                self.of.hand_over()
            return
        except OSError as error:
            self._hand_over(of_source=error)
            return
        if not taken:
            self._source_ended()
            return
        self._held = buffer[:taken]
        sent, failure = 0, None
        try:
            sent = relays.platform.send(self.drain, self._held)
        except (BlockingIOError, BrokenPipeError):
            pass  # EPIPE is raised again, for whom asks for its cause
        except OSError as error:
            failure = error
        self.moved += sent
        self.has_much = taken >= MUCH_BYTES
        if sent < taken:
            rest, self._held = bytes(buffer[sent:taken]), None
            self._hand_over(of_drain=failure, unsent=rest)
            return
        self._held = None
        self.messages += 1
        if self.has_much or self.messages == relays.most_messages:
            self._hand_over()

    def _hand_over(
        self,
        *,
        of_source: OSError | None = None,
        of_drain: OSError | None = None,
        unsent: bytes = b"",
    ) -> None:
        """Have the relay become a ``GivenRelay``, which is to know what was found here."""
        if self is self.of.up:
            self.of.hand_over((of_source, of_drain), (unsent, b""))
        else:
            self.of.hand_over((of_drain, of_source), (b"", unsent))

    def _source_ended(self) -> None:
        """Pass the source's EOF on."""
        of = self.of
        platform = of.relays.platform
        source = platform.take_error(self.source)
        # Bytes that a dead drain has taken are not a success: after a reset by the drain's peer
        # they can be lost (F16).
        drain = platform.take_error(self.drain)
        if source is not None or drain is not None:
            self._hand_over(of_source=source, of_drain=drain)
            return
        try:
            platform.shutdown_write(self.drain)
        except OSError:
            of.hand_over()  # which will meet it as well
            return
        self.finish(Reason.EOF)
        if self.back.end is not None:
            of.finish()
        else:
            of.relays.worker.change(self.source, _NONE)

    def finish(self, reason: Reason, error: OSError | None = None, unsent: bytes = b"") -> None:
        relays = self.of.relays
        self.seconds = relays.platform.now() - self.of.started
        self.end = End(reason, self.moved, None, unsent, error, *SERVED_BY, relays.fallback)

    def so_far(self) -> SoFar:
        return SoFar(self.moved, self.messages, self.has_much)

    def ended(self) -> tuple[End, float] | None:
        return None if self.end is None else (self.end, self.seconds)

    def held(self) -> bytes:
        return b"" if self._held is None else bytes(self._held)

    def outcome(self) -> Outcome:
        assert self.end is not None
        return make_outcome(self.end, self.seconds)
