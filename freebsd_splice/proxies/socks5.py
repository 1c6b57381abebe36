"""The SOCKS proxy: CONNECT of SOCKS 5 (RFC 1928), with or without passwords (RFC 1929).

::

    server = ProxyServer(socks5_connect(rules=Rules()))
    server.listen(Address("127.0.0.1", 1080))
    asyncio.run(server.run())
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from ._connecting import RefusedTargetError, TargetError
from ._handshake import Handshake, HandshakeError
from ._passwords import Passwords
from ._rules import Rules
from ._server import Client, OpenTarget
from ._socks5_messages import (
    CONNECT,
    CREDENTIALS,
    NO_ACCEPTABLE_METHOD,
    NO_AUTHENTICATION,
    MalformedError,
    Reply,
    Request,
    credentials_reply,
    method_reply,
    read_credentials,
    read_greeting,
    read_request,
    reply,
    reply_for,
)

Message = TypeVar("Message", bound="tuple[object, ...]")


def socks5_connect(*, rules: Rules | None = None, passwords: Passwords | None = None) -> OpenTarget:
    """What a ``ProxyServer`` needs to be a SOCKS 5 proxy for CONNECT.

    ``rules`` says who may be connected to; none given: every global address.  ``passwords``: of
    those who may use it; None: everybody who can reach it.
    """
    chosen = rules or Rules()

    async def open_target(client: Client) -> tuple[socket.socket, tuple[bytes, bytes]]:
        handshake = client.handshake
        await _agree_on_method(handshake, NO_AUTHENTICATION if passwords is None else CREDENTIALS)
        if passwords is not None:
            await _authenticate(handshake, passwords, client.counts_as)
        request, _ = await _read(handshake, read_request)
        client.requested = request.address
        try:
            target = await _connect(client, request, chosen)
        except TargetError as error:
            await handshake.refuse(reply(reply_for(error), None))
            raise
        try:
            await handshake.send(reply(Reply.SUCCEEDED, target.getsockname()))
        except BaseException:
            target.close()
            raise
        return target, (bytes(handshake.received), b"")

    return open_target


async def _agree_on_method(handshake: Handshake, method: int) -> None:
    methods, _ = await _read(handshake, read_greeting)
    if method not in methods:
        await handshake.refuse(method_reply(NO_ACCEPTABLE_METHOD))
        wanted = "a user and a password" if method == CREDENTIALS else "no authentication"
        raise HandshakeError(errno.EACCES, f"client does not offer {wanted}")
    await handshake.send(method_reply(method))


async def _authenticate(handshake: Handshake, passwords: Passwords, client: str) -> None:
    user, password, _ = await _read(handshake, read_credentials)
    with handshake.during("while verifying its password"):
        verifying = passwords.verify(user, password, client)
        verified = await handshake.in_time(verifying, "the password was not verified")
    if not verified:
        await handshake.refuse(credentials_reply(False))
        raise HandshakeError(errno.EACCES, f"wrong password, or no such user: {user!r}")
    await handshake.send(credentials_reply(True))


async def _connect(client: Client, request: Request, rules: Rules) -> socket.socket:
    if request.command != CONNECT:
        await client.handshake.refuse(reply(Reply.COMMAND_NOT_SUPPORTED, None))
        raise HandshakeError(errno.EOPNOTSUPP, f"client asks for command {request.command}")
    refused = rules.rejects_name(*request.address)
    if refused is not None:
        raise RefusedTargetError(request.address, refused)
    return await client.dial(request.address, refusal=partial(rules.refusal, request.address.host))


async def _read(handshake: Handshake, message: Callable[[bytes], Message | None]) -> Message:
    """The next message, of which what comes last says how long it was."""
    try:
        found = await handshake.read(lambda _: message(bytes(handshake.received)))
    except MalformedError as error:
        if error.reply is not None:
            await handshake.refuse(reply(error.reply, None))
        raise HandshakeError(errno.EPROTO, str(error)) from None
    used = found[-1]
    assert isinstance(used, int)
    handshake.take(used)
    return found
