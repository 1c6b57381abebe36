"""Mutants, each of which takes out one counter-measure: of ``KernelFlow``'s here.

Those of the engine's are in ``engine_mutants.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

from freebsd_splice._core.flow import Reason
from freebsd_splice._kernel import endings, flow, lost_events
from freebsd_splice._kernel.backend import KernelBackend
from freebsd_splice._kernel.checks import drain_failure
from freebsd_splice._kernel.flow import KernelFlow
from freebsd_splice._kernel.lost_events import LostEvents
from freebsd_splice._kernel.phases import Phase
from freebsd_splice._platform.kernel_interface import Capabilities, PollBits, capabilities_of
from freebsd_splice._platform.splice_checks import set_splice
from model import platform
from model.platform import Calls, ModelPlatform

from .registry import FREEBSD, OPENBSD, Registry

Patches = list[tuple[Any, str, Any]]
Mutant = Callable[[], Patches]

_registry = Registry[Mutant]()
#: ``@mutant(FREEBSD)``: at least one scenario for that system must fail.
mutant = _registry.register
mutants_of = _registry.of

#: The mutants that a short run of the state machine notices too: ``@met_by_chance(FREEBSD)``.
_chances = Registry[Mutant]()
met_by_chance = _chances.register
met_by_chance_of = _chances.of


@mutant(FREEBSD)
def splicing_before_arming() -> Patches:
    """F19: the filters are registered only after the splice is set."""

    def splice(self: KernelFlow) -> None:
        room = self._room()
        source, drain = self.pair
        self._enter(Phase.SPLICED)
        set_splice(self._calls, source, drain, 0 if room is None else room, 0.0)
        self._kernel.events.arm(self)
        self._kernel.lost_events.begin(self)

    return [(KernelFlow, "_splice", _checked(splice))]


def _checked(splice: Callable[[KernelFlow], None]) -> Callable[[KernelFlow], None]:
    def checked(self: KernelFlow) -> None:
        failure = drain_failure(self._calls, self._drain)
        if failure is not None:
            self._finish(Reason.DRAIN_ERROR, failure)
            return
        try:
            splice(self)
        except OSError as error:
            self._enter(Phase.BETWEEN)
            self._refused(error)

    return checked


@mutant(FREEBSD)
@met_by_chance(FREEBSD)
def believing_events() -> Patches:
    """F19: a flow that is woken takes the splice for over, without an unsplice call."""
    settle = KernelFlow._settle

    def believe(self: KernelFlow, reason: Reason | None = None) -> None:
        if reason is not None:
            settle(self, reason)
            return
        with mock.patch.object(self._calls, "end_splice", _already_over):
            settle(self)

    return [(KernelFlow, "_settle", believe)]


def _already_over(source: int) -> None:
    raise OSError(57, "Socket is not connected")


@mutant(FREEBSD)
def settling_stale_events() -> Patches:
    """F19, F20: a stale event makes the flow end and set again a splice that surely lives."""
    return [(KernelFlow, "event", KernelFlow.wake)]


@mutant(FREEBSD)
def taking_any_event_for_stale() -> Patches:
    """F20: the splice is taken to be alive, even if another splice has the drain now."""
    original = KernelFlow._may_be_over

    def doubting(self: KernelFlow, asked: int) -> bool:
        self._had_event = False
        return original(self, asked)

    return [(KernelFlow, "_may_be_over", doubting)]


@mutant(FREEBSD)
def no_polling_for_lost_events() -> Patches:
    """F14: the event of an EOF can be lost."""
    return [(LostEvents, "begin", lambda self, flow: None)]


@mutant(FREEBSD)
def no_look_at_the_drain() -> Patches:
    """F14: the event of a drain's reset can be lost, as an EOF's can."""
    return [(lost_events, "_DRAIN_SHOWS", PollBits.NONE)]


@mutant(FREEBSD)
def no_look_at_the_count() -> Patches:
    """F19: a limit met while the drain is full gives no event."""
    return [(KernelFlow, "counts", False)]


@mutant(FREEBSD)
@met_by_chance(FREEBSD)
def no_tail() -> Patches:
    """F13: an EOF with bytes left behind is passed on at once."""
    return [(KernelFlow, "_move_remainder", lambda self: self._finish(Reason.EOF))]


@mutant(FREEBSD)
@met_by_chance(FREEBSD)
def the_kernels_idle_time() -> Patches:
    """F11, F19: flows ask for sp_idle, which FreeBSD counts from the call on."""
    original = Calls.set_splice

    def with_idle(self: Calls, source: int, drain: int, max_bytes: int, idle: float) -> None:
        original(self, source, drain, max_bytes, 0.5)

    return [(Calls, "set_splice", with_idle)]


@mutant(FREEBSD)
@met_by_chance(FREEBSD)
def no_look_at_the_drains_state() -> Patches:
    """F21: a drain that was shut down or is connecting destroys the waiting bytes."""
    return [(flow, "drain_failure", lambda calls, drain: None)]


@mutant(FREEBSD)
@met_by_chance(FREEBSD)
def no_drain_first() -> Patches:
    """F16: a drain that died with a batch is reported like any other end."""
    return [(endings, "drain_failure", lambda calls, drain: None)]


@mutant(FREEBSD)
@met_by_chance(FREEBSD)
def blocking_sockets() -> Patches:
    """F24: a blocking call on a spliced socket halts other splices."""
    duplicate = ModelPlatform.duplicate

    def blocking(self: ModelPlatform, original: Any) -> Any:
        endpoint, was_blocking = duplicate(self, original)
        self._endpoint(endpoint).non_blocking = not was_blocking
        return endpoint, was_blocking

    return [(ModelPlatform, "duplicate", blocking)]


@mutant(FREEBSD)
@met_by_chance(FREEBSD)
def no_end_when_the_limit_runs_out() -> Patches:
    """The kernel is asked for 0 more bytes, which means without limit."""
    met = endings.next_step

    def blind(*arguments: Any) -> endings.NextStep:
        found = met(*arguments)
        return endings.RESPLICE if found.reason is Reason.LIMIT else found

    return [(flow, "next_step", blind)]


@mutant(FREEBSD)
def the_whole_limit_again() -> Patches:
    """Each splice of a limited flow gets the whole limit again."""
    return [(KernelFlow, "_room", lambda self: self._limit)]


@mutant(FREEBSD)
def resplicing_whatever_ended_it() -> Patches:
    """An unsplice by somebody else is ignored, and the splice set again."""

    original = endings._by_looking

    def patched(*arguments: Any) -> endings.NextStep:
        found = original(*arguments)
        return endings.RESPLICE if found.reason is Reason.UNSPLICED else found

    return [(endings, "_by_looking", patched)]


@mutant(FREEBSD)
@met_by_chance(FREEBSD)
def giving_up_what_was_ended_in_error() -> Patches:
    """F19: a live splice that was ended because of a stale event is not set again."""
    return [(endings, "RESPLICE", endings.finish(Reason.UNSPLICED))]


@mutant(FREEBSD)
def no_lock() -> Patches:
    """F35: an end does not wait for a set in progress."""
    make = KernelFlow.__init__

    def without(self: KernelFlow, kernel: KernelBackend, **options: Any) -> None:
        make(self, kernel, **options)
        self._lock = nullcontext()  # type: ignore[assignment]

    return [(KernelFlow, "__init__", without)]


@mutant(FREEBSD)
def no_look_after_the_other_directions_end() -> Patches:
    """F14: an EOF after the answer is lost long after the start."""
    return [(KernelFlow, "look_soon", lambda self: None)]


@mutant(FREEBSD)
def no_second_try() -> Patches:
    """F22: the kernel's spoiling of the source goes unnoticed."""
    return _taken_for_a_kernel_that(poisons=False)


