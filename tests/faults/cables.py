"""Connections whose peers vanish together: nothing of them arrives any more, and nobody says so."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from conformance.harness import Harness, Peer
from model.harness import ModelHarness
from support.namespaces import Network, two_networks


class Cable(Protocol):
    """What our ends and their peers are connected by."""

    def pair(self) -> tuple[Any, Any]:
        """A connection through it: our end, whose system looks after its peer, and the peer."""
        ...

    def cut(self) -> None:
        """Lose whatever is sent through it from now on, either way."""
        ...

    def found_out(self) -> None:
        """Let the time pass after which our system gives the peers up."""
        ...


@contextmanager
def cable_of(harness: Harness) -> Iterator[Cable]:
    """One of the case's own network; skip the test where that can have none (Linux, root)."""
    if isinstance(harness, ModelHarness):
        yield ModelledCable(harness)
        return
    with two_networks() as networks:
        yield RealCable(harness, networks)


class RealCable:
    """One between two network namespaces."""

    def __init__(self, harness: Harness, networks: tuple[Network, Network]) -> None:
        self._harness = harness
        self._networks = networks

    def pair(self) -> tuple[socket.socket, Peer]:
        near, far = connect(self._networks)
        return self._harness.keep(near), Peer(self._harness.keep(far))

    def cut(self) -> None:
        self._networks[0].lose(self._networks[1])

    def found_out(self) -> None:
        """The system does it beside the test."""


class ModelledCable:
    """One of a modelled world, whose system gives up when the case says so."""

    def __init__(self, harness: ModelHarness) -> None:
        self._harness = harness
        self._ends: list[Any] = []

    def pair(self) -> tuple[Any, Any]:
        near, peer = self._harness.pair()
        self._ends.append(near.endpoint)
        return near, peer

    def cut(self) -> None:
        for end in self._ends:
            self._harness.world.cut(end)

    def found_out(self) -> None:
        self._harness.sleep(2)
        for end in self._ends:
            self._harness.world.give_up(end)


def connect(networks: tuple[Network, Network]) -> tuple[socket.socket, socket.socket]:
    """A connection between the two networks: our end, which looks after its peer, and the peer's.

    Our end is given up within some two seconds without an answer.
    """
    ours, theirs = networks
    with theirs.run(lambda: socket.create_server((theirs.address, 0))) as listener:
        near = ours.run(lambda: socket.create_connection(listener.getsockname()))
        far = listener.accept()[0]
    near.setblocking(False)
    if sys.platform == "linux":
        for level, option, value in (
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2),
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 2_000),
        ):
            near.setsockopt(level, option, value)
    return near, far
