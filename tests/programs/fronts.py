"""A proxy of each kind with two targets: one that the test plays, and a bystander's echo."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from faults.bystanders import PIECE
from programs.clients import ALLOW_LOOPBACK, _descriptors, name_of, read_head, read_to_eof
from programs.processes import PATIENCE, Proxy, Server, exchange, receive, until
from programs.test_sni import hello, nameless

COMMANDS = ("forward", "connect", "socks5", "sni")

#: What the clients of those that are asked for a target send behind their request.
AHEAD = b"sent ahead"

#: Nothing of a proxy's own ends a connection while a test runs.
PATIENT = ("--idle-timeout", "1000")


class Joined(NamedTuple):
    """A client and the target that it was joined to, which has got what was sent ahead."""

    client: socket.socket
    target: socket.socket
    #: As the log calls the client.
    name: str
    #: How many bytes were sent ahead.
    ahead: int


class Front:
    """A proxy that serves a bystander already, and whose next clients get to ``target``.

    Close it in the end: it makes sure that the bystander was served all the time, and that the
    proxy has nothing more open than with the bystander alone.
    """

    def __init__(
        self,
        command: str,
        start: Callable[..., Proxy],
        echo: Server,
        target: tuple[str, int],
        directory: Path,
        *options: str,
    ) -> None:
        self.command = command
        self._echo, self._target = echo.address, target
        here = [f"127.0.0.1:{port}" for port in (echo.address[1], target[1])]
        arguments: tuple[str, ...] = (*ALLOW_LOOPBACK, "127.0.0.1:0")
        if command == "connect":
            pytest.importorskip("h11", reason="it is what the proxy parses requests with")
        if command == "forward":  # which gives them to its clients in turn
            arguments = ("127.0.0.1:0", *here)
        if command == "sni":
            routes = directory / "routes.toml"
            route = 'default = "{1}"\n[[route]]\nname = "echo.example"\ntarget = "{0}"\n'
            routes.write_text(route.format(*here))
            arguments = (str(routes), "127.0.0.1:0")
        self.proxy = start(command, *options, *arguments)
        self._bystander, ahead = self._open(self._echo)
        assert receive(self._bystander, len(ahead)) == ahead
        self.served()
        self._before = _descriptors(self.proxy)

    def served(self) -> None:
        """The bystander is, now."""
        assert exchange(self._bystander, PIECE) == PIECE

    def ask(self) -> socket.socket:
        """A client that has asked for the target, and has not read any answer."""
        client = self.proxy.connect()
        client.sendall(self._request(self._target))
        return client

    def join(self, listener: socket.socket) -> Joined:
        """A client that is joined to the target, and has said what it sends ahead."""
        client, ahead = self._open(self._target)
        listener.settimeout(PATIENCE)
        target, _ = listener.accept()
        target.settimeout(PATIENCE)
        assert receive(target, len(ahead)) == ahead
        if self.command == "forward":  # the turn after this one is the echo's
            with self.proxy.connect() as nobody:
                assert exchange(nobody, PIECE) == PIECE
        return Joined(client, target, name_of(client), len(ahead))

    def logged(self, joined: Joined, up: int, down: int, how: str) -> None:
        """The line of that connection, which has so many bytes."""
        counts = f"{joined.ahead + up} bytes up, {down} bytes down"
        self.proxy.expect(f"INFO {joined.name} .*-> .*: {counts}, {how}")

    def close(self) -> None:
        self.served()
        for kind in ("tcp", "/dev/null"):
            until(lambda kind=kind: _descriptors(self.proxy)[kind] <= self._before[kind])  # type: ignore[misc]
        self._bystander.shutdown(socket.SHUT_WR)
        assert read_to_eof(self._bystander) == b""
        self._bystander.close()
        assert not self.proxy.find("Traceback")
        assert self.proxy.stop() == 0

    def _open(self, target: tuple[str, int]) -> tuple[socket.socket, bytes]:
        client = self.proxy.connect()
        said = self._request(target)
        client.sendall(said)
        if self.command == "connect":
            assert read_head(client).startswith(b"HTTP/1.1 200")
        if self.command == "socks5":
            assert receive(client, 12)[:4] == b"\5\0\5\0"
        if self.command == "sni":
            return client, said
        return client, b"" if self.command == "forward" else AHEAD

    def _request(self, target: tuple[str, int]) -> bytes:
        if self.command == "connect":
            return b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % target[1] + AHEAD
        if self.command == "socks5":
            return b"\5\1\0\5\1\0\1\x7f\0\0\1" + target[1].to_bytes(2, "big") + AHEAD
        if self.command == "sni":
            return hello(nameless(), "echo.example" if target == self._echo else None)[0]
        return b""
