"""TCP endpoints: buffers, FIN, RST. Bytes move only by one of the world's rules."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .so_splice import ModelledSplice

#: The states, by TCP_INFO's numbers.
CLOSED, LISTEN, SYN_SENT, SYN_RECEIVED, ESTABLISHED = range(5)
CLOSE_WAIT, FIN_WAIT, TIME_WAIT = 5, 6, 10

#: Free bytes from which a socket counts as writable.
LOW_WATER = 2048


def fail(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Half:
    """One direction of a connection: its sender's send buffer, and FIN or RST on the way."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.unsent = bytearray()  # in the send buffer, not yet delivered
        self.unacked = 0  # delivered, but still counted against the send buffer
        self.fin = False  # a FIN follows these bytes
        self.fin_delivered = False
        self.reset = False  # an RST is on the way
        self.is_cut = False  # nothing arrives any more
        self.is_the_programs = False  # its sender is the program's end, not a peer
        self.sender: Endpoint
        self.receiver: Endpoint

    @property
    def room(self) -> int:
        return max(0, self.size - len(self.unsent) - self.unacked)


class Endpoint:
    """One end of a connection, as its kernel sees it."""

    def __init__(self, outgoing: Half, incoming: Half, receive_buffer: int) -> None:
        self.outgoing, self.incoming = outgoing, incoming
        outgoing.sender = incoming.receiver = self
        self.received = bytearray()
        self.receive_buffer = receive_buffer
        self.error = 0  # SO_ERROR
        self.cannot_receive = False  # FIN has arrived, or this end was shut down for reading
        self.cannot_send = False
        self.dead = False
        self.was_reset = False
        self.closed = False  # its last descriptor is closed
        self.state: int | None = None  # overrides the state that follows from the other fields
        self.stream = True
        self.tcp = True
        self.encrypts = False  # KTLS, sending
        self.decrypts = False  # KTLS, receiving
        self.non_blocking = False
        self.low_water = min(LOW_WATER, outgoing.size)
        self.has_notice = False  # in its error queue, such as a time stamp
        self.changes = 0  # how often its readers or writers were woken
        # SO_SPLICE
        self.splice: ModelledSplice | None = None  # the one that it is the source of
        self.drained: ModelledSplice | None = None  # the one that it is the drain of
        self.poisoned = False  # F22
        self.count = 0  # bytes moved by the last splice

    @property
    def tcp_state(self) -> int:
        if self.state is not None:
            return self.state
        if self.cannot_send:
            return TIME_WAIT if self.incoming.fin_delivered and self._is_sent() else FIN_WAIT
        return CLOSE_WAIT if self.incoming.fin_delivered else ESTABLISHED

    @property
    def connected(self) -> bool:
        return not self.dead and self.tcp_state not in (CLOSED, LISTEN, SYN_SENT, TIME_WAIT)

    @property
    def readable(self) -> bool:
        """Whether EVFILT_READ and recv see anything: never while it is spliced (F15)."""
        if self.splice is not None or self.poisoned:
            return False
        return bool(self.received or self.error or self.cannot_receive)

    @property
    def writable(self) -> bool:
        """Whether EVFILT_WRITE and POLLOUT see room: on FreeBSD never while it is a drain (F25)."""
        if self.drained is not None and self.drained.hides_drain:
            return False
        return self.dead or self.cannot_send or self.outgoing.room >= self.low_water

    def receive(self, count: int, *, peek: bool = False) -> bytes:
        if self.received and not (self.splice or self.poisoned):
            data = bytes(self.received[:count])
            if not peek:
                del self.received[:count]
            return data
        if self.received:  # F28: it would interleave; the suite's cases don't
            raise fail(errno.EAGAIN)
        if self.error:
            error = fail(self.error)
            if not peek:
                self.error = 0
            raise error
        if self.state is not None and self.state != SYN_SENT:
            raise fail(errno.ENOTCONN)
        if self.cannot_receive and self.splice is None:
            return b""
        raise fail(errno.EAGAIN)

    def send(self, data: bytes) -> int:
        if self.dead and self.error:
            number, self.error = self.error, 0
            raise fail(number)
        if self.cannot_send or self.dead:
            raise fail(errno.EPIPE)
        if self.state is not None:
            raise fail(errno.ENOTCONN)
        taken = min(len(data), self.outgoing.room)
        if not taken:
            raise fail(errno.EAGAIN)
        self.outgoing.unsent += data[:taken]
        return taken

    def die(self, number: int) -> None:
        """Break the connection: it sends nothing more, but what has arrived can still be read."""
        self.dead = self.cannot_send = self.cannot_receive = True
        self.error = number or self.error
        self.outgoing.unsent.clear()
        self.outgoing.unacked = 0
        self.outgoing.fin = False

    def _is_sent(self) -> bool:
        return self.outgoing.fin_delivered and not self.outgoing.unacked
