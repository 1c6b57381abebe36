"""Proxies built on ``Relay``; ``python -m freebsd_splice`` runs them as programs.

``ProxyServer`` does what any proxy needs: accepting, connecting, limits, stopping, the log. A
function that opens a client's target makes it one proxy or another: ``socks5_connect``,
``by_server_name``, ``connect.http_connect`` (which needs h11: ``freebsd-splice[proxy]``), or one of
your own (``OpenTarget``). ``forwarder`` makes a TCP forwarder::

    server = ProxyServer(socks5_connect(), idle_timeout=300)
    server.listen(Address("127.0.0.1", 1080))
    asyncio.run(server.run())          # until server.stop()
"""

from __future__ import annotations

from .._public import set_public_module
from ._addresses import Address, Resolved, SocketAddress, UnixAddress
from ._client import Client, OpenTarget
from ._client_hello import ClientHello
from ._connecting import LookUp, Prepare, Refusal, RefusedTargetError, TargetError
from ._handshake import Handshake, HandshakeError
from ._limits import Limits
from ._listening import ListenError
from ._name_servers import NameServers
from ._passwords import Passwords
from ._proxy_protocol import ProxyHeader
from ._routes import Routes, RoutesError
from ._rules import Rule, Rules, parse_rule
from ._server import ProxyServer
from ._services import Member, Service
from .forward import forwarder
from .sni import by_server_name
from .socks5 import socks5_connect

__all__ = [
    "Address",
    "Client",
    "ClientHello",
    "Handshake",
    "HandshakeError",
    "Limits",
    "ListenError",
    "LookUp",
    "Member",
    "NameServers",
    "OpenTarget",
    "Passwords",
    "Prepare",
    "ProxyHeader",
    "ProxyServer",
    "Refusal",
    "RefusedTargetError",
    "Resolved",
    "Routes",
    "RoutesError",
    "Rule",
    "Rules",
    "Service",
    "SocketAddress",
    "TargetError",
    "UnixAddress",
    "by_server_name",
    "forwarder",
    "parse_rule",
    "socks5_connect",
]

set_public_module(globals())
