"""The TCP forwarder, which joins every client to a target."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence

from ._client import Client, OpenTarget
from ._connecting import TargetError
from ._limits import Limits
from ._name_servers import NameServers, needed_for
from ._proxy_headers import Network
from ._proxy_protocol import Version
from ._server import ProxyServer
from ._services import Target
from ._targets import RETRY_AFTER, Targets
from ._transparent import bind_as


def forwarder(
    target: Target | Sequence[Target],
    *,
    retry_after: float = RETRY_AFTER,
    resolver: NameServers | None = None,
    transparent: bool = False,
    connect_timeout: float = 10.0,
    idle_timeout: float | None = None,
    grace: float = 10.0,
    keepalive: bool = True,
    buffer_size: int | None = None,
    limits: Limits | None = None,
    accept_proxy: Iterable[str | Network] = (),
    send_proxy: Version | None = None,
) -> ProxyServer:
    """Return a ``ProxyServer`` that joins every client to a target.

    Args:
        target: the target, or several of them. The name of a target is looked up anew for each
            connection, and the first of its addresses that answers is taken. Of several targets
            each connection gets the next. A ``Service`` is one of those that its SRV records name.
        retry_after: seconds for which a target that can't be connected to is skipped, where there
            are others.
        resolver: looks the targets up; None: the system looks names up, and ``NameServers()``
            services.
        transparent: connect from the client's own address. Only FreeBSD can do that, for root, and
            the answers need a way back to this machine (``docs/forward.md``).
        connect_timeout: seconds for connecting to one target, as for ``ProxyServer``.
        idle_timeout: seconds without a byte either way, as for ``ProxyServer``.
        grace: seconds for live connections after ``stop``, as for ``ProxyServer``.
        keepalive: whether SO_KEEPALIVE is set, as for ``ProxyServer``.
        accept_proxy: networks whose clients must begin with a PROXY header, as for ``ProxyServer``.
        send_proxy: the PROXY header for the target, as for ``ProxyServer``.
        buffer_size: bytes of each socket's two buffers, as for ``ProxyServer``.
        limits: how much clients may take, as for ``ProxyServer``.

    Example::

        server = forwarder(Address("backend.example", 80), idle_timeout=300)
        server.listen(Address("", 8080))
        asyncio.run(server.run())          # until server.stop()
    """
    targets = [target] if isinstance(target, Target) else list(target)
    if not targets or not all(isinstance(each, Target) for each in targets):
        raise TypeError(f"target must be an Address, a Service or a list of them, not {target!r}")
    opener = to_targets(
        targets,
        retry_after=retry_after,
        resolver=resolver or needed_for(targets, timeout=connect_timeout),
        transparent=transparent,
    )
    return ProxyServer(
        opener,
        connect_timeout=connect_timeout,
        idle_timeout=idle_timeout,
        grace=grace,
        keepalive=keepalive,
        buffer_size=buffer_size,
        limits=limits,
        accept_proxy=accept_proxy,
        send_proxy=send_proxy,
    )


def to_targets(
    targets: Sequence[Target],
    *,
    retry_after: float = RETRY_AFTER,
    resolver: NameServers | None = None,
    transparent: bool = False,
) -> OpenTarget:
    """Return the function that makes a ``ProxyServer`` a forwarder."""
    chosen = Targets(targets, retry_after, resolver)
    return _Transparent(chosen) if transparent else _ToTargets(chosen)


class _ToTargets:
    """Joins every client to a target, as ``OpenTarget`` and as ``Direct``."""

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self.next_known = targets.next_known
        self.take = targets.take
        self.is_there = targets.is_there

    async def __call__(self, client: Client) -> tuple[socket.socket, tuple[bytes, bytes]]:
        return await self._targets.dial(client), (b"", b"")

    async def after(
        self, client: Client, number: int, error: TargetError
    ) -> tuple[socket.socket, tuple[bytes, bytes]]:
        return await self._targets.dial(client, after=(number, error)), (b"", b"")


class _Transparent:
    """Joins every client to a target, from the client's own address."""

    def __init__(self, targets: Targets) -> None:
        self._targets = targets

    async def __call__(self, client: Client) -> tuple[socket.socket, tuple[bytes, bytes]]:
        return await self._targets.dial(client, prepare=bind_as(client.address)), (b"", b"")
