"""What a signal's exception leaves of a loop's relay that is about to become another."""

from __future__ import annotations

import asyncio

import pytest

from conformance.harness import DEADLINE, Harness
from core.test_interrupted import interrupt
from freebsd_splice import RelayOutcome
from freebsd_splice._relay import GivenRelay
from freebsd_splice._runtime import current
from freebsd_splice.proxies import _loop_way
from freebsd_splice.proxies._event_loop import ProxyLoop
from freebsd_splice.proxies._loop_relay import LoopRelays
from support.platforms import RecordingPlatform, runtime


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("half_closed", [False, True])
def test_it_ends_and_is_closed(
    harness: Harness,
    monkeypatch: pytest.MonkeyPatch,
    half_closed: bool,
    number: int,
    when: str,
) -> None:
    monkeypatch.setattr(_loop_way, "MUCH_BYTES", 10)
    ended: list[RelayOutcome] = []
    finished: list[GivenRelay] = []
    finish = GivenRelay._finish

    def finish_once_more(self: GivenRelay) -> None:
        finished.append(self)
        finish(self)

    monkeypatch.setattr(GivenRelay, "_finish", finish_once_more)
    with runtime(RecordingPlatform()):
        left, client = harness.pair()
        right, server = harness.pair()
        loop = ProxyLoop()
        worker = current().local_worker()
        assert worker is not None
        assert loop.serve(worker)

        async def begin() -> None:
            relays = LoopRelays(current(), worker, None)
            relay = relays.begin(left, right, lambda: ended.append(relay.outcome()))
            if half_closed:
                server.fin()
                while relay.ways[1].end is None:
                    await asyncio.sleep(0.01)
            interrupt(monkeypatch, 0 if half_closed else number, when)
            client.write(b"as much as makes it another")
            await asyncio.sleep(DEADLINE)

        task = loop.create_task(begin())
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(task)
        task.cancel()
        loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
        loop.serve_no_more(worker)
        worker.close()
        loop.close()
    assert len(ended) == len(finished) == 1
    assert left.fileno() == right.fileno() == -1
