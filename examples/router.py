"""A router by first bytes: python examples/router.py LISTEN_PORT --tls HOST:PORT --http ...

TLS, HTTP and SSH share one port: each client is joined to the target of the protocol that its first
bytes begin. They are read and passed on, and nothing is opened or changed.

A client of SSH may wait for the server to speak first (RFC 4253, 4.2). So a client that says
nothing for ``--silence`` seconds is taken for one of SSH, if SSH has a target.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import logging
import signal
import socket

from freebsd_splice.proxies import Address, Client, HandshakeError, Limits, ProxyServer

#: What the first bytes of each protocol can be. TLS: a handshake record of version 3.x (RFC 8446,
#: 5.1). HTTP: a method and a space, or the preface of HTTP/2 (RFC 9113, 3.4). SSH: RFC 4253, 4.2.
STARTS = {
    "tls": (b"\x16\x03",),
    "http": (
        *(b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"CONNECT ", b"OPTIONS ", b"TRACE "),
        *(b"PATCH ", b"PRI * HTTP/2.0\r\n"),
    ),
    "ssh": (b"SSH-",),
}


def protocol_of(first: bytes) -> str | None:
    """The protocol that ``first`` begins; None where it can't be told yet.

    Raises:
        HandshakeError: EPROTO: no protocol begins so.
    """
    for protocol, starts in STARTS.items():
        if first.startswith(starts):
            return protocol
    if any(start.startswith(first) for starts in STARTS.values() for start in starts):
        return None
    shown = ascii(first[:16])
    raise HandshakeError(errno.EPROTO, f"neither TLS nor HTTP nor SSH begins with {shown}")


class Router:
    """Opens the targets of a ``ProxyServer``."""

    def __init__(self, targets: dict[str, Address], silence: float) -> None:
        self._targets = targets
        self._silence = silence

    async def open_target(self, client: Client) -> tuple[socket.socket, tuple[bytes, bytes]]:
        """Connect to the target of the client's protocol; what was read goes there first."""
        protocol = await self._protocol_of(client)
        if protocol not in self._targets:
            raise HandshakeError(errno.EPROTO, f"{protocol.upper()} has no target")
        target = await client.dial(self._targets[protocol])
        return target, (bytes(client.handshake.received), b"")

    async def _protocol_of(self, client: Client) -> str:
        if "ssh" in self._targets and not await says_something(client, self._silence):
            return "ssh"
        received = client.handshake.received
        return await client.handshake.read(lambda piece: protocol_of(bytes(received)))


async def says_something(client: Client, seconds: float) -> bool:
    """Wait until there is something to read, for no longer than ``seconds``; take nothing of it.

    A read that is cut short by a time limit could have taken bytes already.
    """
    loop = asyncio.get_running_loop()
    readable = loop.create_future()

    def note() -> None:
        loop.remove_reader(client.socket)
        readable.set_result(None)

    loop.add_reader(client.socket, note)
    try:
        waiting = asyncio.wait([readable], timeout=seconds)
        await client.handshake.in_time(waiting, "client said nothing")
    finally:
        loop.remove_reader(client.socket)
    return readable.done()


async def main(port: int, targets: dict[str, Address], silence: float) -> None:
    """Serve until SIGINT or SIGTERM: live connections have 10 seconds more, or until a second."""
    server = ProxyServer(
        Router(targets, silence).open_target,
        idle_timeout=3600,
        limits=Limits(handshake_timeout=10),
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, server.stop)
    server.listen(Address("127.0.0.1", port))
    await server.run()


def address(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError(text)
    return Address(host.strip("[]"), int(port))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A router by first bytes")
    parser.add_argument("port", type=int, metavar="LISTEN_PORT", help="0: a free one")
    for name in STARTS:
        parser.add_argument(
            f"--{name}", type=address, metavar="HOST:PORT", help=f"for {name.upper()}"
        )
    parser.add_argument("--silence", type=float, default=2.0, metavar="SECONDS", help="default: 2")
    given = parser.parse_args()
    chosen = {name: vars(given)[name] for name in STARTS if vars(given)[name] is not None}
    if not chosen:
        parser.error("give at least one of --tls, --http and --ssh")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    asyncio.run(main(given.port, chosen, given.silence))