def _taken_for_a_kernel_that(**does: bool) -> Patches:
    def mistaken(system: str, release: tuple[int, int]) -> Capabilities:
        return replace(capabilities_of(system, release), **does)

    return [(platform, "capabilities_of", mistaken)]


@mutant(FREEBSD)
def no_look_at_the_drain_before_the_first_splice() -> Patches:
    """F16: ``initial`` was sent to a drain that has died since."""
    return [
        (
            KernelFlow,
            "_finish_between",
            lambda self, reason: self._finish(self._closed_or(reason)),
        )
    ]


@mutant(OPENBSD)
def no_look_at_waiting_bytes() -> Patches:
    """F38: a splice that stands still is never noticed."""
    return [(KernelFlow, "bytes_wait", lambda self: None)]


@mutant(OPENBSD)
def pushing_whenever_bytes_wait() -> Patches:
    """F38: the drain is pushed even if other bytes wait than before."""

    def stuck(self: KernelFlow, count: int) -> bool:
        self._calls.push(self.pair[1])
        return False

    return [(KernelFlow, "_is_stuck", stuck)]


@mutant(OPENBSD)
def pushing_alone() -> Patches:
    """F38: a splice that a push doesn't set going is left standing still."""
    original = KernelFlow._is_stuck

    def never(self: KernelFlow, count: int) -> bool:
        original(self, count)
        return False

    return [(KernelFlow, "_is_stuck", never)]


@mutant(OPENBSD)
def setting_again_for_ever() -> Patches:
    """F38: a splice is set again at each look, though that has not helped."""
    original = KernelFlow._is_stuck

    def always(self: KernelFlow, count: int) -> bool:
        return original(self, count) or self._stood > 2

    return [(KernelFlow, "_is_stuck", always)]


@mutant(OPENBSD)
def a_push_that_fails_is_a_defect() -> Patches:
    """F38: a drain may die at any moment."""
    return [(flow, "suppress", lambda *errors: nullcontext())]


@mutant(OPENBSD)
def taking_a_writable_drain_for_free() -> Patches:
    """F25: a drain that isn't hidden looks free, so each look ends the splice and sets it again."""
    return _taken_for_a_kernel_that(hides_drains=True)


@mutant(OPENBSD)
def leaving_an_old_cause() -> Patches:
    """F10: the cause of the splice before is left in SO_ERROR."""
    return [(flow, "take_cause", lambda source: None)]


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    patches = [mock.patch.object(where, name, new) for where, name, new in mutant()]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()
