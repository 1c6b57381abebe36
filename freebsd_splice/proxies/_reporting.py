"""The lines of the log about one client: how its connection ended, or why it had none."""

from __future__ import annotations

import logging
import socket

from .. import RelayOutcome
from .._errors import why
from .._kernel.flow import NEVER_BUSY
from .._relay import describe, failed_side
from ._addresses import show
from ._client import Client
from ._log import fields, logger, quoted_unless_plain
from ._proxy_protocol import show_bytes

#: The left and the right side of a proxy's relay.
_SIDES = ("client", "target")


def report_end(client: Client, target_name: str, outcome: RelayOutcome) -> None:
    """Log a connection at its end."""
    if not logger.isEnabledFor(logging.INFO):
        return
    what = {**said(client), **_facts(outcome)}
    ended = fields("connection", **who(client), target=target_name, **what)
    name = _with_requested(target_name, client)
    text = describe(outcome, ("up", "down"), _SIDES)
    logger.info("%s -> %s: %s", client, name, text, extra=ended)


def report_failure(client: Client, error: OSError) -> None:
    """Log why a client was joined to no target."""
    failed = fields("failed", **who(client), **said(client), error=str(error))
    logger.warning("%s: %s", client, error, extra=failed)


def report_refusal(client: object, facts: dict[str, object], most: int) -> None:
    """Log that a client already has as many connections as it may have."""
    logger.warning(
        "%s: refused: the client already has %d connections (--max-per-client)",
        client,
        most,
        extra=fields("refused", **facts),
    )


def who(client: Client) -> dict[str, object]:
    """Return the client, and through whom it came, as fields for programs."""
    return {
        "client": client.name,
        **({"via": show(client.peer)} if client.is_proxied else {}),
        **({"unique_id": show_bytes(client.unique_id)} if client.unique_id is not None else {}),
    }


def said(client: Client) -> dict[str, object]:
    """Return what the client said that the log names, as fields for programs."""
    said = {
        "user": client.user,
        "server_name": client.server_name,
        "requested": None if client.requested is None else str(client.requested),
    }
    return {name: value for name, value in said.items() if value is not None}


def _with_requested(target_name: str, client: Client) -> str:
    """Return the target's address with what the client asked for, where that reads otherwise."""
    if client.requested is None or str(client.requested) == target_name:
        return target_name
    return f"{target_name} ({quoted_unless_plain(str(client.requested))})"


def _facts(outcome: RelayOutcome) -> dict[str, object]:
    """Return the outcome as fields for programs."""
    up, down = outcome.left_to_right, outcome.right_to_left
    # Why userspace served what the kernel can't splice. That of a short connection says nothing.
    reasons = dict.fromkeys(way.fallback for way in (up, down))
    fallbacks = [reason for reason in reasons if reason not in (None, NEVER_BUSY)]
    return {
        "bytes_up": up.bytes,
        "bytes_down": down.bytes,
        **({"undelivered_up": up.undelivered} if up.undelivered else {}),
        **({"undelivered_down": down.undelivered} if down.undelivered else {}),
        "reason": outcome.reason.value,
        "error": None if outcome.error is None else why(outcome.error),
        "failed": None if outcome.error is None else _SIDES[failed_side(outcome)],
        "seconds": round(outcome.seconds, 6),
        "backend": list(dict.fromkeys(f"{way.backend}/{way.mover}" for way in (up, down))),
        **({"fallback": fallbacks} if fallbacks else {}),
    }


def peer_name(sock: socket.socket) -> str:
    try:
        return show(sock.getpeername())
    except OSError:  # the target has reset meanwhile
        return show(None)
