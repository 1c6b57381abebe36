"""Looking names and services up at name servers, whose answers say how long they hold."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from .._core.time_limits import check_seconds
from .._platform.threads import start as start_thread
from ._addresses import Address, Resolved, look_up
from ._connecting import PlainError
from ._fair_executor import FairExecutor
from ._kept_answers import KeptAnswers
from ._resolving import MOST_LOOK_UPS, numeric
from ._services import Member, Service, Target

if TYPE_CHECKING:
    from ._dns import Questions

Answer = TypeVar("Answer")

_PORT = 53

_TOO_LATE = "the name servers did not answer in time"


class NameServers:
    """Looks the targets of a proxy up at name servers, by dnspython, and keeps what they answer.

    An answer is used for its TTL, but for one second at least. While no newer one can be had, it is
    used for another hour, and the log says so once. dnspython comes with
    ``pip install "freebsd-splice[dns]"``.

    A ``NameServers`` belongs to one event loop.

    Args:
        servers: addresses of name servers, as ``"192.0.2.53"``, ``"192.0.2.53:8600"`` or
            ``"[2001:db8::53]:53"``, which are asked in their order for all names and services.
            Without any, the servers of the system (``/etc/resolv.conf``, read now) are asked for
            services alone, and names are left to the system.
        timeout: seconds for one look-up.

    Raises:
        ValueError: a server is not an address, the system has no server, or dnspython is missing.

    Example::

        registry = NameServers(["127.0.0.1:8600"], timeout=5)
        server = forwarder(Service("web.service.consul"), resolver=registry)
    """

    def __init__(self, servers: Iterable[str] = (), *, timeout: float = 10.0) -> None:
        check_seconds("timeout", timeout)
        parsed = [parse_server(server) for server in servers]
        self._questions = _questions(parsed, timeout)
        self._timeout = timeout
        #: Whether they are asked for all names, and not for services alone.
        self.are_for_names = bool(parsed)
        self._fair_executor: FairExecutor[object, Any] = FairExecutor(
            MOST_LOOK_UPS, MOST_LOOK_UPS, partial(start_thread, name="look up")
        )
        self._members = KeptAnswers(self._ask_for_members)
        self._addresses = KeptAnswers(self._ask_for_addresses)

    async def members(self, service: Service) -> tuple[Member, ...]:
        """Return where a service can be had; nothing where the name servers know no such service.

        Args:
            service: the service.

        Raises:
            OSError: the name servers don't answer, or something is short.
        """
        try:
            return await self._members.get(service, self._timeout)
        except asyncio.TimeoutError:
            raise PlainError(errno.EHOSTUNREACH, _TOO_LATE) from None

    async def look_up(self, address: Address, seconds: float, client: str = "") -> list[Resolved]:
        """Return all addresses that a name stands for.

        Args:
            address: the host and port.
            seconds: how long to wait.
            client: is not used; all clients ask for the targets of the proxy.

        Raises:
            asyncio.TimeoutError: there was no answer within ``seconds``.
            OSError: there is no such name, the name servers don't answer, or something is short.
        """
        found = numeric(address)
        if not found and ":" in address.host:  # IPv6 of one interface
            return look_up(address, socket.AI_NUMERICHOST)
        if not found:
            hosts = await self._addresses.get(address.host, seconds)
            found = tuple(each for host in hosts for each in numeric(Address(host, address.port)))
        if not found:
            raise PlainError(errno.EHOSTUNREACH, "the name servers know no address of it")
        return list(found)

    async def _ask_for_members(self, service: Service) -> tuple[tuple[Member, ...], float]:
        return await self._in_thread(service, partial(self._questions.members, service.name))

    async def _ask_for_addresses(self, host: str) -> tuple[tuple[str, ...], float]:
        return await self._in_thread(host, partial(self._questions.addresses, host))

    async def _in_thread(self, key: object, work: Callable[[], Answer]) -> Answer:
        try:
            # The questions have their own time limits: this one is for a turn that never comes.
            found: Answer = await self._fair_executor.do(key, "", work, 2 * self._timeout)
        except asyncio.TimeoutError:
            raise PlainError(errno.EHOSTUNREACH, _TOO_LATE) from None
        return found


def needed_for(
    targets: Iterable[Target], servers: Sequence[str] = (), *, timeout: float = 10.0
) -> NameServers | None:
    """Return what looks the targets up; None where the system alone can, and no server is given."""
    if servers or any(isinstance(each, Service) for each in targets):
        return NameServers(servers, timeout=timeout)
    return None


def parse_server(text: str) -> Address:
    """Return the address of a name server, on port 53 unless the text has another.

    Raises:
        ValueError: the message says what is wrong.
    """
    host, port = text, str(_PORT)
    if text.startswith("["):
        host, _, after = text[1:].partition("]")
        if after:
            port = after[1:] if after.startswith(":") else ""
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        ipaddress.ip_address(host)
        number = int(port) if port.isascii() and port.isdecimal() else 0
    except ValueError:
        number = 0
    if not 0 < number < 65536:
        raise ValueError(
            f"{text!r} is not the address of a name server: write 192.0.2.53, 192.0.2.53:8600 or "
            "[2001:db8::53]:8600"
        )
    return Address(host, number)


def _questions(servers: list[Address], timeout: float) -> Questions:
    try:
        from ._dns import Questions
    except ImportError as error:
        raise ValueError(
            f'srv: targets and name servers need dnspython: pip install "freebsd-splice[dns]" '
            f"({error})"
        ) from error
    return Questions(servers, timeout)
