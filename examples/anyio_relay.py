"""A TCP forwarder on anyio: python examples/anyio_relay.py LISTEN_PORT HOST:PORT [BACKEND]

BACKEND is asyncio (the default), uvloop or trio.  ``relay`` is all that a program needs; the rest
is a server to try it with.

It works on plain sockets, and not on anyio's ``SocketStream``: on asyncio that one reads by itself,
from the moment it is made, into a buffer of its own.  When a handler gets the stream, the first
bytes have left the kernel already as a rule, and a relay of its raw socket would never see them.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import socket

import anyio

from freebsd_splice import Relay, RelayOutcome


async def relay(
    left: socket.socket, right: socket.socket, *, idle_timeout: float | None = None
) -> RelayOutcome:
    """Deliver what arrives at each socket to the other, until both directions have ended.

    Both are closed then: a peer that was not sent all that had arrived for it gets a reset, and no
    FIN, which would tell it that all is well.
    """
    with Relay(left, right, idle_timeout=idle_timeout, close=True) as under_way:
        try:
            await anyio.wait_readable(under_way.fileno())
        except BaseException:
            # Ending it can wait for the kernel: not in the loop's thread, and not to be cancelled.
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(under_way.cancel)
            raise
        return under_way.wait(0)


async def main(port: int, host: str, target_port: int) -> None:
    """Forward until SIGINT or SIGTERM, which cut what is under way."""
    with (
        socket.create_server(("127.0.0.1", port)) as listener,
        anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals,
    ):
        listener.setblocking(False)
        async with anyio.create_task_group() as group:
            group.start_soon(accept_clients, listener, host, target_port)
            print(f"listening on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
            async for _ in signals:
                group.cancel_scope.cancel()


async def accept_clients(listener: socket.socket, host: str, target_port: int) -> None:
    async with anyio.create_task_group() as clients:
        while True:
            await anyio.wait_readable(listener)
            try:
                client, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):  # it has gone away again
                continue
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                await anyio.sleep(0.1)  # until one of the others has ended
                continue
            clients.start_soon(serve_client, client, host, target_port)


async def serve_client(client: socket.socket, host: str, target_port: int) -> None:
    try:
        with client, await connect(host, target_port) as target:
            print(report(await relay(client, target)), flush=True)
    except OSError as error:  # costs that client alone
        print(f"failed: {error}", flush=True)


async def connect(host: str, port: int) -> socket.socket:
    """A connection to the first of the host's addresses that takes one."""
    failure = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in await anyio.getaddrinfo(
        host, port, type=socket.SOCK_STREAM
    ):
        sock = socket.socket(family, kind, protocol)
        try:
            await _connect(sock, address)
            return sock
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    raise failure


async def _connect(sock: socket.socket, address: tuple[str, int]) -> None:
    sock.setblocking(False)
    try:
        sock.connect(address)
    except BlockingIOError:
        await anyio.wait_writable(sock)
        if number := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(number, os.strerror(number)) from None


def report(outcome: RelayOutcome) -> str:
    there, back = outcome.left_to_right, outcome.right_to_left
    return f"{there.bytes} bytes there, {back.bytes} back: {outcome.reason.value}, {there.backend}"


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A TCP forwarder on anyio")
    parser.add_argument("port", type=int, metavar="LISTEN_PORT", help="0: a free one")
    parser.add_argument("target", type=address, metavar="HOST:PORT")
    parser.add_argument(
        "backend", nargs="?", default="asyncio", choices=["asyncio", "uvloop", "trio"]
    )
    given = parser.parse_args()
    anyio.run(
        main,
        given.port,
        *given.target,
        backend="trio" if given.backend == "trio" else "asyncio",
        backend_options={"use_uvloop": True} if given.backend == "uvloop" else {},
    )
