"""A shortage at each call that the package makes to the system, one after the other.

Nothing may come of it but an exception or an outcome that says what was short: no byte is lost or
counted twice, no descriptor or thread is left, nothing waits for ever, and another relay of the
same process goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

import freebsd_splice
from conformance.harness import DEADLINE
from faults.cells import cell
from freebsd_splice import Reason, Relay, RelayOutcome, Splice, aio
from freebsd_splice._backend import COPY, OS_SPLICE
from freebsd_splice._platform.pollers import kinds
from freebsd_splice._thin import emulation
from support.platforms import RecordingPlatform, UserspacePlatform

from .injection import NO_BUFFER, NO_DESCRIPTOR, NO_FILE, NO_MEMORY, NO_THREAD, Injection, Shortage
from .stage import AHEAD, DATA, Reading, Sending, Stage, rest_of, stage

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="which call can lack what is by Linux's manual pages"
)

Scenario = Callable[[Stage], None]
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

SHORTAGES = [NO_DESCRIPTOR, NO_MEMORY, NO_BUFFER, NO_THREAD]

#: What moves the bytes, and what waits for sockets: each mover, and each poller with a copy.
WAYS: list[tuple[str, str, str | None]] = (
    [("os.splice", OS_SPLICE, None)] if RecordingPlatform().can_splice() else []
)
WAYS += [(kind, COPY, kind) for kind in kinds()]


def play(
    scenario: Scenario,
    shortage: Shortage,
    patch: pytest.MonkeyPatch,
    *,
    readiness: str | None = None,
    mover: str | None = None,
    witness: bool = False,
) -> None:
    """Play the scenario, and again for each call in it, which fails then."""
    injection = Injection(shortage)
    injection.install(patch)

    def once(injecting: AbstractContextManager[object]) -> None:
        platform = UserspacePlatform(readiness)
        with stage(injection, injecting, platform, mover=mover, witness=witness) as on:
            scenario(on)

    failed = injection.play_each(once)
    # A call that only a race leads to may be missed, and may be the only one of its kind.
    assert {call.name for call in failed} & injection.shortage.calls or witness


def a_splice(on: Stage) -> None:
    source, sender = on.pair()
    drain, receiver = on.pair()
    sending, reading = Sending(on, sender), Reading(on, receiver)
    unsent = AHEAD
    try:
        with Splice(source, drain, idle_timeout=600, timeout=600, initial=AHEAD) as splice:
            with on.may_fail():
                splice.fileno()
            outcome = splice.wait(DEADLINE)
    except (OSError, RuntimeError) as error:
        on.check(error)
    else:
        on.ended_by(outcome.reason, outcome.error)
        unsent = outcome.unsent
    assert source.getblocking()
    rest = rest_of(source)
    drain.close()
    sending.join()
    assert reading.join() + unsent + rest == AHEAD + DATA


class Talk:
    """Two peers that each send, and read what the other has sent."""

    def __init__(self, on: Stage) -> None:
        self.left, near = on.pair()
        self.right, far = on.pair()
        self._sending = Sending(on, near), Sending(on, far)
        self._reading = Reading(on, far), Reading(on, near)

    def check(self, unsent: tuple[bytes, bytes], rest: list[bytes]) -> None:
        """Check that each byte is either at its reader, or in an outcome, or at our own end."""
        self.left.close()
        self.right.close()
        for sending in self._sending:
            sending.join()
        for reading, here, there in zip(self._reading, unsent, rest, strict=True):
            assert reading.join() + here + there == AHEAD + DATA

    def check_closed(self, outcome: RelayOutcome) -> None:
        """Check that each reader has got what the outcome says, and knows if that isn't all."""
        ways = outcome.left_to_right, outcome.right_to_left
        # The system reports a reset once: to who reads there, or to who sends.
        both = zip(ways, self._reading, reversed(self._sending), strict=True)
        for way, reading, sending in both:
            got = reading.join()
            sending.join()
            assert (AHEAD + DATA)[: len(got)] == got
            assert way.bytes - (way.undelivered or 0) <= len(got) <= way.bytes
            assert reading.was_reset or sending.was_reset or len(got) == len(AHEAD + DATA)


