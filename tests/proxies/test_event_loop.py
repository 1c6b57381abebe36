"""The loop that waits in a worker's poller."""

from __future__ import annotations

import asyncio
import errno
import os
import selectors
import socket
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from conformance.harness import DEADLINE, Harness
from freebsd_splice._platform.interface import Readiness
from freebsd_splice._runtime import current
from freebsd_splice._userspace.workers import LocalWorker
from freebsd_splice.proxies import _event_loop
from freebsd_splice.proxies._event_loop import LoopWorker, ProxyLoop, run
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


def local_workers(count: int) -> list[LocalWorker]:
    made = [current().local_worker() for _ in range(count)]
    return [worker for worker in made if worker is not None]


async def is_told(worker: LocalWorker) -> None:
    """The worker reports what is readable."""
    ours, peer = socket.socketpair()
    told = asyncio.get_running_loop().create_future()

    def tell(ready: Readiness) -> None:
        worker.tell_no_more(ours)
        told.set_result(ready)

    with ours, peer:
        worker.tell(ours, Readiness.READ, tell)
        peer.send(b"x")
        await asyncio.wait_for(told, DEADLINE)


def test_of_several_workers_the_last_one_is_waited_for() -> None:
    """It is that of the server which accepts clients, where a former one has some left."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ProxyLoop)
        workers = local_workers(3)
        served = [LoopWorker(worker) for worker in workers]
        for closed, waited_for in ((None, 2), (0, 2), (2, 1)):
            if closed is not None:
                served[closed].close()
            assert loop._own_selector.worker is workers[waited_for]
            for worker in workers:
                if not worker.is_closed:
                    await is_told(worker)
        served[1].close()
        assert loop._own_selector.worker is None

    with runtime(RecordingPlatform()):
        run(main())


def test_who_comes_forward_outlasts_a_shortage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop would wait in no worker's poller, and raise amid the end of a server."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ProxyLoop)
        first, second = local_workers(2)
        served = [LoopWorker(first), LoopWorker(second)]
        listen, failures = first.listen, [errno.ENOMEM] * 2

        def short(descriptor: int, call: Callable[[], object]) -> None:
            if failures:
                raise OSError(failures.pop(), os.strerror(errno.ENOMEM))
            listen(descriptor, call)

        monkeypatch.setattr(first, "listen", short)
        served[1].close()
        assert not failures
        assert loop._own_selector.worker is first
        await is_told(first)
        served[0].close()

    with runtime(RecordingPlatform()):
        run(main())


def test_a_worker_that_steps_back_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flows that have had their turn in the middle of much are reported by nothing."""

    async def main() -> None:
        first, second = local_workers(2)
        served = [LoopWorker(first)]
        turns = asyncio.Event()
        monkeypatch.setattr(first, "turn", lambda timeout=0: turns.set())
        served.append(LoopWorker(second))
        await asyncio.wait_for(turns.wait(), DEADLINE)
        monkeypatch.undo()
        for each in served:
            each.close()

    with runtime(RecordingPlatform()):
        run(main())


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_where_pollers_cannot_change_places_it_is_a_plain_loop(
    system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XNU's kqueues can't: ``LoopWorker`` has them do so at a reload, and with a second proxy."""
    here = SimpleNamespace(platform=system, version_info=sys.version_info)
    monkeypatch.setattr(_event_loop, "sys", here)

    async def main() -> bool:
        return isinstance(asyncio.get_running_loop(), ProxyLoop)

    assert not run(main())


def test_a_worker_that_cannot_watch_the_loop_is_not_waited_in(
    worker: LocalWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop would hear of nothing any more."""

    def short(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    loop = ProxyLoop()
    with monkeypatch.context() as patched:
        patched.setattr(worker, "listen", short)
        with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
            loop.serve(worker)
    assert loop.serve(worker)
    loop.serve_no_more(worker)
    loop.close()
