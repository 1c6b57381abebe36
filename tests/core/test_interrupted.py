"""Ctrl-C in the middle of a constructor leaves nothing behind that anybody waits for."""

from __future__ import annotations

from typing import Any

import pytest

from conformance.backends import Served
from conformance.harness import Harness
from faults.cells import cell
from freebsd_splice import Relay, Splice
from freebsd_splice._core.flow import Flow
from freebsd_splice._runtime import Runtime, current


def interrupt(patch: pytest.MonkeyPatch, number: int, when: str) -> None:
    """Interrupt the start of one of the flows, before it has begun or once it has."""
    make = Runtime.flows

    def flows(runtime: Runtime, count: int, **options: Any) -> list[Flow]:
        made = make(runtime, count, **options)
        flow: Any = made[number]
        start = flow.start

        def interrupted(*arguments: object) -> None:
            flow.start = start
            if when == "after":
                start(*arguments)
            raise KeyboardInterrupt

        flow.start = interrupted
        return made

    patch.setattr(Runtime, "flows", flows)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", [0, 1])
@cell(
    "a signal",
    "Relay",
    "initial",
    sees="KeyboardInterrupt out of the constructor: nothing is left of the relay",
)
def test_an_interrupted_relay_is_not_waited_for(
    served: Served, harness: Harness, monkeypatch: pytest.MonkeyPatch, number: int, when: str
) -> None:
    (left, _client), (right, _server) = harness.pair(), harness.pair()
    interrupt(monkeypatch, number, when)
    with pytest.raises(KeyboardInterrupt):
        Relay(left, right, close=True)
    current().close()
    assert left.send(b"still open") == right.send(b"still open")


@pytest.mark.parametrize("when", ["before", "after"])
@cell(
    "a signal",
    "Splice",
    "initial",
    sees="KeyboardInterrupt out of the constructor: nothing is left of the splice",
)
def test_an_interrupted_splice_is_not_waited_for(
    served: Served, harness: Harness, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    (source, _client), (drain, _server) = harness.pair(), harness.pair()
    interrupt(monkeypatch, 0, when)
    with pytest.raises(KeyboardInterrupt):
        Splice(source, drain)
    current().close()
    assert drain.send(b"still open")