def a_relay(on: Stage) -> None:
    talk = Talk(on)
    unsent = AHEAD, AHEAD
    try:
        relay = Relay(talk.left, talk.right, idle_timeout=600, timeout=600, initial=(AHEAD, AHEAD))
    except (OSError, RuntimeError) as error:
        on.check(error)
    else:
        unsent = on.unsent_of(relay.wait(DEADLINE))
    assert talk.left.getblocking()
    assert talk.right.getblocking()
    talk.check(unsent, [rest_of(talk.left), rest_of(talk.right)])


def a_relay_that_closes(on: Stage) -> None:
    talk = Talk(on)
    try:
        relay = Relay(talk.left, talk.right, initial=(AHEAD, AHEAD), close=True)
    except (OSError, RuntimeError) as error:
        on.check(error)
        talk.check((AHEAD, AHEAD), [rest_of(talk.left), rest_of(talk.right)])
    else:
        outcome = relay.wait(DEADLINE)
        on.unsent_of(outcome)
        talk.check_closed(outcome)


async def streams(*sockets: socket.socket) -> tuple[Stream, Stream]:
    for each in sockets:
        each.setblocking(False)
    left, right = [await asyncio.open_connection(sock=each) for each in sockets]
    return left, right


def an_aio_relay(on: Stage) -> None:
    talk = Talk(on)

    async def main() -> tuple[tuple[bytes, bytes], list[bytes]]:
        sides = await streams(talk.left, talk.right)
        unsent = AHEAD, AHEAD
        try:
            relaying = aio.relay(*sides, idle_timeout=600, initial=(AHEAD, AHEAD))
            unsent = on.unsent_of(await asyncio.wait_for(relaying, DEADLINE))
        except (OSError, RuntimeError) as error:
            on.check(error)
        rest = [await asyncio.wait_for(side[0].read(), DEADLINE) for side in sides]
        await close(*sides)
        return unsent, rest

    talk.check(*asyncio.run(main()))


def an_aio_transfer(on: Stage) -> None:
    source, sender = on.pair()
    drain, receiver = on.pair()
    sending, reading = Sending(on, sender), Reading(on, receiver)

    async def main() -> bytes:
        for each in (source, drain):
            each.setblocking(False)
        unsent = AHEAD
        try:
            transfer = aio.transfer(source, drain, len(AHEAD) + 100_000, initial=AHEAD)
            unsent = (await asyncio.wait_for(transfer, DEADLINE)).unsent
        except aio.IncompleteTransferError as error:
            on.ended_by(error.outcome.reason, error.outcome.error)
            unsent = error.outcome.unsent
        except (OSError, RuntimeError) as error:
            on.check(error)
        return unsent

    unsent = asyncio.run(main())
    rest = unsent + rest_of(source)
    drain.close()
    sending.join()
    assert reading.join() + rest == AHEAD + DATA


async def close(*sides: Stream) -> None:
    for _, writer in sides:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def the_thin_functions(on: Stage) -> None:
    """The emulation holds no byte, so none can be missing, and none sent twice."""
    source, sender = on.pair()
    drain, receiver = on.pair()
    reading = Reading(on, receiver)
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: freebsd_splice.splice(source, drain), "splice(source=<"),
        (lambda: freebsd_splice.spliced_bytes(source), "spliced_bytes(source=<"),
        (lambda: freebsd_splice.unsplice(source), "unsplice(source=<"),
    ]
    said = b""
    for _ in range(3):
        sender.write(AHEAD)
        said += AHEAD
        for call, name in calls:
            try:
                call()
            except (OSError, RuntimeError) as error:
                if getattr(error, "errno", None) in (errno.ENOTCONN, errno.EBUSY):
                    assert on.injection.failed  # the call before was the one that failed
                    continue
                on.check(error, name if isinstance(error, OSError) else "")
    sending = Sending(on, sender)
    with on.may_fail():
        freebsd_splice.splice(source, drain)
    on.harness.until(lambda: not _is_spliced(), "the end of the splice")
    rest = rest_of(source)
    drain.close()
    sending.join()
    assert reading.join() + rest == said + DATA


