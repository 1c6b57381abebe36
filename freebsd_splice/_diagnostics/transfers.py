"""Hostile transfers: short, random, over loopback TCP, each with one thing that goes wrong.

Each follows from a seed alone, so that a transfer that failed can be repeated.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import time
from collections.abc import Callable

from .._core.flow import Reason
from .._relay import Relay
from .._splice import Outcome, Splice
from .facts import SLOWNESS

#: Seconds after which a transfer that isn't over counts as hanging.
PATIENCE = 20.0 * SLOWNESS
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class TransferError(Exception):
    """A promise was not kept."""


class Plan:
    """The size, the pace and the fault of one transfer; all of it follows from the seed."""

    def __init__(self, seed: int, hostilities: list[str]) -> None:
        chance = random.Random(seed)
        self.seed = seed
        self.hostility = chance.choice(hostilities)
        self.data = chance.randbytes(chance.choice([1, 100, 5_000, 60_000, 250_000, 600_000]))
        self.moment = chance.randrange(len(self.data) + 1)  # when it happens, in bytes
        self.waiting = chance.randrange(len(self.data) + 1) if chance.random() < 0.3 else 0
        self.small_buffers = chance.random() < 0.5
        self.slow = chance.random() < 0.5
        self.chunks = chance

    def __str__(self) -> str:
        speed = "slow" if self.slow else "quick"
        return f"transfer {self.seed} ({self.hostility}, {len(self.data)} bytes, {speed} reader)"


def hostilities(kernel: bool) -> list[str]:
    """Return the names of what can go wrong.

    On the kernel, somebody else can end the splice as well.
    """
    return list(_PLAYS) if kernel else [name for name in _PLAYS if name != "unspliced"]


def play(plan: Plan) -> Outcome:
    """Make the transfer and return its outcome.

    Raises:
        TransferError: a promise was not kept; the text says which.
    """
    with contextlib.ExitStack() as stack:
        source, sender = _pair(stack, plan.small_buffers)
        drain, receiver = _pair(stack, plan.small_buffers)
        return _PLAYS[plan.hostility](_Transfer(plan, source, sender, drain, receiver))


class _Transfer:
    def __init__(
        self,
        plan: Plan,
        source: socket.socket,
        sender: socket.socket,
        drain: socket.socket,
        receiver: socket.socket,
    ) -> None:
        self.plan = plan
        self.source, self.sender = source, sender
        self.drain, self.receiver = drain, receiver
        self.sent = 0
        self.received = bytearray()
        self.receiver_open = True
        self._deadline = time.monotonic() + PATIENCE
        if plan.waiting:
            self.send(plan.waiting)

    def splice(self, limit: int | None = None, initial: bytes = b"") -> Splice:
        return Splice(self.source, self.drain, max_bytes=limit, initial=initial)

    def go_on(self, until: Callable[[], object], most: int | None = None) -> None:
        """Send and receive, in random pieces, until the condition holds."""
        most = len(self.plan.data) if most is None else most
        while not until():
            self.check_time()
            write = [self.sender] if self.sent < most else []
            read = [self.receiver] if self.receiver_open else []
            readable, writable, _ = select.select(read, write, [], 0.002)
            if writable:
                self.send(min(most, self.sent + self.plan.chunks.randrange(1, 70_000)))
            if readable and not (self.plan.slow and self.plan.chunks.random() < 0.7):
                self.receive()

    def send(self, up_to: int) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            self.sent += self.sender.send(self.plan.data[self.sent : up_to])

    def receive(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            self.received += self.receiver.recv(self.plan.chunks.randrange(1, 100_000))

    def finish(self, splice: Splice) -> Outcome:
        self.go_on(lambda: splice.done, self.sent)
        return splice.wait()

    def receive_all(self, count: int) -> None:
        """Receive everything that the drain has taken."""
        self.go_on(lambda: len(self.received) >= count, self.sent)

    def left(self, count: int) -> bytes:
        """Read the ``count`` bytes that are still at the source."""
        left = bytearray()
        while len(left) < count:
            self.check_time()
            if select.select([self.source], [], [], 0.05)[0]:
                left += self.source.recv(count - len(left))
        return bytes(left)

    def check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise TransferError(
                f"no end after {self.sent} bytes sent and {len(self.received)} received"
            )

    def whole(self, outcome: Outcome, reason: Reason, count: int) -> Outcome:
        """Check the reason and the count, and that all those bytes have arrived."""
        if (outcome.reason, outcome.bytes) != (reason, count):
            raise TransferError(
                f"ended by {outcome.reason.value} after {outcome.bytes} bytes ({outcome.error}),"
                f" not by {reason.value} after {count}"
            )
        self.receive_all(count)
        self.prefix()
        if len(self.received) != count:
            raise TransferError(f"{len(self.received)} bytes arrived in place of {count}")
        return outcome

    def kept(self, outcome: Outcome) -> Outcome:
        """Check that what the drain has not taken is still there: nothing lost, nothing doubled."""
        self.receive_all(outcome.bytes)
        remaining = self.sent - outcome.bytes - len(outcome.unsent)
        if remaining < 0:
            raise TransferError(f"{outcome.bytes} bytes counted, but {self.sent} sent")
        if self.received + outcome.unsent + self.left(remaining) != self.plan.data[: self.sent]:
            raise TransferError("bytes received, unsent and left are not the bytes sent")
        return outcome

    def prefix(self) -> None:
        if not self.plan.data.startswith(self.received):
            raise TransferError("the bytes that arrived are not those that were sent")

    def reset(self, far_end: socket.socket) -> None:
        far_end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        far_end.close()


def _eof(transfer: _Transfer) -> Outcome:
    """A FIN right after the last byte, before most of the bytes have been moved."""
    splice = transfer.splice()
    size = len(transfer.plan.data)
    transfer.go_on(lambda: transfer.sent == size)
    transfer.sender.shutdown(socket.SHUT_WR)
    return transfer.whole(transfer.finish(splice), Reason.EOF, size)


def _limit(transfer: _Transfer) -> Outcome:
    limit, size = transfer.plan.moment, len(transfer.plan.data)
    splice = transfer.splice(limit)
    transfer.go_on(lambda: transfer.sent == size or splice.done)
    outcome = transfer.whole(transfer.finish(splice), Reason.LIMIT, limit)
    return transfer.kept(outcome)


def _sender_resets(transfer: _Transfer) -> Outcome:
    splice = transfer.splice()
    transfer.go_on(lambda: transfer.sent >= transfer.plan.moment, transfer.plan.moment)
    transfer.reset(transfer.sender)
    outcome = transfer.finish(splice)
    if outcome.reason is not Reason.SOURCE_ERROR:
        raise TransferError(f"a reset at the source was called {outcome.reason.value}")
    transfer.receive_all(outcome.bytes)
    transfer.prefix()
    return outcome


def _receiver_resets(transfer: _Transfer) -> Outcome:
    splice = transfer.splice()
    moment = transfer.plan.moment // 2
    transfer.go_on(lambda: len(transfer.received) >= moment)
    transfer.receiver_open = False
    transfer.reset(transfer.receiver)
    transfer.go_on(lambda: splice.done)
    outcome = splice.wait()
    if outcome.reason is not Reason.DRAIN_ERROR:
        raise TransferError(f"a reset at the drain was called {outcome.reason.value}")
    transfer.prefix()
    if outcome.bytes < len(transfer.received):
        raise TransferError(f"{len(transfer.received)} arrived, only {outcome.bytes} counted")
    return outcome


def _cancelled(transfer: _Transfer) -> Outcome:
    splice = transfer.splice()
    transfer.go_on(lambda: splice.bytes >= transfer.plan.moment // 2)
    outcome = splice.cancel()
    if outcome.reason is not Reason.CANCELLED:
        raise TransferError(f"a cancel was called {outcome.reason.value}")
    return transfer.kept(outcome)


def _initial(transfer: _Transfer) -> Outcome:
    """The first bytes were read before the splice, as a proxy reads a request."""
    size = len(transfer.plan.data)
    ahead = transfer.plan.data[: transfer.plan.moment]
    if transfer.sent > len(ahead):
        ahead = transfer.plan.data[: transfer.sent]
    if transfer.sent:
        transfer.left(transfer.sent)
    transfer.sent = len(ahead)
    splice = transfer.splice(initial=ahead)
    transfer.go_on(lambda: transfer.sent == size)
    transfer.sender.shutdown(socket.SHUT_WR)
    return transfer.whole(transfer.finish(splice), Reason.EOF, size)


def _unspliced(transfer: _Transfer) -> Outcome:
    """Somebody else ends the kernel's splice."""
    from .._platform.raw_splice import end_splice

    splice = transfer.splice()
    transfer.go_on(lambda: splice.bytes >= transfer.plan.moment // 2)
    with contextlib.suppress(OSError):  # the moment may be between two of the kernel's splices
        end_splice(transfer.source.fileno())
        outcome = transfer.finish(splice)
        if outcome.reason is not Reason.UNSPLICED:
            raise TransferError(f"an unsplice was called {outcome.reason.value}")
        return transfer.kept(outcome)
    return transfer.kept(splice.cancel())


def _half_closed(transfer: _Transfer) -> Outcome:
    """A relay with a request, a FIN, and only then the answer, which is the request again."""
    size = len(transfer.plan.data)
    relay = Relay(transfer.source, transfer.drain)
    transfer.go_on(lambda: transfer.sent == size)
    transfer.sender.shutdown(socket.SHUT_WR)
    transfer.go_on(lambda: len(transfer.received) == size)
    transfer.receiver.settimeout(PATIENCE)
    if transfer.receiver.recv(1) != b"":
        raise TransferError("more arrived than was sent")
    answer, sent = bytearray(), 0
    transfer.receiver.settimeout(0)
    while len(answer) < size:
        transfer.check_time()
        writers = [transfer.receiver] if sent < size else []
        readable, writable, _ = select.select([transfer.sender], writers, [], 0.05)
        if writable:
            sent += transfer.receiver.send(transfer.plan.data[sent : sent + 70_000])
            if sent == size:
                transfer.receiver.shutdown(socket.SHUT_WR)
        if readable:
            answer += transfer.sender.recv(100_000)
    transfer.receiver.close()
    outcome = relay.wait(PATIENCE)
    transfer.receiver_open = False
    if outcome.reason is not Reason.EOF or answer != transfer.plan.data:
        raise TransferError(f"the answer of {size} bytes ended by {outcome.reason.value}")
    return transfer.whole(outcome.left_to_right, Reason.EOF, size)


_PLAYS: dict[str, Callable[[_Transfer], Outcome]] = {
    "FIN after the last byte": _eof,
    "limit": _limit,
    "reset by the sender": _sender_resets,
    "reset by the receiver": _receiver_resets,
    "cancel": _cancelled,
    "bytes read before": _initial,
    "half-close": _half_closed,
    "unspliced": _unspliced,
}


def _pair(stack: contextlib.ExitStack, small: bool) -> tuple[socket.socket, socket.socket]:
    """Return our end and the far end of a new connection, both non-blocking."""
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
        if small:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        far = stack.enter_context(socket.create_connection(listener.getsockname(), PATIENCE))
        listener.settimeout(PATIENCE)
        near = stack.enter_context(listener.accept()[0])
    for made in (near, far):
        if small:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        made.setblocking(False)
    return near, far
