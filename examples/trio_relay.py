"""A TCP forwarder on trio: python examples/trio_relay.py LISTEN_PORT HOST:PORT

``relay`` is all that a program needs; the rest is a server to try it with.
"""

from __future__ import annotations

import argparse
import signal
from functools import partial

import trio

from freebsd_splice import Relay, RelayOutcome


async def relay(
    left: trio.SocketStream, right: trio.SocketStream, *, idle_timeout: float | None = None
) -> RelayOutcome:
    """Deliver what arrives at each stream to the other, until both directions have ended.

    The streams stay open, and are the caller's to close: a peer that was not sent all that had
    arrived for it gets a reset then, and no FIN, which would tell it that all is well.
    """
    with Relay(
        _LeftOpen(left), _LeftOpen(right), idle_timeout=idle_timeout, close=True
    ) as under_way:
        try:
            await trio.lowlevel.wait_readable(under_way.fileno())
        except BaseException:
            # Ending it can wait for the kernel: not in trio's thread, and not to be cancelled.
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(under_way.cancel)
            raise
        return under_way.wait(0)


class _LeftOpen:
    """A stream's socket without ``close``, which trio has for its own thread alone."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._socket = stream.socket

    def fileno(self) -> int:
        return self._socket.fileno()


async def main(port: int, host: str, target_port: int) -> None:
    """Forward until SIGINT or SIGTERM, which cut what is under way."""
    serve = partial(serve_client, host=host, target_port=target_port)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            listeners: list[trio.SocketListener] = await nursery.start(
                partial(trio.serve_tcp, serve, port, host="127.0.0.1")
            )
            print(f"listening on 127.0.0.1:{listeners[0].socket.getsockname()[1]}", flush=True)
            async for _ in signals:
                nursery.cancel_scope.cancel()


async def serve_client(client: trio.SocketStream, host: str, target_port: int) -> None:
    """``trio.serve_tcp`` closes the client's stream."""
    try:
        async with await trio.open_tcp_stream(host, target_port) as target:
            print(report(await relay(client, target)), flush=True)
    except OSError as error:  # costs that client alone
        print(f"failed: {error}", flush=True)


def report(outcome: RelayOutcome) -> str:
    there, back = outcome.left_to_right, outcome.right_to_left
    return f"{there.bytes} bytes there, {back.bytes} back: {outcome.reason.value}, {there.backend}"


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A TCP forwarder on trio")
    parser.add_argument("port", type=int, metavar="LISTEN_PORT", help="0: a free one")
    parser.add_argument("target", type=address, metavar="HOST:PORT")
    given = parser.parse_args()
    trio.run(main, given.port, *given.target)
