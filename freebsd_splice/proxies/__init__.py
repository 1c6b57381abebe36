"""Proxies built on ``Relay``: what ``python -m freebsd_splice`` runs.

``forwarder`` makes the TCP forwarder.  What any proxy needs besides (accepting, connecting,
limits, stopping, the log) is ``ProxyServer``.
"""

from __future__ import annotations

from ._addresses import Address
from ._connecting import ListenError, TargetError
from ._server import Client, ProxyServer
from .forward import forwarder

__all__ = ["Address", "Client", "ListenError", "ProxyServer", "TargetError", "forwarder"]
