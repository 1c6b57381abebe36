"""The worker of an event loop's thread, for sockets that no flow has."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from conformance.harness import Harness
from freebsd_splice._platform.interface import Readiness
from freebsd_splice._runtime import current
from freebsd_splice._userspace.workers import LocalWorker
from support.platforms import RecordingPlatform, runtime


@pytest.fixture
def worker() -> Iterator[LocalWorker]:
    with runtime(RecordingPlatform()):
        made = current().local_worker()
        if made is None:
            pytest.skip("no poller of this system can be watched")
        yield made
        made.close()


def test_a_number_that_comes_back_gets_no_older_report(
    harness: Harness, worker: LocalWorker
) -> None:
    """It was another connection's when the poller saw it."""
    first, first_peer = harness.pair()
    second, second_peer = harness.pair()
    listener = harness.listening()
    accepted: list[socket.socket] = []
    told: list[Readiness] = []
    number = second.fileno()

    def close_second(ready: Readiness) -> None:
        worker.tell_no_more(second)
        second.close()
        worker.tell_no_more(first)

    def accept() -> None:
        accepted.append(harness.keep(listener.accept()[0]))
        worker.tell(accepted[0], Readiness.READ, told.append)

    worker.tell(first, Readiness.READ, close_second)
    worker.listen(listener.fileno(), accept)
    worker.tell(second, Readiness.READ, told.append)
    first_peer.write(b"x")
    harness.until(lambda: harness.readable(first), "the first is reported")
    client = harness.keep(socket.create_connection(listener.getsockname()))
    harness.until(lambda: harness.readable(listener), "then the client")
    second_peer.write(b"x")
    harness.until(lambda: harness.readable(second), "then the second")
    worker.turn()
    assert accepted[0].fileno() == number
    assert told == []
    client.send(b"x")
    harness.until(lambda: worker.turn() or told, "its own is reported")
    worker.tell_no_more(accepted[0])
    worker.unlisten(listener.fileno())


def test_a_call_that_fails_costs_the_others_nothing(
    harness: Harness, worker: LocalWorker, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[str] = []

    def failing(name: str) -> Callable[..., None]:
        def call(*_: object) -> None:
            called.append(name)
            raise ZeroDivisionError

        return call

    listener = harness.listening()
    pairs = [harness.pair(), harness.pair()]
    for ours, peer in pairs:
        worker.tell(ours, Readiness.READ, failing("a socket's"))
        peer.write(b"x")
        harness.until(lambda ours=ours: harness.readable(ours), "it is there")  # type: ignore[misc]
    worker.listen(listener.fileno(), failing("the listener's"))
    harness.keep(socket.create_connection(listener.getsockname()))
    harness.until(lambda: harness.readable(listener), "the client is there")
    worker.turn()
    assert called[:3] == ["a socket's", "a socket's", "the listener's"]
    assert "ZeroDivisionError" in caplog.text
    for ours, _ in pairs:
        worker.tell_no_more(ours)
    worker.unlisten(listener.fileno())


def test_no_turn_waits_while_a_flow_can_move(
    worker: LocalWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Flow:
        queued = False
        turns = 0

        def turn(self) -> bool:
            self.turns += 1
            return self.turns < 2

    waited: list[float | None] = []
    wait = worker._poller.wait

    def noted(timeout: float | None) -> list[tuple[int, Readiness]]:
        waited.append(timeout)
        return wait(0)

    monkeypatch.setattr(worker._poller, "wait", noted)
    worker._queue(Flow())  # type: ignore[arg-type]
    assert worker.turn(60.0)
    assert not worker.turn(60.0)
    assert not worker.turn(60.0)
    assert waited == [0, 0, 60.0]
