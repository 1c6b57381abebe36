"""Somebody else who is served by the same process while something breaks."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Protocol

from conformance.harness import DEADLINE, Harness
from freebsd_splice import Reason, Relay

if TYPE_CHECKING:
    from conformance.thin import Thin

#: What each side says each time: little enough for any buffer.
PIECE = random.Random(11).randbytes(1_000)


class Bystander(Protocol):
    def served(self) -> None:
        """Bytes go through it now, all of them."""
        ...

    def end(self) -> None:
        """It was not harmed: it goes on, and ends in the ordinary way with every byte counted."""
        ...


class RelayBystander:
    """A relay, whose sides are served in turn."""

    def __init__(self, harness: Harness) -> None:
        left, self._client = harness.pair()
        right, self._server = harness.pair()
        self._relay = Relay(left, right)
        self._count = 0

    def served(self) -> None:
        for writer, reader in ((self._client, self._server), (self._server, self._client)):
            writer.write(PIECE)
            assert reader.read(len(PIECE)) == PIECE
        self._count += len(PIECE)

    def end(self) -> None:
        self.served()
        assert not self._relay.done
        self._client.fin()
        assert self._server.read_to_end() == b""
        self._server.fin()
        outcome = self._relay.wait(DEADLINE)
        for way in (outcome.left_to_right, outcome.right_to_left):
            assert (way.reason, way.bytes) == (Reason.EOF, self._count)


class ThinBystander:
    """A splice by the thin functions."""

    def __init__(self, harness: Harness, thin: Thin) -> None:
        self._thin = thin
        self._source, self._sender = harness.pair()
        self._drain, self._receiver = harness.pair()
        self._count = 0
        thin.splice(self._source, self._drain)

    def served(self) -> None:
        self._sender.write(PIECE)
        assert self._receiver.read(len(PIECE)) == PIECE
        self._count += len(PIECE)

    def end(self) -> None:
        self.served()
        self._thin.moved(self._source, self._count)
        self._thin.is_live(self._source)
