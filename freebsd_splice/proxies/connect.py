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
import re
import socket
from functools import partial

import h11

from ._addresses import Address, parse_target
from ._connecting import PlainError, RefusedTargetError, TargetError
from ._handshake import HandshakeError
from ._log import MOST_OF_A_REASON, cut
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

#: Blanks in a row: what h11 does with a header line is quadratic in them where the line is wrong.
_MOST_BLANKS = 256

#: What no request has; none of it is anything before the byte that completes it.
_NEVER = [
    (re.compile(rb"[\0-\x08\x0b\x0c\x0e-\x1f\x7f]|\r[^\n]"), "a control character"),
    # RFC 9112, 5.2, has it refused; h11 would make blanks in a row of many of them.
    (re.compile(rb"\n[ \t]"), "a folded header line"),
    (re.compile(rb"(?<![ \t])[ \t]{%d}" % (_MOST_BLANKS + 1)), "too many blanks in a row"),
]

#: Empty lines before a request, which are ignored (RFC 9112, 2.2).
_EMPTY_LINES = re.compile(rb"\A(?:\r?\n)+")

#: What h11 takes for the end of the headers.
_END = re.compile(rb"\n\r?\n")

_MOST_HEADERS = 100
_OTHER_LINES = 2  # the request's, and the empty one


class RequestError(PlainError):
    """A request that is answered with an HTTP ``status``; the text is for the log."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(errno.EPROTO, cut(reason, MOST_OF_A_REASON))
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
            request = await client.handshake.read(RequestReader(connection).feed)
            if passwords is not None:
                with client.handshake.during("while verifying its password"):
                    await client.handshake.in_time(
                        _authenticate(request, passwords, client.counts_as),
                        "the password was not verified",
                    )
            address = client.requested = _target(request)
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


class RequestReader:
    """Gives h11 what comes, in pieces of any size, as long as it can be the head of a request.

    What it does for all the pieces together is in proportion to their bytes, whatever they are, and
    so is what h11 does then.
    """

    def __init__(self, connection: h11.Connection) -> None:
        self._connection = connection
        #: Whether its first line has begun, and what may be half of an empty line before that.
        self._begun = False
        self._half_a_line = b""
        #: As much of what has come as can be the start of something that is completed later.
        self._last = b""
        self._lines = 0

    def feed(self, piece: bytes) -> h11.Request | None:
        """The request, once it is there whole.  Raises RequestError."""
        if not self._begun:
            piece = self._without_empty_lines(piece)
            if not piece:
                return None
        self._check(piece)
        try:
            self._connection.receive_data(piece)
            request = self._connection.next_event()
            if not isinstance(request, h11.Request):
                return None  # NEED_DATA
            if request.method == b"CONNECT":
                _refuse_body(request)
                self._connection.next_event()  # EndOfMessage, with which h11 expects a tunnel
        except h11.RemoteProtocolError as error:
            # Behind the colon h11 quotes the line, which can have a password in it.
            reason = f"not an HTTP request: {str(error).partition(':')[0]}"
            raise RequestError(error.error_status_hint, reason) from error
        return request

    def _without_empty_lines(self, piece: bytes) -> bytes:
        """What is behind them; how many there may be is the handshake's time and size."""
        piece = _EMPTY_LINES.sub(b"", self._half_a_line + piece)
        self._half_a_line = piece if piece == b"\r" else b""
        self._begun = piece not in (b"", b"\r")
        return piece if self._begun else b""

    def _check(self, piece: bytes) -> None:
        seen = self._last + piece
        end = _END.search(seen)
        head = seen if end is None else seen[: end.end()]  # what is behind it is the target's
        for pattern, name in _NEVER:
            if pattern.search(head):
                raise RequestError(400, f"not an HTTP request: {name}")
        self._lines += head.count(b"\n", len(self._last))
        if self._lines > _MOST_HEADERS + _OTHER_LINES:
            raise RequestError(431, f"more than {_MOST_HEADERS} header lines")
        self._last = head[-_MOST_BLANKS:]


def _refuse_body(request: h11.Request) -> None:
    """What is behind the request is the target's, all of it, whatever segments it comes in."""
    for name, value in request.headers:
        # h11 has seen to it that a length is digits; there may be more than ``int`` takes.
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0")):
            raise RequestError(400, "a CONNECT request with a body")


async def _authenticate(request: h11.Request, passwords: Passwords, client: str) -> None:
    credentials = [value for name, value in request.headers if name == b"proxy-authorization"]
    if len(credentials) != 1:
        raise RequestError(407, "no user and password" if not credentials else "two passwords")
    scheme, _, encoded = credentials[0].partition(b" ")
    try:
        user, _, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise RequestError(407, "credentials that can't be read") from None
    if scheme.lower() != b"basic" or not await passwords.verify(user, password, client):
        raise RequestError(407, f"wrong password, or no such user: {user!r}")


def _target(request: h11.Request) -> Address:
    if request.method != b"CONNECT":
        raise RequestError(405, f"the method {request.method.decode('ascii')}, not CONNECT")
    try:
        return parse_target(request.target.decode("ascii"))
    except ValueError as error:
        raise RequestError(400, f"not a valid target: {error}") from None


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