def _is_spliced() -> bool:
    copier = emulation._running.made
    return copier is not None and not all(each.over for each in list(copier._by_source.values()))


#: What is seen of each shortage.
SEES = {
    NO_DESCRIPTOR: "EMFILE, with what it was for and what to raise; without a pipe, a copy serves",
    NO_MEMORY: "ENOMEM, raised before any byte has moved, or the outcome's error",
    NO_BUFFER: "ENOBUFS, raised before any byte has moved, or the outcome's error",
    NO_THREAD: "RuntimeError, with the thread and what to raise; where others can serve, nothing",
}
COUNTED = "each is at its reader, in `unsent`, or still at its source"


def cases(layer: str, *scenarios: Scenario, others: bool = False) -> list[Any]:
    """Return each scenario with each shortage, and its cell of the fault table."""
    return [
        pytest.param(
            scenario,
            shortage,
            id=f"{scenario.__name__.replace('_', ' ')}, {shortage.name}",
            marks=cell(
                shortage.name, layer, "any", sees=SEES[shortage], counted=COUNTED, others=others
            ),
        )
        for scenario in scenarios
        for shortage in SHORTAGES
    ]


@pytest.mark.parametrize(
    ("scenario", "shortage"),
    [*cases("Splice", a_splice), *cases("Relay", a_relay, a_relay_that_closes)],
)
def test_a_shortage_at_each_call_costs_no_byte(
    scenario: Scenario, shortage: Shortage, userspace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, mover, readiness = WAYS[0]
    play(scenario, shortage, monkeypatch, mover=mover, readiness=readiness)


@pytest.mark.parametrize(("scenario", "shortage"), cases("thin", the_thin_functions))
def test_the_emulation_loses_nothing_and_its_calls_say_why(
    scenario: Scenario, shortage: Shortage, userspace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(scenario, shortage, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(("scenario", "shortage"), cases("aio", an_aio_relay, an_aio_transfer))
def test_on_a_loop_as_well(
    scenario: Scenario, shortage: Shortage, userspace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(scenario, shortage, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "shortage"),
    [*cases("Splice", a_splice, others=True), *cases("Relay", a_relay, others=True)],
)
def test_another_relay_does_not_notice(
    scenario: Scenario, shortage: Shortage, userspace: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(scenario, shortage, monkeypatch, witness=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shortage", [NO_DESCRIPTOR, NO_MEMORY, NO_BUFFER], ids=lambda each: each.name
)
@pytest.mark.parametrize("way", WAYS[1:], ids=lambda way: way[0])
def test_whatever_waits_and_moves(
    way: tuple[str, str, str | None], shortage: Shortage, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, mover, readiness = way
    play(a_relay, shortage, monkeypatch, mover=mover, readiness=readiness)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", [a_splice, a_relay], ids=lambda each: each.__name__)
def test_the_whole_system_can_be_short_of_files_as_well(
    scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(scenario, NO_FILE, monkeypatch)


@pytest.mark.parametrize("readiness", kinds())
def test_a_shortage_that_lasts_is_waited_out(
    readiness: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody could make up for a thread that has ended, nor for a wake-up that was lost."""
    injection = Injection(NO_MEMORY)
    injection.install(monkeypatch)

    def fails(call: object) -> bool:
        return injection.failed < 20 and "in_spite_of_shortages" in str(call)

    injecting = injection.failing_while(fails)
    with stage(injection, injecting, UserspacePlatform(readiness), mover=COPY) as on:
        talk = Talk(on)
        outcome = Relay(talk.left, talk.right, initial=(AHEAD, AHEAD)).wait(DEADLINE)
        assert outcome.reason is Reason.EOF
        talk.check((b"", b""), [b"", b""])
    assert injection.failed
