"""Accepting clients among those that are there already."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import pytest

from freebsd_splice._platform.interface import Readiness
from freebsd_splice._runtime import current
from freebsd_splice._userspace.workers import _ROUNDS
from freebsd_splice.proxies._accepting import Accepting
from freebsd_splice.proxies._connecting import ReservedDescriptors
from support.platforms import RecordingPlatform, runtime


class Crowd:
    """A listening socket at which further clients wait at all times."""

    def __init__(self, readable: socket.socket) -> None:
        self.fileno = readable.fileno

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        return socket.socket(), ("127.0.0.1", 1)


@pytest.mark.parametrize(("messages", "clients"), [(0, 1), (40, 5 * _ROUNDS)])
def test_the_more_messages_come_the_more_are_accepted(messages: int, clients: int) -> None:
    """Who is the last of many that come together does not wait for many rounds of messages."""
    accepted: list[socket.socket] = []

    def accept(sock: socket.socket, _: object, reserved: ReservedDescriptors) -> None:
        sock.close()
        reserved.keep(0)
        accepted.append(sock)

    async def main() -> None:
        worker = current().local_worker()
        if worker is None:
            pytest.skip("no poller of this system can be watched")
        with contextlib.ExitStack() as opened:
            opened.callback(worker.close)
            pairs = [socket.socketpair() for _ in range(messages + 1)]
            for ours, peer in pairs:
                opened.enter_context(ours)
                opened.enter_context(peer).send(b"x")
            crowd: Any = Crowd(pairs[0][0])
            accepting = Accepting(
                crowd,
                ReservedDescriptors(1, 0),
                room=lambda: ReservedDescriptors(1, 0),
                wanted=lambda: True,
                accepted=accept,
                nobody_waits=lambda: None,
                must_know=lambda: False,
                worker=worker,
            )
            running = asyncio.ensure_future(accepting.run())
            await asyncio.sleep(0)
            accepted.clear()
            for ours, _ in pairs[1:]:
                worker.tell(ours, Readiness.READ, lambda _: None)
            worker.turn()
            running.cancel()
            await asyncio.wait([running])
            for ours, _ in pairs[1:]:
                worker.tell_no_more(ours)

    with runtime(RecordingPlatform()):
        asyncio.run(main())
    assert len(accepted) == clients
