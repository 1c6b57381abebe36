"""The HTTP proxy for CONNECT of HTTP/1.1 (RFC 9110, 9.3.6); h11 parses the requests.

h11 comes with ``pip install "freebsd-splice[proxy]"``. Example::

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

from ._addresses import Address, parse_authority
from ._client import Client, OpenTarget
from ._connecting import PlainError, RefusedTargetError, TargetError
from ._handshake import HandshakeError
from ._log import MOST_OF_A_REASON, cut
from ._passwords import Passwords
from ._rules import Rules

#: The reason phrases that clients are told. The exact reason is for the log alone, as it can name
#: what is behind the proxy.
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

#: The answer to a request for anything but a tunnel, such as one for an http:// URL.
_ONLY_CONNECT = b"""\
This proxy serves the method CONNECT alone: it opens tunnels, and fetches no http:// URLs itself.
Ask for an https:// URL, or have your client open a tunnel for http:// too, as curl does:

    curl --proxytunnel --proxy http://PROXY:PORT http://HOST/
"""

#: The most blanks in a row. The time that h11 takes for a wrong header line is quadratic in them.
_MOST_BLANKS = 256

#: Patterns that no request has. Each is found with the byte that completes it, and not before.
_NEVER = [
    (re.compile(rb"[\0-\x08\x0b\x0c\x0e-\x1f\x7f]|\r[^\n]"), "a control character"),
    # RFC 9112, 5.2, says to refuse these; h11 would turn many of them into blanks in a row.
    (re.compile(rb"\n[ \t]"), "a folded header line"),
    (re.compile(rb"(?<![ \t])[ \t]{%d}" % (_MOST_BLANKS + 1)), "too many blanks in a row"),
]

#: Empty lines before a request, which are ignored (RFC 9112, 2.2).
_EMPTY_LINES = re.compile(rb"\A(?:\r?\n)+")

#: The end of the headers, as h11 finds it.
_END = re.compile(rb"\n\r?\n")

_MOST_HEADERS = 100
_OTHER_LINES = 2  # the request line and the empty line


class RequestError(PlainError):
    """A request is answered with an HTTP ``status``; the text is for the log."""

    def __init__(self, status: int, reason: str, body: bytes = b"") -> None:
        number = errno.EACCES if status == 407 else errno.EPROTO  # as for the other proxies
        super().__init__(number, cut(reason, MOST_OF_A_REASON))
        self.status = status
        #: Text that tells the client's user what to do.
        self.body = body


def http_connect(*, rules: Rules | None = None, passwords: Passwords | None = None) -> OpenTarget:
    """Return the function that makes a ``ProxyServer`` an HTTP proxy for CONNECT.

    The log names the user and the host and port that the client asked for. Other methods than
    CONNECT are answered with 405 and a text that says what to do; docs/connect.md has all answers.

    Args:
        rules: which targets clients may reach; None: every global address (see ``Rules``).
        passwords: who may use the proxy, by Basic authentication; None: everybody who can reach it.

    Example::

        server = ProxyServer(http_connect(passwords=Passwords("/etc/proxy.passwords")))
        server.listen(Address("127.0.0.1", 3128))
        asyncio.run(server.run())          # until server.stop()
    """
    chosen = rules or Rules()

    async def open_target(client: Client) -> tuple[socket.socket, tuple[bytes, bytes]]:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=client.handshake.largest)
        try:
            request = await client.handshake.read(RequestReader(connection).feed)
            if passwords is not None:
                with client.handshake.during("while verifying its password"):
                    client.user = await client.handshake.in_time(
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
                body = error.body if isinstance(error, RequestError) else b""
                await client.handshake.refuse(_refusal(connection, status, body))
            raise
        try:
            await client.handshake.send(_established(connection))
        except BaseException:
            target.close()
            raise
        return target, (connection.trailing_data[0], b"")

    return open_target


class RequestReader:
    """Feeds h11 with pieces of any size, as long as they can be the head of a request.

    Its work for all pieces together, and that of h11, is in proportion to their bytes, whatever the
    bytes are.
    """

    def __init__(self, connection: h11.Connection) -> None:
        self._connection = connection
        #: Whether the request line has begun, and what may be half of an empty line before it.
        self._begun = False
        self._half_a_line = b""
        #: The last bytes, as many as can be the start of a pattern that is completed later.
        self._last = b""
        self._lines = 0

    def feed(self, piece: bytes) -> h11.Request | None:
        """Return the request once it is complete; None: more bytes are needed.

        Raises:
            RequestError: the bytes can't be a request that is served.
        """
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
                self._connection.next_event()  # EndOfMessage, after which h11 expects a tunnel
        except h11.RemoteProtocolError as error:
            # After the colon h11 quotes the line, which can have a password in it.
            reason = f"not an HTTP request: {str(error).partition(':')[0]}"
            raise RequestError(error.error_status_hint, reason) from error
        return request

    def _without_empty_lines(self, piece: bytes) -> bytes:
        """Return what follows empty lines; the handshake's time and size bound their number."""
        piece = _EMPTY_LINES.sub(b"", self._half_a_line + piece)
        self._half_a_line = piece if piece == b"\r" else b""
        self._begun = piece not in (b"", b"\r")
        return piece if self._begun else b""

    def _check(self, piece: bytes) -> None:
        seen = self._last + piece
        end = _END.search(seen)
        head = seen if end is None else seen[: end.end()]  # what follows is for the target
        for pattern, name in _NEVER:
            if pattern.search(head):
                raise RequestError(400, f"not an HTTP request: {name}")
        self._lines += head.count(b"\n", len(self._last))
        if self._lines > _MOST_HEADERS + _OTHER_LINES:
            raise RequestError(431, f"more than {_MOST_HEADERS} header lines")
        self._last = head[-_MOST_BLANKS:]


