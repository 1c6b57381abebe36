"""The network between the two ends of each connection: it moves bytes, FINs, resets and ACKs."""

from __future__ import annotations

import errno

from .so_splice import SoSplice
from .tcp import Endpoint, Half


class Network:
    """The world's rules for what is under way."""

    so_splice: SoSplice
    time: float

    def __init__(self) -> None:
        #: When bytes went into a drain, or its peer acknowledged some.
        self.moved_at: list[float] = []

    def moves(self) -> None:
        """Note that bytes move now."""
        if not self.moved_at or self.moved_at[-1] != self.time:
            self.moved_at.append(self.time)

    def deliver(self, half: Half, count: int | None = None) -> bool:
        receiver = half.receiver
        if not half.unsent or half.reset:
            return False
        if receiver.closed or receiver.dead:
            half.unsent.clear()
            receiver.outgoing.reset = True  # the receiver has gone
            return True
        size = min(
            len(half.unsent) if count is None else count,
            receiver.receive_buffer - len(receiver.received),
        )
        if size <= 0:
            return False
        if not receiver.cannot_receive:
            receiver.received += half.unsent[:size]
        del half.unsent[:size]
        half.unacked += size
        self.so_splice.source_woken(receiver)
        return True

    def deliver_fin(self, half: Half) -> bool:
        if not half.fin or half.fin_delivered or half.unsent or half.reset:
            return False
        half.fin_delivered = True
        if not half.receiver.dead:
            half.receiver.cannot_receive = True
            self.so_splice.source_woken(half.receiver)
        return True

    def ack(self, half: Half) -> bool:
        if not half.unacked:
            return False
        half.unacked = 0
        if half.is_the_programs:
            self.moves()
        self.so_splice.drain_woken(half.sender)
        return True

    def deliver_reset(self, half: Half) -> bool:
        if not half.reset:
            return False
        half.reset = False
        half.unsent.clear()
        receiver = half.receiver
        if receiver.dead or receiver.closed:
            return True
        receiver.was_reset = True
        self._break(receiver, errno.ECONNRESET)
        return True

    def cut(self, endpoint: Endpoint) -> None:
        """Drop from now on whatever this endpoint and its peer send to each other."""
        endpoint.outgoing.is_cut = endpoint.incoming.is_cut = True

    def give_up(self, endpoint: Endpoint) -> None:
        """Have the endpoint's system find that nothing is answered, by whichever of its timers."""
        if not endpoint.dead and not endpoint.closed:
            self._break(endpoint, errno.ETIMEDOUT)

    def _break(self, endpoint: Endpoint, number: int) -> None:
        endpoint.die(number)
        self.so_splice.source_woken(endpoint)
        self.so_splice.drain_woken(endpoint)
