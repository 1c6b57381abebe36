"""The loop that waits in a worker's poller."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Iterator

import pytest

from conformance.harness import Harness
from freebsd_splice._platform.interface import Readiness
from freebsd_splice._runtime import current
from freebsd_splice._userspace.workers import LocalWorker
from freebsd_splice.proxies._event_loop import ProxyLoop
from support.platforms import RecordingPlatform, runtime


@pytest.fixture
def worker() -> Iterator[LocalWorker]:
    with runtime(RecordingPlatform()):
        made = current().local_worker()
        assert made is not None
        yield made
        made.close()


@pytest.fixture
def loop(worker: LocalWorker) -> Iterator[ProxyLoop]:
    made = ProxyLoop()
    assert made.serve(worker)
    yield made
    made.serve_no_more(worker)
    made.close()


@pytest.mark.parametrize("asked", ["call_soon", "call_later", "stop"])
def test_what_is_asked_of_it_while_it_waits_is_done(
    harness: Harness, worker: LocalWorker, loop: ProxyLoop, asked: str
) -> None:
    """By what the poller's reports lead to. Nothing else wakes it."""
    ours, peer = harness.pair()

    def told(_: Readiness) -> None:
        worker.tell_no_more(ours)
        if asked == "call_soon":
            loop.call_soon(loop.stop)
        elif asked == "call_later":
            loop.call_later(0.001, loop.stop)
        else:
            loop.stop()

    worker.tell(ours, Readiness.READ, told)
    loop.call_soon(peer.write, b"x")
    loop.run_forever()


def test_a_report_that_is_not_true_any_more_holds_up_nobody(
    worker: LocalWorker, loop: ProxyLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kqueue reports another one for what has passed meanwhile."""
    waited: list[float | None] = []
    chosen = selectors.DefaultSelector.select

    def select(
        self: selectors.BaseSelector, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        waited.append(timeout)
        return chosen(self, 0)  # type: ignore[arg-type]

    monkeypatch.setattr(selectors.DefaultSelector, "select", select)
    ours, peer = socket.socketpair()
    with ours, peer:
        loop.call_soon(loop.add_reader, ours, loop.stop)
        loop.call_soon(peer.send, b"x")
        loop.run_forever()
        loop.remove_reader(ours)
    assert set(waited) == {0}
