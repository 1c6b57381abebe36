"""A shortage at each call that a flow in the kernel makes, on the modelled kernels.

The kernel here is a model, so its calls and those of its platform fail where a real system's would.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import Any

import pytest

import freebsd_splice
from conformance.backends import MODELS
from conformance.harness import DEADLINE
from faults.cells import cell
from freebsd_splice import Reason, Relay, Splice, _thin
from freebsd_splice._thin.kernel import ThinKernel
from model.harness import ModelHarness
from model.kqueue import Kqueue
from model.platform import Calls, ModelPlatform
from model.poller import ModelPoller
from support.platforms import runtime

from .injection import NO_BUFFER, NO_DESCRIPTOR, NO_MEMORY, NO_THREAD, Injection, Shortage

AHEAD, DATA = b"said before", bytes(range(256)) * 160

#: The calls that can meet each shortage, with their names in ``Injection``.
POINTS: list[tuple[Any, str, str]] = [
    (ModelPlatform, "duplicate", "os.dup"),
    (ModelPlatform, "poller", "select.epoll"),
    (ModelPlatform, "notice", "socket.socketpair"),
    (ModelPlatform, "run", "Thread.start"),
    (ModelPlatform, "send", "socket.send"),
    (ModelPlatform, "receive_into", "socket.recv_into"),
    (ModelPlatform, "peek", "socket.recv"),
    (ModelPoller, "watch", "epoll.register"),
    (Calls, "end_events", "select.epoll"),
    (Calls, "set_splice", "socket.setsockopt"),
    (Calls, "transmit_tls_mode", "socket.getsockopt"),
    (Calls, "receive_tls_mode", "socket.getsockopt"),
    (Kqueue, "arm", "epoll.register"),
]


SEES = {
    NO_DESCRIPTOR: "EMFILE is raised",
    NO_MEMORY: "userspace serves, or ENOMEM is raised, or is the outcome's error",
    NO_BUFFER: "userspace serves, or ENOBUFS is the outcome's error",
    NO_THREAD: "RuntimeError is raised",
}


def case(shortage: Shortage, layer: str) -> Any:
    counted = "each is at its reader, in `unsent`, or still at its source"
    marks = cell(shortage.name, layer, "any", sees=SEES[shortage], counted=counted)
    return pytest.param(shortage, layer, id=f"{layer}, {shortage.name}", marks=marks)


@pytest.mark.parametrize(
    ("shortage", "layer"), [case(each, layer) for each in SEES for layer in ("Splice", "Relay")]
)
@pytest.mark.parametrize("kernel", MODELS)
def test_a_shortage_at_each_call_costs_no_byte(
    kernel: str, shortage: Shortage, layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    injection = Injection(shortage)
    # The model's clock stands still while a call waits for a thread:
    # tests/core/test_blocking_pool.py has those cases.
    injection.left_out = "_core/blocking_pool.py"
    for owner, name, call in POINTS:
        injection.wrap(monkeypatch, owner, name, call)

    def once(injecting: AbstractContextManager[object]) -> None:
        before = sys.getswitchinterval()
        sys.setswitchinterval(60)  # the model's threads take turns
        harness = ModelHarness(kernel.split()[1])
        try:
            with runtime(harness.world.platform), injecting:
                play(injection, harness, both=layer == "Relay")
            harness.world.check_quiet()
        finally:
            sys.setswitchinterval(before)

    injection.play_each(once)


@pytest.mark.parametrize(
    "shortage",
    [
        pytest.param(shortage, id=shortage.name, marks=cell(
            shortage.name, "thin", "any",
            sees=f"`splice` raises {said}, and nothing was spliced: it can be called again",
            counted="all that was said waits at the source",
        ))
        for shortage, said in ((NO_MEMORY, "ENOMEM"), (NO_BUFFER, "ENOBUFS"))
    ],
)  # fmt: skip
@pytest.mark.parametrize("kernel", MODELS)
def test_a_shortage_of_the_thin_calls_costs_no_byte(
    kernel: str, shortage: Shortage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What else these calls ask the kernel needs no memory."""
    injection = Injection(shortage)
    injection.wrap(monkeypatch, Calls, "set_splice", "socket.setsockopt")
    monkeypatch.setattr(_thin, "_check_open", lambda *descriptors: None)

    def once(injecting: AbstractContextManager[object]) -> None:
        harness = ModelHarness(kernel.split()[1])
        calls = ThinKernel(harness.world.calls)
        monkeypatch.setattr(_thin, "_calls", lambda: calls)
        (source, sender), (drain, receiver) = harness.pair(), harness.pair()
        sender.write(AHEAD)
        with injecting:
            try:
                freebsd_splice.splice(source, drain)
            except OSError as error:
                injection.check(error)
                assert harness.waiting(source, len(AHEAD)) == AHEAD
                sender.write(AHEAD)
                freebsd_splice.splice(source, drain)
        assert receiver.read(len(AHEAD)) == AHEAD
        assert freebsd_splice.spliced_bytes(source) == len(AHEAD)
        freebsd_splice.unsplice(source)
        harness.world.check_quiet()

    assert len(injection.play_each(once)) == 1


def play(injection: Injection, harness: ModelHarness, *, both: bool) -> None:
    left, near = harness.pair()
    right, far = harness.pair()
    said = [near, far] if both else [near]
    for peer in said:
        peer.write(DATA[:10_000])
    try:
        made: Any
        if both:
            made = Relay(left, right, idle_timeout=600, initial=(AHEAD, AHEAD))
        else:
            made = Splice(left, right, idle_timeout=600, initial=AHEAD)
    except (OSError, RuntimeError) as error:
        injection.check(error)
        unsent = [AHEAD, AHEAD]
    else:
        for peer in said:
            peer.write(DATA[10_000:])
            peer.fin()
        outcome = made.wait(DEADLINE)
        if outcome.error is not None:
            injection.check(outcome.error)
        else:
            assert outcome.reason is Reason.EOF, outcome
        ways = [outcome.left_to_right, outcome.right_to_left] if both else [outcome]
        unsent = [way.unsent for way in ways]
    harness.world.quiet(1.0)
    pairs = [(left, near, far), (right, far, near)] if both else [(left, near, far)]
    for (source, sender, receiver), rest in zip(pairs, unsent, strict=False):
        got = bytes(receiver._peer.endpoint.received)
        left_there = bytes(source.endpoint.received)
        whole = AHEAD + (DATA if sender._peer.endpoint.cannot_send else DATA[:10_000])
        assert got + rest + left_there == whole
