"""SO_SPLICE over the modelled endpoints, and the kernel's worker that moves the bytes."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass

from freebsd_splice._platform.interface import Readiness

from .kqueue import Kqueue
from .tcp import LISTEN, SYN_SENT, Endpoint, fail

IDLE, QUEUED, RUNNING = "idle", "queued", "running"

#: F38: what sets a stalled splice going again. In a kernel its own timer does so too, after some
#: 5 s; the model's splice stands still for ever.
PUSHING, SETTING_AGAIN, NOTHING = "pushing", "setting again", "nothing"


@dataclass(eq=False)
class ModelledSplice:
    source: Endpoint
    drain: Endpoint
    max_bytes: int
    idle: float
    deadline: float | None
    hides_drain: bool
    count: int = 0
    stalled: str | None = None  # what sets it going again
    state: str = IDLE

    @property
    def left(self) -> int:
        """The bytes that the splice may still move."""
        return self.max_bytes - self.count if self.max_bytes else 1 << 62


class SoSplice:
    """The kernel's part: setting, ending, counting, and being woken."""

    def __init__(self, version: str, kqueues: list[Kqueue], now: Callable[[], float]) -> None:
        self.version = version
        self.openbsd = version == "openbsd"
        self.live: list[ModelledSplice] = []
        self.late: list[tuple[Endpoint, Endpoint, bytes]] = []  # F19: moving after a timeout
        self.vanish = False  # F16: the batch being moved into a dying drain is lost
        self.short_splices = False  # OpenBSD: the limit's last part isn't moved at once
        self.stall: str | None = None  # OpenBSD: the next batch is cut short until this is done
        #: Actions of others inside the next call: before the kernel looks at the two sockets (after
        #: the caller has), and before the splice is live (F35).
        self.before_set: Callable[[], object] | None = None
        self.during_set: Callable[[], object] | None = None
        self._kqueues = kqueues
        self._now = now

    # The three calls

    def set(self, source: Endpoint, drain: Endpoint, max_bytes: int, idle: float) -> None:
        before, self.before_set = self.before_set, None
        if before is not None:
            before()
        if max_bytes < 0 or (idle < 0 and self.openbsd):
            raise fail(errno.EINVAL)  # F2, F11
        self._check(source, drain)
        during, self.during_set = self.during_set, None
        if during is not None:
            during()
        idle = abs(idle)  # F11
        deadline = self._now() + idle if idle else None
        splice = ModelledSplice(source, drain, max_bytes, idle, deadline, not self.openbsd)
        source.splice = drain.drained = splice
        source.count = 0
        self.live.append(splice)
        if not self.openbsd and (drain.cannot_send or drain.tcp_state == SYN_SENT):
            source.received.clear()  # F21
        self.turn(splice)  # F34: waiting data is moved inside the call

    def _check(self, source: Endpoint, drain: Endpoint) -> None:
        if not (source.tcp and drain.tcp):
            raise fail(errno.EPROTONOSUPPORT)
        self._check_not_listening(source)
        if not source.connected:
            raise fail(errno.ENOTCONN)
        if source.decrypts:
            raise fail(errno.EINVAL)
        if source.splice is not None or source.poisoned:
            if source.splice is not None and not self.openbsd:
                source.splice.count = 0  # F23
            raise fail(errno.EBUSY)
        refused = self._why_not_drain(drain)
        if refused:
            source.poisoned = self.version == "14.3"  # F22
            raise fail(refused)

    def _why_not_drain(self, drain: Endpoint) -> int:
        if drain.tcp_state == LISTEN:
            return errno.EOPNOTSUPP if self.openbsd else errno.EINVAL
        if drain.encrypts:
            return errno.EINVAL
        if not drain.connected and drain.tcp_state != SYN_SENT:
            return errno.ENOTCONN
        return errno.EBUSY if drain.drained is not None else 0

    def _check_not_listening(self, source: Endpoint) -> None:
        if source.tcp_state == LISTEN:
            raise fail(errno.EOPNOTSUPP if self.openbsd else errno.EINVAL)

    def end_splice(self, source: Endpoint) -> None:
        self._check_not_listening(source)
        splice = source.splice
        if splice is None:
            raise fail(errno.EPROTO if self.openbsd else errno.ENOTCONN)
        if splice.state == RUNNING:
            self.idle(splice)  # F35: the worker has let go when this returns
        if source.splice is splice:
            self._end(splice)

    def count(self, source: Endpoint) -> int:
        return source.splice.count if source.splice is not None else source.count

    def push(self, drain: Endpoint) -> None:
        """Set and clear TCP_NOPUSH."""
        if drain.dead:
            raise fail(errno.EINVAL)
        splice = drain.drained
        if splice is not None and splice.stalled == PUSHING:
            splice.stalled = None
            self._kick(splice)

    # Wake-ups

    def source_woken(self, source: Endpoint) -> None:
        """Act as sorwakeup does: data, FIN or RST has arrived at ``source``."""
        source.changes += 1
        if source.splice is not None:
            self._kick(source.splice)
        elif not source.poisoned:
            self._fire(source, Readiness.READ)

    def drain_woken(self, drain: Endpoint) -> None:
        """Act as sowwakeup does: an ACK has arrived, or the connection has ended."""
        drain.changes += 1
        if drain.drained is not None:
            self._kick(drain.drained)
        else:
            self._fire(drain, Readiness.WRITE)

    def _kick(self, splice: ModelledSplice) -> None:
        if splice.state == IDLE:
            splice.state = QUEUED
        # F14: a wake-up of a running splice is dropped; it only looks for data once more.

    def _fire(self, endpoint: Endpoint, which: Readiness) -> None:
        for kqueue in self._kqueues:
            kqueue.activate(endpoint, which)

    # The worker

    def turn(self, splice: ModelledSplice) -> None:
        self.move(splice)
        if splice in self.live:
            self.idle(splice)

    def move(self, splice: ModelledSplice) -> None:
        """Run the worker's first half: move what can be moved, and end the splice if it is over."""
        splice.state = RUNNING
        source, drain = splice.source, splice.drain
        if self.openbsd and source.error:
            self._end(splice)  # even if the previous splice left the error there
            return
        if drain.cannot_send or drain.dead:
            if drain.dead and self.vanish:
                del source.received[:4096]  # F16
            self._end(splice, errno.EPIPE)
            return
        self._push(splice)
        if splice.max_bytes and splice.left == 0:
            self._end(splice, errno.EFBIG)
        elif splice in self.live and source.cannot_receive and self._eof_ends(source):
            self._end(splice, 0)

    def idle(self, splice: ModelledSplice) -> None:
        """Run the worker's second half: look for data once more, then become idle."""
        if splice.source.received and splice.drain.outgoing.room and not splice.drain.dead:
            self._push(splice)
            if splice not in self.live:
                return
            if splice.max_bytes and splice.left == 0:
                self._end(splice, errno.EFBIG)
                return
        splice.state = IDLE
        if self.openbsd:  # no wake-up is lost there
            over = splice.source.cannot_receive and not splice.source.received
            if over or splice.source.error or splice.drain.cannot_send:
                splice.state = QUEUED

    def _eof_ends(self, source: Endpoint) -> bool:
        """Return whether an EOF ends the splice now (F13: on FreeBSD even if bytes are left)."""
        return not self.openbsd or not source.received

    def _push(self, splice: ModelledSplice) -> None:
        source, drain = splice.source, splice.drain
        if drain.tcp_state == SYN_SENT or splice.stalled:
            return
        count = min(len(source.received), drain.outgoing.room, splice.left)
        short = self.short_splices and splice.max_bytes and count == splice.left and count > 1
        if short:
            count -= 1
        if self.stall and self.openbsd and count > 1:
            splice.stalled = self.stall
            if self.stall == NOTHING:
                return
            count, self.stall = count // 2, None
        drain.outgoing.unsent += source.received[:count]
        del source.received[:count]
        splice.count += count
        if count and splice.deadline is not None and self.openbsd:
            splice.deadline = self._now() + splice.idle  # F11: a true idle timeout there
        if short:
            self._end(splice, 0)

    def expire(self) -> None:
        """End the splices whose time has run out, after the clock has moved."""
        for splice in list(self.live):
            if splice.deadline is not None and splice.deadline <= self._now():
                if not self.openbsd:
                    batch = bytes(splice.source.received[: splice.drain.outgoing.room])
                    del splice.source.received[: len(batch)]
                    self.late.append((splice.source, splice.drain, batch))
                self._end(splice, errno.ETIMEDOUT)

    def finish_late(self) -> None:
        """Deliver the batch that was moving when sp_idle's timeout ended the splice (F19)."""
        for source, drain, batch in self.late:
            drain.outgoing.unsent += batch
            source.count += len(batch)
        self.late.clear()

    def _end(self, splice: ModelledSplice, cause: int | None = None) -> None:
        source, drain = splice.source, splice.drain
        self.live.remove(splice)
        source.count = splice.count
        source.splice = drain.drained = None
        if self.openbsd:
            source.error = source.error or cause or 0
        self._fire(source, Readiness.READ)
        self._fire(drain, Readiness.WRITE)

    def close(self, endpoint: Endpoint) -> None:
        """End the endpoint's splices, as its last descriptor is closed (F8)."""
        for splice in (endpoint.splice, endpoint.drained):
            if splice is not None and splice in self.live:
                self._end(splice, errno.ENOTCONN)
