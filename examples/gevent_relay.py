"""A TCP forwarder on gevent: python examples/gevent_relay.py LISTEN_PORT HOST:PORT

``relay`` is all that a program needs; the rest is a server to try it with.

Nothing is monkey-patched, and nothing has to be.  A program that patches leaves out what the
package's own threads use, which have to be real ones and to wait by themselves:
``monkey.patch_all(thread=False, select=False, queue=False)``.
"""

from __future__ import annotations

import argparse
import signal

import gevent  # type: ignore[import-untyped]  # gevent comes without types
from gevent import socket
from gevent.server import StreamServer  # type: ignore[import-untyped]

from freebsd_splice import Relay, RelayOutcome


def relay(
    left: socket.socket, right: socket.socket, *, idle_timeout: float | None = None
) -> RelayOutcome:
    """Deliver what arrives at each socket to the other, until both directions have ended.

    The sockets stay open, and are the caller's to close: a peer that was not sent all that had
    arrived for it gets a reset then, and no FIN, which would tell it that all is well.
    """
    with Relay(
        _LeftOpen(left), _LeftOpen(right), idle_timeout=idle_timeout, close=True
    ) as under_way:
        try:
            socket.wait_read(under_way.fileno())
        except BaseException:  # the greenlet was killed, or a gevent.Timeout is over
            # Ending it can wait for the kernel, and the other greenlets are not to wait with it.
            gevent.get_hub().threadpool.apply(under_way.cancel)
            raise
        return under_way.wait(0)


class _LeftOpen:
    """A socket without ``close``, which gevent has for its hub's thread alone."""

    def __init__(self, original: socket.socket) -> None:
        self._socket = original

    def fileno(self) -> int:
        descriptor: int = self._socket.fileno()
        return descriptor


def main(port: int, host: str, target_port: int) -> None:
    """Forward until SIGINT or SIGTERM, which cut what is under way."""
    server = StreamServer(
        ("127.0.0.1", port), lambda client, _: serve_client(client, host, target_port)
    )
    server.start()
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, server.close)
    print(f"listening on 127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()  # until it is closed; the relays end with the process


def serve_client(client: socket.socket, host: str, target_port: int) -> None:
    """``StreamServer`` closes the client's socket."""
    try:
        with socket.create_connection((host, target_port)) as target:
            print(report(relay(client, target)), flush=True)
    except OSError as error:  # costs that client alone
        print(f"failed: {error}", flush=True)


def report(outcome: RelayOutcome) -> str:
    there, back = outcome.left_to_right, outcome.right_to_left
    return f"{there.bytes} bytes there, {back.bytes} back: {outcome.reason.value}, {there.backend}"


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A TCP forwarder on gevent")
    parser.add_argument("port", type=int, metavar="LISTEN_PORT", help="0: a free one")
    parser.add_argument("target", type=address, metavar="HOST:PORT")
    given = parser.parse_args()
    main(given.port, *given.target)
