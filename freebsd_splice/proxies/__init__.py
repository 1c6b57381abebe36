"""Proxies built on ``Relay``: what ``python -m freebsd_splice`` runs.

What any proxy needs (accepting, connecting, limits, stopping, the log) is ``ProxyServer``.  What
makes it one proxy or another is a function that opens a client's target: ``socks5_connect``,
``by_server_name``, ``connect.http_connect`` (which takes h11: ``freebsd-splice[proxy]``), or one of
your own.  ``forwarder`` makes a TCP forwarder.
"""

from __future__ import annotations

from .._public import set_public_module
from ._addresses import Address
from ._connecting import RefusedTargetError, TargetError
from ._handshake import Handshake, HandshakeError
from ._limits import Limits
from ._listening import ListenError
from ._passwords import Passwords
from ._proxy_protocol import ProxyHeader
from ._routes import Routes
from ._rules import Rules, parse_rule
from ._server import Client, OpenTarget, ProxyServer
from .forward import forwarder
from .sni import by_server_name
from .socks5 import socks5_connect

__all__ = [
    "Address",
    "Client",
    "Handshake",
    "HandshakeError",
    "Limits",
    "ListenError",
    "OpenTarget",
    "Passwords",
    "ProxyHeader",
    "ProxyServer",
    "RefusedTargetError",
    "Routes",
    "Rules",
    "TargetError",
    "by_server_name",
    "forwarder",
    "parse_rule",
    "socks5_connect",
]

set_public_module(globals())
