"""The live connections of proxies, and how many bytes each has moved so far."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from .. import RelayOutcome
from ._observing import Observer

if TYPE_CHECKING:
    from ._client import Client

Item = TypeVar("Item")
Kind = TypeVar("Kind", bound="LiveConnections")

#: Seconds that asking all relays may take. The kernel answers with a lock that a busy splice can
#: hold for long (F24). Those that were not asked come first the next time.
READ_SECONDS = 2.0

#: Connections that are dealt with before other threads, the loop's above all, have the interpreter
#: for a while, and the length of that while in seconds.
_AT_ONCE = 50
_PAUSE = 0.0005


class Progress(NamedTuple):
    """How far one direction of a relay has come."""

    bytes: int
    #: The backend and the mover that serve now; None where that isn't decided yet.
    served_by: tuple[str, str] | None


@dataclass(eq=False, slots=True)
class LiveConnection:
    """A client from its accepting to its end.

    Attributes:
        client: the client.
        accepted: the time of ``time.monotonic`` at which it was accepted.
        listen: where its proxy listens, as that is written.
        target_name: its target; None until the two are joined.
        dialling: seconds that connecting to its target has taken, with all attempts and look-ups.
        looking: seconds of look-ups that belong to the next dial.
        ways: what its relay said last: up and down; empty until it was asked.
        asked: the time at which it was asked.
        counted_up: the bytes up that ``Numbers`` has counted already.
        counted_down: the bytes down.
    """

    client: Client
    accepted: float
    listen: str
    target_name: str | None = None
    dialling: float = 0.0
    looking: float = 0.0
    ways: tuple[Progress, ...] = ()
    asked: float = 0.0
    counted_up: int = 0
    counted_down: int = 0


class LiveConnections(Observer):
    """Knows who is connected to a proxy, or to one after the other, without taking any time.

    Args:
        listen: where the proxy listens, as that is written.
    """

    def __init__(self, listen: str) -> None:
        self.listen = listen
        self._lock = threading.Lock()
        self._live: dict[Client, LiveConnection] = {}

    def accepted(self, client: Client) -> None:
        connection = LiveConnection(client, time.monotonic(), self.listen)
        with self._lock:
            self._live[client] = connection

    def looked_up(self, client: Client, seconds: float) -> None:
        with self._lock:
            connection = self._live.get(client)
            if connection is not None:
                connection.dialling += seconds
                connection.looking += seconds

    def dialled(self, client: Client, seconds: float, error: OSError | None) -> None:
        with self._lock:
            connection = self._live.get(client)
            if connection is not None:
                connection.dialling += seconds

    def handshaken(self, client: Client, target_name: str) -> None:
        with self._lock:
            connection = self._live.get(client)
            if connection is not None:
                connection.target_name = target_name

    def ended(self, client: Client, outcome: RelayOutcome) -> None:
        self._forget(client)

    def refused(self, client: Client | None, error: OSError | None) -> None:
        if client is not None:
            self._forget(client)

    def left(self, client: Client) -> None:
        self._forget(client)

    def all(self) -> list[LiveConnection]:
        """Return the live connections, the oldest first."""
        with self._lock:
            return list(self._live.values())

    def ask(self, connection: LiveConnection) -> None:
        """Ask one that is joined how much it has moved, which can take long."""
        ways = tuple(Progress(*way) for way in connection.client.progress())
        with self._lock:
            if connection.client in self._live:
                connection.ways, connection.asked = ways, time.monotonic()
                self._moved(connection)

    def _moved(self, connection: LiveConnection) -> None:
        """Take note of ``connection.ways``, with the lock."""

    def _forget(self, client: Client) -> LiveConnection | None:
        """Return the connection; None where it was forgotten before."""
        with self._lock:
            return self._live.pop(client, None)


class Watched(Generic[Kind]):
    """The live connections of all proxies of a process, those of former proxies included.

    Args:
        watch: makes what watches a proxy, for the place where that listens.
    """

    def __init__(self, watch: Callable[[str], Kind]) -> None:
        self._watch = watch
        self._by_listen: dict[str, Kind] = {}
        self._reading = threading.Lock()

    def at(self, listen: str) -> Kind:
        """Return what watches the proxies that listen there, one after the other."""
        if listen not in self._by_listen:
            self._by_listen[listen] = self._watch(listen)
        return self._by_listen[listen]

    def all(self) -> list[Kind]:
        return list(self._by_listen.values())

    def read(self, seconds: float = READ_SECONDS) -> list[LiveConnection]:
        """Ask the live relays how much they have moved; return all live connections, oldest first.

        For a thread that may wait: an answer can take long, and only one thread asks at a time.

        Args:
            seconds: how long it may take. Connections that were not asked by then keep what they
                said before.
        """
        with self._reading:
            deadline = time.monotonic() + seconds
            live = [connection for each in self.all() for connection in each.all()]
            joined = [connection for connection in live if connection.client.is_joined]
            joined.sort(key=lambda connection: connection.asked)
            for connection in in_pieces(joined):
                self._by_listen[connection.listen].ask(connection)
                if time.monotonic() >= deadline:
                    break
        live.sort(key=lambda connection: connection.accepted)
        return live


def in_pieces(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items, and let other threads run now and then.

    A thread that computes on and on holds up each of their steps by some milliseconds.
    """
    for number, item in enumerate(items, 1):
        yield item
        if number % _AT_ONCE == 0:
            time.sleep(_PAUSE)