def _refuse_body(request: h11.Request) -> None:
    """Refuse a request with a body: all that follows the request is for the target."""
    for name, value in request.headers:
        # h11 has checked that a length is digits; there may be more of them than ``int`` takes.
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0")):
            raise RequestError(400, "a CONNECT request with a body")


async def _authenticate(request: h11.Request, passwords: Passwords, client: str) -> str:
    """Return the user, whose password was right."""
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
    return user


def _target(request: h11.Request) -> Address:
    if request.method != b"CONNECT":
        reason = f"client asks for {request.method.decode('ascii')}: only CONNECT is served"
        body = b"" if request.method == b"HEAD" else _ONLY_CONNECT  # an answer to HEAD has none
        raise RequestError(405, reason, body)
    try:
        return parse_authority(request.target.decode("ascii"))
    except ValueError as error:
        raise RequestError(400, f"not a valid target: {error}") from None


def _status(error: OSError) -> int | None:
    """Return the status that the client is told; None: it is told nothing, or has gone."""
    if isinstance(error, RequestError):
        return error.status if error.status in _REASONS else 400
    if isinstance(error, RefusedTargetError):
        return 403
    if isinstance(error, TargetError):
        return 504 if error.errno == errno.ETIMEDOUT else 502
    if isinstance(error, HandshakeError):
        return {errno.ETIMEDOUT: 408, errno.EMSGSIZE: 431}.get(error.errno or 0)
    return None


def _refusal(connection: h11.Connection, status: int, body: bytes) -> bytes:
    headers = [("Content-Length", str(len(body))), ("Connection", "close")]
    if body:
        headers.append(("Content-Type", "text/plain; charset=utf-8"))
    response = h11.Response(
        status_code=status,
        reason=_REASONS[status],
        headers=[*headers, *_HEADERS.get(status, [])],
    )
    events = (response, h11.Data(data=body), h11.EndOfMessage())
    return b"".join(connection.send(event) or b"" for event in events)


def _established(connection: h11.Connection) -> bytes:
    response = h11.Response(status_code=200, reason=b"Connection established", headers=[])
    return connection.send(response) or b""
