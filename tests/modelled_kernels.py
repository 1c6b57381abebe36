"""Models of the two kernels, as far as the kernel path of the thin layer sees them."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field

from freebsd_splice._platform.kernel_interface import (
    Capabilities,
    EndEvents,
    Glances,
    capabilities_of,
)

LISTEN, SYN_SENT, SYN_RECEIVED, ESTABLISHED, CLOSE_WAIT, FIN_WAIT_1 = 1, 2, 3, 4, 5, 6
FIRST, SOURCE, DRAIN, OTHER = 10, 20, 30, 40  # descriptors


@dataclass
class ModelledSocket:
    """One TCP socket of the modelled kernel."""

    state: int = ESTABLISHED
    reset: bool = False
    full: bool = False
    tls: bool = False
    tcp: bool = True
    drain: int | None = None  # where it is spliced to
    is_drain: bool = False
    poisoned: bool = False
    count: int = 0


def fail(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@dataclass
class ModelledFreeBSDCalls:
    """FreeBSD's kernel: F20 to F23, with the poison of 14.3 to 15.0."""

    release: tuple[int, int] = (15, 0)
    system: str = "FreeBSD"
    sockets: dict[int, ModelledSocket] = field(default_factory=dict)
    set: list[tuple[int, int, int, float]] = field(default_factory=list)
    fails_first: list[int] = field(default_factory=list)  # errnos of the next set_splice calls
    spares_source: bool = False  # those have nothing to do with the drain, and poison nothing

    def __post_init__(self) -> None:
        for descriptor in (FIRST, SOURCE, DRAIN, OTHER):
            self.sockets[descriptor] = ModelledSocket()

    @property
    def capabilities(self) -> Capabilities:
        return capabilities_of(self.system, self.release)

    def _socket(self, descriptor: int) -> ModelledSocket:
        if descriptor not in self.sockets:
            raise fail(errno.EBADF)
        return self.sockets[descriptor]

    def set_splice(self, source: int, drain: int, max_bytes: int, idle: float) -> None:
        self.set.append((source, drain, max_bytes, idle))
        from_, to = self._socket(source), self._socket(drain)
        if not (from_.tcp and to.tcp):
            raise fail(errno.EPROTONOSUPPORT)
        if from_.drain is not None or from_.poisoned:
            from_.count = 0  # F23
            raise fail(errno.EBUSY)
        number = self.fails_first.pop(0) if self.fails_first else 0
        if to.is_drain:
            number = errno.EBUSY
        if number:
            from_.poisoned = self.release < (15, 1) and not self.spares_source  # F22
            raise fail(number)
        from_.drain, to.is_drain, from_.count = drain, True, 0

    def end_splice(self, source: int) -> None:
        ended = self._socket(source)
        if ended.drain is None:
            raise fail(errno.ENOTCONN)
        self.end_by_itself(source)

    def end_by_itself(self, source: int) -> None:
        """The limit is met, or EOF."""
        drain = self.sockets[source].drain
        assert drain is not None
        self.sockets[drain].is_drain = False
        self.sockets[source].drain = None

    def spliced_count(self, source: int) -> int:
        return self._socket(source).count

    def tcp_state(self, descriptor: int) -> int:
        asked = self._socket(descriptor)
        if not asked.tcp:
            raise fail(errno.EINVAL)
        if asked.reset:
            raise fail(errno.ECONNRESET)
        return asked.state

    def transmit_tls_mode(self, descriptor: int) -> int:
        return 1 if self._socket(descriptor).tls else 0

    def writable_now(self, descriptor: int) -> bool:
        asked = self.sockets.get(descriptor)
        if asked is None or asked.reset:
            return True  # POLLNVAL; POLLHUP
        return not (asked.full or asked.is_drain)

    def send_space(self, descriptor: int) -> int:
        return 0 if self._socket(descriptor).full else 40_000

    def send_low_water(self, descriptor: int) -> int:
        self._socket(descriptor)
        return 2048

    def receive_tls_mode(self, descriptor: int) -> int:
        raise AssertionError("asked by the thin layer")

    def unread(self, descriptor: int) -> int:
        raise AssertionError("asked by the thin layer")

    def push(self, drain: int) -> None:
        raise AssertionError("asked by the thin layer")

    def end_events(self) -> EndEvents:
        raise AssertionError("asked by the thin layer")

    def glances(self) -> Glances:
        raise AssertionError("asked by the thin layer")


class ModelledOpenBSDCalls(ModelledFreeBSDCalls):
    """OpenBSD's kernel: it has no calls to check with, and needs none."""

    def __init__(self) -> None:
        super().__init__(release=(7, 8), system="OpenBSD")

    def tcp_state(self, descriptor: int) -> int:
        raise AssertionError("asked of OpenBSD")

    transmit_tls_mode = send_space = send_low_water = tcp_state

    def writable_now(self, descriptor: int) -> bool:
        raise AssertionError("asked of OpenBSD")
