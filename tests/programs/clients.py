"""Clients of the proxies, the servers that they want, and what they ask with."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from programs.processes import PATIENCE, Proxy, needs, reset, until

#: Most tests have their targets here, where nobody is let unless a rule says so.
ALLOW_LOOPBACK = ("--allow", "127.0.0.0/8", "--allow", "::1")

#: Gives the name "private.example" an address of this machine, and one of its network.
NAME_OF_PRIVATE_ADDRESSES = """
import socket
look_up = socket.getaddrinfo
def getaddrinfo(host, *args, flags=0, **options):
    if host == "private.example" and not flags:
        return look_up("10.1.2.3", *args, **options) + look_up("127.0.0.1", *args, **options)
    return look_up(host, *args, flags=flags, **options)
socket.getaddrinfo = getaddrinfo
"""

#: Has the name "later.example" answered when somebody connects to the port in LATER.
NAME_THAT_WAITS = """
import os, socket
look_up = socket.getaddrinfo
def getaddrinfo(host, *args, flags=0, **options):
    if host == "later.example" and not flags:
        with socket.create_connection(("127.0.0.1", int(os.environ["LATER"]))) as until:
            until.recv(1)
        return look_up("127.0.0.1", *args, **options)
    return look_up(host, *args, flags=flags, **options)
socket.getaddrinfo = getaddrinfo
"""


def curl(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run it with no settings but these; a proxy is used for every host."""
    needs("curl")
    environment = {
        name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")
    }
    command = ["curl", "-q", "-sS", "--noproxy", "", "--max-time", str(PATIENCE)]
    return subprocess.run(
        [*command, *arguments], capture_output=True, env=environment, timeout=2 * PATIENCE
    )


def page(body: bytes) -> Callable[[socket.socket], None]:
    """A web server that gives this to everybody."""

    def serve(connection: socket.socket) -> None:
        if read_head(connection):
            length = b"Content-Length: %d\r\n" % len(body)
            connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n" + length + b"\r\n")
            connection.sendall(body)

    return serve


def read_head(sock: socket.socket) -> bytes:
    """All up to an empty line, or to the end, and nothing after it."""
    head = bytearray()
    while not head.endswith(b"\r\n\r\n") and (byte := sock.recv(1)):
        head += byte
    return bytes(head)


def read_to_eof(sock: socket.socket) -> bytes:
    parts = []
    while data := sock.recv(1 << 16):
        parts.append(data)
    return b"".join(parts)


def send_byte_by_byte(sock: socket.socket, data: bytes) -> None:
    """In a packet each."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for number in range(len(data)):
        sock.sendall(data[number : number + 1])


def name_of(client: socket.socket) -> str:
    """As it is at the beginning of the proxy's lines about it, as a pattern."""
    host, port = client.getsockname()[:2]
    return re.escape(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def leave(client: socket.socket, how: str) -> None:
    """With a FIN or with a reset."""
    if how == "RST":
        reset(client)
    else:
        client.close()


def no_accidents(front: Proxy) -> None:
    """Nothing in its log says that something happened which nobody has thought of."""
    assert not front.find(r"Traceback|: failed$|Error\b|\bERROR\b|exception"), front.text


@contextlib.contextmanager
def nothing_kept(front: Proxy) -> Iterator[None]:
    """The proxy has no more of what a client takes after all than before, and no accident.

    Pipes are left out: those that are empty are kept for the next ones, up to a number.
    """
    with front.connect() as nobody:  # once it has gone all that serves clients is there
        nobody.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            read_to_eof(nobody)
    before = _descriptors(front)
    yield
    for kind in ("tcp", os.devnull):
        until(lambda kind=kind: _descriptors(front)[kind] <= before[kind])  # type: ignore[misc]
    no_accidents(front)


def _descriptors(front: Proxy) -> Counter[str]:
    """None at all where the system doesn't tell."""
    return front.descriptors() if sys.platform == "linux" else Counter()


def arrive(front: Proxy) -> socket.socket:
    """A client that the proxy has accepted; it takes ``--log-level debug``.

    Of one that is reset before that, some systems don't tell.
    """
    client = front.connect()
    front.expect(f"DEBUG {name_of(client)}: accepted$")
    return client


class Certificates:
    """What a certificate authority of this test gives out."""

    def __init__(self, directory: Path) -> None:
        import trustme

        self._authority = trustme.CA()
        #: The authority's own, in a file.
        self.path = str(directory / "authority.pem")
        self._authority.cert_pem.write_to_path(self.path)

    def server(
        self, serve: Callable[[ssl.SSLSocket], None], *names: str, protocols: tuple[str, ...] = ()
    ) -> Callable[[socket.socket], None]:
        """TLS around ``serve``, with a certificate for these names."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert(*names).configure_cert(context)
        if protocols:
            context.set_alpn_protocols(protocols)

        def serve_tls(connection: socket.socket) -> None:
            with context.wrap_socket(connection, server_side=True) as wrapped:
                serve(wrapped)

        return serve_tls

    def server_file(self, *names: str) -> Path:
        """A file with a certificate for these names and its key."""
        made = self._authority.issue_cert(*names)
        path = Path(self.path).with_name("server.pem")
        made.private_key_and_cert_chain_pem.write_to_path(str(path))
        return path

    def client(self, *protocols: str) -> ssl.SSLContext:
        """One that trusts this authority alone."""
        context = ssl.create_default_context(cafile=self.path)
        if protocols:
            context.set_alpn_protocols(protocols)
        return context


def names_of(certificate: Any) -> list[str]:
    """Whom ``SSLSocket.getpeercert`` says that this is."""
    return [value for kind, value in certificate["subjectAltName"] if kind == "DNS"]
