"""The HTTP proxy: CONNECT of HTTP/1.1 (RFC 9110, 9.3.6), parsed by h11.

::

    server = ProxyServer(http_connect(rules=Rules(), passwords=Passwords("/etc/proxy.passwords")))
    server.listen(Address("127.0.0.1", 3128))
    asyncio.run(server.run())
"""

from __future__ import annotations

import base64
import binascii
import errno
import socket
from functools import partial

import h11

from ._addresses import Address, parse_target
from ._connecting import PlainError, RefusedTargetError, TargetError
from ._handshake import HandshakeError
from ._passwords import Passwords
from ._rules import Rules
from ._server import Client, OpenTarget

#: What a client is told; why exactly is for the log alone, as it can name what is behind the proxy.
_REASONS = {
    400: b"Bad Request",
    403: b"Forbidden",
    405: b"Method Not Allowed",
    407: b"Proxy Authentication Required",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
    502: b"Bad Gateway",
    504: b"Gateway Timeout",
}

_HEADERS = {
    405: [("Allow", "CONNECT")],
    407: [("Proxy-Authenticate", 'Basic realm="freebsd-splice", charset="UTF-8"')],
}


class RequestError(PlainError):
    """A request that is answered with an HTTP ``status``; the text is for the log."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(errno.EPROTO, reason)
        self.status = status


def http_connect(*, rules: Rules | None = None, passwords: Passwords | None = None) -> OpenTarget:
    """What a ``ProxyServer`` needs to be an HTTP proxy for CONNECT.

    ``rules`` says who may be connected to; none given: every global address.  ``passwords``: of
    those who may use it, by Basic authentication; None: everybody who can reach it.
    """
    chosen = rules or Rules()

    async def open_target(client: Client) -> tuple[socket.socket, tuple[bytes, bytes]]:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=client.handshake.largest)
        try:
            request = await client.handshake.read(partial(_next_request, connection))
            if passwords is not None:
                await client.handshake.in_time(
                    _authenticate(request, passwords), "has not had its password verified"
                )
            address = _target(request)
            refused = chosen.rejects_name(*address)
            if refused is not None:
                raise RefusedTargetError(address, refused)
            target = await client.dial(address, refusal=partial(chosen.refusal, address.host))
        except OSError as error:
            status = _status(error)
            if status is not None:
                await client.handshake.refuse(_refusal(connection, status))
            raise
        try:
            await client.handshake.send(_established(connection))
        except BaseException:
            target.close()
            raise
        return target, (connection.trailing_data[0], b"")

    return open_target


def _next_request(connection: h11.Connection, piece: bytes) -> h11.Request | None:
    """The request, once it is there whole."""
    try:
        connection.receive_data(piece)
        request = connection.next_event()
        if not isinstance(request, h11.Request):
            return None  # NEED_DATA
        if request.method == b"CONNECT" and not isinstance(
            connection.next_event(), h11.EndOfMessage
        ):
            raise RequestError(400, "a CONNECT request with a body")
    except h11.RemoteProtocolError as error:
        raise RequestError(error.error_status_hint, f"no HTTP request: {error}") from error
    return request


async def _authenticate(request: h11.Request, passwords: Passwords) -> None:
    credentials = [value for name, value in request.headers if name == b"proxy-authorization"]
    if len(credentials) != 1:
        raise RequestError(407, "no user and password" if not credentials else "two passwords")
    scheme, _, encoded = credentials[0].partition(b" ")
    try:
        user, _, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise RequestError(407, "credentials that can't be read") from None
    if scheme.lower() != b"basic" or not await passwords.verify(user, password):
        raise RequestError(407, f"wrong password, or no such user: {user!r}")


def _target(request: h11.Request) -> Address:
    if request.method != b"CONNECT":
        raise RequestError(405, f"the method {request.method.decode('ascii')}, not CONNECT")
    try:
        return parse_target(request.target.decode("ascii"))
    except ValueError as error:
        raise RequestError(400, f"no target: {error}") from None


def _status(error: OSError) -> int | None:
    """What the client is told; None: it has gone, or is to be told nothing."""
    if isinstance(error, RequestError):
        return error.status if error.status in _REASONS else 400
    if isinstance(error, RefusedTargetError):
        return 403
    if isinstance(error, TargetError):
        return 504 if error.errno == errno.ETIMEDOUT else 502
    if isinstance(error, HandshakeError):
        return {errno.ETIMEDOUT: 408, errno.EMSGSIZE: 431}.get(error.errno or 0)
    return None


def _refusal(connection: h11.Connection, status: int) -> bytes:
    """Without a body: an answer to HEAD must have none."""
    response = h11.Response(
        status_code=status,
        reason=_REASONS[status],
        headers=[("Content-Length", "0"), ("Connection", "close"), *_HEADERS.get(status, [])],
    )
    return b"".join(connection.send(event) or b"" for event in (response, h11.EndOfMessage()))


def _established(connection: h11.Connection) -> bytes:
    response = h11.Response(status_code=200, reason=b"Connection established", headers=[])
    return connection.send(response) or b""
