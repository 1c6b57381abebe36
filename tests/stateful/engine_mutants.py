"""Mutants of the userspace engine, each of which takes out one counter-measure."""

from __future__ import annotations

from typing import Any

from freebsd_splice._core import shared_sockets, time_limits
from freebsd_splice._core.flow import End, Reason
from freebsd_splice._core.shared_sockets import Sockets
from freebsd_splice._core.time_limits import IdleClock
from freebsd_splice._platform.interface import Endpoint
from freebsd_splice._splice import Splice
from freebsd_splice._userspace import flow, movers
from freebsd_splice._userspace.flow import UserspaceFlow
from freebsd_splice._userspace.movers import CopyMover, SpliceMover
from freebsd_splice._userspace.workers import Worker

from .mutants import Patches, met_by_chance, mutant
from .registry import ENGINE


@mutant(ENGINE)
def sleeping_though_a_flow_has_more_to_move() -> Patches:
    """A wake-up is lost: a source that is reported only when it changes has more bytes."""

    def step(self: Worker) -> bool:
        self._serve(self._poller.wait(None))
        return not self._closing

    return [(Worker, "step", step)]


@mutant(ENGINE)
def a_turn_without_end() -> Patches:
    """One flow has its worker for as long as there is something to move."""
    return [(flow, "MOVES_A_TURN", 1 << 30)]


@mutant(ENGINE)
def an_eof_ahead_of_the_last_bytes() -> Patches:
    """An EOF is told as soon as it is there, with bytes still held for a full drain."""
    original = UserspaceFlow._push

    def push(self: UserspaceFlow) -> End | None:
        try:
            return original(self)
        except flow._NotNow:
            if self._platform.peek(self.source):
                raise
            return self._finish(Reason.EOF)

    return [(UserspaceFlow, "_push", push)]


@mutant(ENGINE)
def watching_the_source_behind_a_full_drain() -> Patches:
    """A busy loop: it is readable all the time, and nobody may read it."""
    original = UserspaceFlow._wait

    def wait(self: UserspaceFlow, *, read: bool, write: bool) -> End | None:
        return original(self, read=True, write=write)

    return [(UserspaceFlow, "_wait", wait)]


@mutant(ENGINE)
@met_by_chance(ENGINE)
def counting_before_the_send() -> Patches:
    """What is handed to the drain is counted, whatever the drain takes of it."""
    original = CopyMover.pour

    def pour(self: CopyMover, drain: Endpoint) -> int:
        handed = self.held
        original(self, drain)
        return handed

    return [(CopyMover, "pour", pour)]


@mutant(ENGINE)
def leaving_bytes_in_a_pipe() -> Patches:
    """F32: whoever ends the flow must take them back."""

    def take_back(self: SpliceMover) -> bytes:
        if self._pipe is not None:
            self._platform.read_pipe(self._pipe, self.held)
        self.held = 0
        self.release_buffers()
        return b""

    return [(SpliceMover, "take_back", take_back)]


@mutant(ENGINE)
def holding_bytes_in_the_shared_buffer() -> Patches:
    """The next flow of that worker overwrites them."""
    return [(CopyMover, "release_buffers", lambda self: None)]


@mutant(ENGINE)
def not_reading_a_quiet_source_until_it_is_empty() -> Patches:
    """An EOF behind the last bytes is not a change of its own."""
    return [(Worker, "quieten", lambda self, endpoint: self._poller.quieten(endpoint))]


@mutant(ENGINE)
def a_notice_reported_for_ever() -> Patches:
    """A busy loop: only the socket's owner may read its error queue."""
    return [(Worker, "quieten", lambda self, endpoint: None)]


@mutant(ENGINE)
def taking_more_than_the_limit() -> Patches:
    original = CopyMover.fill

    def fill(self: CopyMover, source: Endpoint, count: int, *, told: bool = True) -> int:
        return original(self, source, 1 << 30, told=told)

    return [(CopyMover, "fill", fill)]


@mutant(ENGINE)
def losing_initial_bytes_behind_the_limit() -> Patches:
    original = UserspaceFlow._finish

    def finish(self: UserspaceFlow, reason: Reason, error: OSError | None = None) -> End:
        self._surplus = b""
        return original(self, reason, error)

    return [(UserspaceFlow, "_finish", finish)]


@mutant(ENGINE)
def no_guard_at_the_drain() -> Patches:
    """Its death is not looked for while there is nothing to send."""
    original = Worker.expect

    def expect(self: Worker, served: UserspaceFlow, *, read: bool, write: bool) -> None:
        original(self, served, read=read, write=write)
        watched = self._watched[served.drain.fileno()]
        watched.guard = None
        self._apply(watched)

    return [(Worker, "expect", expect)]


@mutant(ENGINE)
def no_look_at_the_drain_at_the_end() -> Patches:
    """F16: a drain that died with the last bytes is reported like any other end."""
    return [(UserspaceFlow, "_drain_failure", lambda self: None)]


@mutant(ENGINE)
def failed_drains_before_the_turns() -> Patches:
    """The bytes that arrived before the failure are not read any more."""
    original = Worker._report

    def report(self: Worker, descriptor: int, ready: Any) -> list[UserspaceFlow]:
        for failed in original(self, descriptor, ready):
            reader = self._watched[descriptor].reader
            if reader is not None:
                reader.stop()
            failed.drain_failed()
        return []

    return [(Worker, "_report", report)]


@mutant(ENGINE)
def forgetting_an_error_that_was_told() -> Patches:
    """The system tells it once, and EOF from then on."""
    return [(shared_sockets._Connection, "failed", lambda self, error: None)]


@mutant(ENGINE)
def an_idle_clock_that_is_not_renewed() -> Patches:
    def has_passed(self: IdleClock, count: object, now: float) -> bool:
        return now >= self._changed + self._idle_timeout

    return [(IdleClock, "has_passed", has_passed)]


@mutant(ENGINE)
def no_look_at_the_send_buffer() -> Patches:
    """A slow reader takes what was sent long ago."""
    return [(Splice, "_undelivered", lambda self: 0)]


@mutant(ENGINE)
def an_idle_clock_that_is_looked_at_too_rarely() -> Patches:
    """IDLE comes late."""
    return [(time_limits, "_LOOK_SHARE", 4), (IdleClock, "seconds_to_next_look", _rarely)]


def _rarely(self: IdleClock, now: float) -> float:
    return self._step


@mutant(ENGINE)
@met_by_chance(ENGINE)
def leaving_sockets_non_blocking() -> Patches:
    return [(Sockets, "_forget", lambda self, connection: None)]


@mutant(ENGINE)
def failing_without_a_pipe() -> Patches:
    """F31: pipes are limited."""
    return [(movers, "SHORTAGES", frozenset())]


@mutant(ENGINE)
def a_full_poller_is_a_defect() -> Patches:
    return [(UserspaceFlow, "_wait", _without_an_end)]


def _without_an_end(self: UserspaceFlow, *, read: bool, write: bool) -> End | None:
    self._waiting = (read, write)
    try:
        self._worker.expect(self, read=read, write=write)
    except OSError:
        pass
    return None
