"""What a server tells whoever watches it, and the words for why a client was refused."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from .. import RelayOutcome
from ._connecting import PlainError, RefusedTargetError, StarvedError, TargetError

if TYPE_CHECKING:
    from ._client import Client

#: Why a client was joined to no target: what ``refusal_of`` returns, and "stopped".
REFUSALS = (
    "per client",
    "handshake timeout",
    "handshake",
    "denied",
    "client gone",
    "rules",
    "target timeout",
    "target",
    "shortage",
    "stopped",
    "other",
)

#: Of errors that are about the client, by their errno. Others are "handshake".
_OF_THE_CLIENT = {
    errno.ETIMEDOUT: "handshake timeout",
    errno.EACCES: "denied",
    errno.ECONNABORTED: "client gone",
    errno.ECONNRESET: "client gone",
}


class Observer:
    """Is told what happens to each client of a ``ProxyServer``; this one ignores it.

    For each client ``accepted`` comes first and ``left`` last. Every method may be called on any
    thread. None of them may wait or raise.
    """

    def accepted(self, client: Client) -> None:
        """Note that a client was accepted and is about to be served."""

    def looked_up(self, client: Client, seconds: float) -> None:
        """Note that it is known where to dial for the client: by SRV records. A dial follows."""

    def dialled(self, client: Client, seconds: float, error: OSError | None) -> None:
        """Note that a dial for the client is over; ``error`` is None where it has connected."""

    def handshaken(self, client: Client, target_name: str) -> None:
        """Note that the handshake is over, and that the client is about to be joined."""

    def ended(self, client: Client, outcome: RelayOutcome) -> None:
        """Note that the client's relay is over."""

    def refused(self, client: Client | None, error: OSError | None) -> None:
        """Note that the client is joined to no target.

        Args:
            client: None where it was closed as soon as it was accepted. There is no other call for
                such a client.
            error: None where the client has as many connections as it may have.
        """

    def left(self, client: Client) -> None:
        """Note that the server is done with the client.

        Where neither ``ended`` nor ``refused`` came before, the client was cut while it was not
        joined yet, or a defect has ended it.
        """


def refusal_of(error: OSError | None) -> str:
    """Return which of REFUSALS an error is; None: the client has too many connections."""
    if error is None:
        return "per client"
    if isinstance(error, RefusedTargetError):
        return "rules"
    if isinstance(error, StarvedError):
        return "shortage"
    if isinstance(error, TargetError):
        return "target timeout" if error.errno == errno.ETIMEDOUT else "target"
    if isinstance(error, PlainError):  # a handshake's, or a hangup
        return _OF_THE_CLIENT.get(error.errno or 0, "handshake")
    return "other"
