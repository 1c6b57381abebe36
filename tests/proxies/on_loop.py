"""An event loop with relays that it moves, which the cases for ``Relay`` use as theirs."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from conformance.harness import DEADLINE
from freebsd_splice import RelayOutcome
from freebsd_splice._core.flow import End
from freebsd_splice._runtime import current
from freebsd_splice._userspace.workers import LocalWorker
from freebsd_splice.proxies._event_loop import ProxyLoop
from freebsd_splice.proxies._loop_relay import LoopRelay, LoopRelays


class Loop:
    """An event loop in a thread of its own, with the relays that it moves."""

    def __init__(self, kind: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self.loop = kind()
        self.worker: LocalWorker
        self.raised: list[BaseException] = []
        self._relays: dict[float | None, LoopRelays] = {}
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._begun.wait(DEADLINE)

    def do(self, call: Callable[[], Any]) -> Any:
        """Do that on the loop's thread, and return what it returns."""

        async def done() -> Any:
            return call()

        return asyncio.run_coroutine_threadsafe(done(), self.loop).result(DEADLINE)

    def relays(self, idle_timeout: float | None = None) -> LoopRelays:
        if idle_timeout not in self._relays:
            make = partial(LoopRelays, current(), self.worker, idle_timeout)
            self._relays[idle_timeout] = self.do(make)
        return self._relays[idle_timeout]

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(DEADLINE)
        try:
            yield
        finally:
            self._thread = threading.Thread(target=self.loop.run_forever)
            self._thread.start()

    def close(self) -> None:
        for relays in self._relays.values():
            self.do(relays.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        if isinstance(self.loop, ProxyLoop):
            self.loop.serve_no_more(self.worker)
        self.worker.close()
        self.loop.close()
        assert current().call_before_close == set()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        worker = current().local_worker()
        assert worker is not None
        self.worker = worker
        if not (isinstance(self.loop, ProxyLoop) and self.loop.serve(worker)):
            self.loop.add_reader(worker.fileno(), self._turn)
        self._begun.set()
        self.loop.run_forever()

    def _turn(self) -> None:
        if self.worker.turn():
            self.loop.call_soon(self._turn)


class OnLoop:
    """Such a relay, as the cases for ``Relay`` use theirs."""

    def __init__(
        self,
        loop: Loop,
        left: socket.socket,
        right: socket.socket,
        idle_timeout: float | None = None,
        close: bool = True,
    ) -> None:
        self._loop = loop
        self._over = threading.Event()
        relays = loop.relays(idle_timeout)

        def begin() -> LoopRelay:
            relay = relays.begin(left, right, self._over.set)
            relay.look()
            return relay

        self.relay: LoopRelay = loop.do(begin)

    def __enter__(self) -> OnLoop:
        return self

    def __exit__(self, *exception: object) -> None:
        self.cancel()

    @property
    def done(self) -> bool:
        return self._over.is_set()

    @property
    def bytes(self) -> tuple[int, int]:
        relay, (up, down) = self.relay.relay, self.relay.ways
        return (up.moved, down.moved) if relay is None else relay.bytes

    @property
    def _ends(self) -> list[End | None]:
        relay = self.relay.relay
        return [way.end for way in self.relay.ways] if relay is None else relay._ends

    def wait(self, timeout: float = DEADLINE) -> RelayOutcome:
        assert self._over.wait(timeout)
        return self.relay.outcome()

    def cancel(self) -> RelayOutcome:
        self._loop.do(self.relay.end_soon)
        return self.wait()


@contextmanager
def looping(kind: Callable[[], asyncio.AbstractEventLoop] = ProxyLoop) -> Iterator[Loop]:
    loop = Loop(kind)
    try:
        yield loop
    finally:
        loop.close()
