"""Rules that say which targets the clients of a proxy may reach.

A client that chooses its target chooses it for the proxy's machine. Unless a rule says otherwise,
it must not reach what only that machine and its neighbours can reach.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Iterable
from typing import NamedTuple

from ._addresses import Resolved
from ._own_addresses import is_of_this_machine
from ._unix_sockets import AF_UNIX

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: IPv6 addresses that are IPv4 addresses in another spelling (IPv4-mapped, IPv4-compatible).
_SPELLINGS_OF_IPV4 = (ipaddress.IPv6Network("::ffff:0:0/96"), ipaddress.IPv6Network("::/96"))

#: IPv6 addresses that lead to an IPv4 address, and how many bits follow that one.
_WAYS_TO_IPV4 = (
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),  # NAT64
    (ipaddress.IPv6Network("::ffff:0:0:0/96"), 0),  # IPv4-translated: stateless translators (SIIT)
    (ipaddress.IPv6Network("2002::/16"), 80),  # 6to4
)

#: The networks of IPv6 that can be global. All others are link-local, site-local, multicast and the
#: like, or not in use yet; some versions of ``ipaddress`` call most of them global.
_GLOBAL_IPV6 = (ipaddress.IPv6Network("2000::/3"), ipaddress.IPv6Network("64:ff9b::/96"))

#: Networks in those, and in IPv4, that aren't global, though some versions of ``ipaddress`` say so.
_NOT_GLOBAL: tuple[_Network, ...] = (
    ipaddress.IPv4Network("168.63.129.16/32"),  # Azure: what serves the machine alone, on its host
    ipaddress.IPv4Network("192.0.0.0/24"),  # IETF protocol assignments
    ipaddress.IPv4Network("192.88.99.0/24"),  # 6to4 relays, abolished
    ipaddress.IPv4Network("224.0.0.0/4"),  # multicast
    ipaddress.IPv6Network("2001::/23"),  # IETF protocol assignments: Teredo, the nearest NAT, ...
    ipaddress.IPv6Network("2002::/16"),  # 6to4: its relays take it wherever they like
    ipaddress.IPv6Network("3fff::/20"),  # documentation
)

_ALL_PORTS = range(65536)

_LABEL = "(?!-)[a-z0-9_-]{1,63}(?<!-)"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")

#: The last label of names that the system takes for an IPv4 address: 127.0.0.1, 127.1, 0x7f000001.
_NUMBER = re.compile("[0-9]+|0x[0-9a-f]*")

#: Letters that the standard library's IDNA encodes in another way than today's browsers.
_AMBIGUOUS_LETTERS = frozenset("\u00df\u03c2\u200c\u200d")


class Rule(NamedTuple):
    """A rule that allows or denies some targets. ``parse_rule`` makes it.

    Attributes:
        text (str): the rule as it was written.
        allow (bool): True where the rule allows, False where it denies.
        ports (range): the ports that it is for.
        network: the ``ipaddress`` network that it is for; None where it is for names.
        suffix (str): ``.example.org`` where it is for the names that end with that; "" where it is
            for whatever a client asks for.
        itself (bool): whether the name ``example.org`` itself counts as ending with ``suffix``.
    """

    text: str
    allow: bool
    ports: range
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None
    suffix: str
    itself: bool

    def covers_name(self, name: str) -> bool:
        """Return whether the rule is for a name, whatever that resolves to."""
        if self.network is not None:
            return False
        # A numeric address with a zone could end like a name.
        if ":" in name:
            return not self.suffix
        return f".{name}".endswith(self.suffix) if self.itself else name.endswith(self.suffix)

    def covers_address(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        """Return whether the rule is for a network that has this address."""
        return self.network is not None and address in self.network


def parse_rule(text: str, allow: bool) -> Rule:
    """Return the rule that is written as ``WHAT`` or ``WHAT:PORTS``.

    WHAT is one of these:

    - ``*``: whatever a client asks for;
    - ``example.org``: that name and all names below it;
    - ``.example.org`` or ``*.example.org``: the names below it alone;
    - ``192.0.2.7`` or ``10.0.0.0/8``: an address or a network;
    - ``[2001:db8::1]`` or ``[2001:db8::/32]``: the same for IPv6; the brackets are needed where
      ports follow.

    PORTS is ``443`` or ``8000-8999``; without it the rule is for all ports.

    Args:
        text: the rule.
        allow: True for a rule that allows, False for one that denies.

    Raises:
        ValueError: the message says what is wrong.

    Example::

        parse_rule("example.org:443", True)
        parse_rule("10.0.0.0/8", allow=False)
    """
    if "://" in text:
        raise ValueError(f"{text!r}: not a URL: write host or host:port")
    what, ports_text = _split(text)
    ports = _ALL_PORTS if ports_text is None else _ports(text, ports_text)
    if what == "*":
        return Rule(text, allow, ports, None, "", True)
    if ":" in what or "/" in what:
        return Rule(text, allow, ports, _network(text, what), "", False)
    below_alone = what.startswith((".", "*."))
    name = _plain_name(what[what.index(".") + 1 :] if below_alone else what)
    if _NUMBER.fullmatch(name.rpartition(".")[2]):
        return Rule(text, allow, ports, _network(text, what), "", False)
    if not _NAME.fullmatch(name):
        raise ValueError(f"{text!r}: {what!r} is neither a host name nor a network")
    if _AMBIGUOUS_LETTERS & set(what):
        raise ValueError(f"{text!r}: {what!r} can be encoded in two ways: write it as xn--...")
    return Rule(text, allow, ports, None, f".{name}", not below_alone)


class Rules:
    """Rules in their order; the first rule that decides wins.

    A rule that denies decides wherever it matches. A rule that allows and names a network decides
    as well. A rule that allows a name, or ``*``, decides only for global addresses that aren't this
    machine's own: the owner of a name can point it at 127.0.0.1. Where no rule decides, those are
    allowed, and all others refused: loopback, private, link-local, multicast and the like, and the
    addresses of this machine, on which it may serve what the network around it can't reach.

    Rules for names are about what the client asked for. A client that knows the address can do
    without the name: only a rule for the network keeps everybody out of it.

    No rule allows 0.0.0.0 and ``::``: systems connect them to the machine itself, while rules that
    keep clients out of the machine name 127.0.0.0/8 and ``::1``.

    Args:
        rules: the rules, made by ``parse_rule``; none: all global addresses are allowed.

    Example::

        rules = Rules([parse_rule("example.org:443", True), parse_rule("*", False)])
        ProxyServer(socks5_connect(rules=rules))
    """

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self._rules = tuple(rules)

    def refusal(self, host: str, resolved: Resolved) -> str | None:
        """Return why a client may not be connected to an address; None: it may.

        An IPv6 address that is another spelling of an IPv4 address is judged as that one. An
        address of NAT64, SIIT or 6to4 must be allowed both as the IPv4 address in it and as itself.

        Args:
            host: the host that the client asked for.
            resolved: one of the addresses that the host stands for.

        Raises:
            OSError: (EMFILE, ENFILE, ENOBUFS, ENOMEM) the system could not be asked whether the
                address is this machine's own.
        """
        if resolved.family == AF_UNIX:
            return "a Unix socket, which no rule allows"
        name = _plain_name(host)
        text, port = resolved.address[:2]
        address = ipaddress.ip_address(text.partition("%")[0])
        reasons = (self._refusal(name, judged, port) for judged in _judged_as(address))
        return next(filter(None, reasons), None)

    def rejects_name(self, host: str, port: int) -> str | None:
        """Return why a host is refused whatever it resolves to, so that it needs no look-up.

        None: its addresses decide.

        Args:
            host: the host that the client asked for.
            port: the port that the client asked for.
        """
        name = _plain_name(host)
        for rule in self._rules:
            if port not in rule.ports:
                continue
            # A denied network only refuses more. An allowed network may have the address.
            if rule.allow and (rule.network is not None or rule.covers_name(name)):
                return None
            if not rule.allow and rule.covers_name(name):
                return _denied(rule)
        return None

    def _refusal(self, name: str, address: _Address, port: int) -> str | None:
        if address.is_unspecified:
            return f"{address} stands for this machine, which no rule allows"
        closed = _why_closed(address)
        for rule in self._rules:
            if port not in rule.ports:
                continue
            named, numbered = rule.covers_name(name), rule.covers_address(address)
            if not rule.allow and (named or numbered):
                return _denied(rule)
            if rule.allow and (numbered or (named and closed is None)):
                return None
        if closed is None:
            return None
        return f"{address} is {closed}; a rule that names its network would allow it"


def _denied(rule: Rule) -> str:
    return f"denied by the rule {rule.text}"


def _judged_as(address: _Address) -> list[_Address]:
    """Return the addresses that must all be allowed for this one to be allowed."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    for network in _SPELLINGS_OF_IPV4:
        if address in network and int(address) > 1:  # not :: or ::1
            return [_ipv4_in(address, 0)]
    for network, bits_after in _WAYS_TO_IPV4:
        if address in network:
            return [_ipv4_in(address, bits_after), address]
    return [address]


def _ipv4_in(address: _Address, bits_after: int) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(int(address) >> bits_after & 0xFFFFFFFF)


def _why_closed(address: _Address) -> str | None:
    """Return what is special about an address that only a rule for its network opens."""
    if not _is_global(address):
        return "not a global address"
    if is_of_this_machine(address):
        return "an address of this machine"
    return None


def _is_global(address: _Address) -> bool:
    if address.version == 6 and not any(address in network for network in _GLOBAL_IPV6):
        return False
    return address.is_global and not any(address in network for network in _NOT_GLOBAL)


def _plain_name(host: str) -> str:
    """Return the name as it is looked up: ``getaddrinfo`` encodes it in the same way.

    A name that can't be encoded can't be looked up, and is returned as it is.
    """
    with contextlib.suppress(UnicodeError):
        host = host.encode("idna").decode("ascii")
    return host.lower().rstrip(".")


def _split(text: str) -> tuple[str, str | None]:
    """Return WHAT, without brackets, and PORTS, None where there are none."""
    if not text.startswith("["):
        if text.count(":") > 1:
            return text, None
        what, colon, ports = text.partition(":")
        return what, ports if colon else None
    inside, closing, rest = text[1:].partition("]")
    length, colon, ports = rest.partition(":")
    if not closing or (length and not length.startswith("/")):
        raise ValueError(f"{text!r} is not a rule: write [v6], [v6]/64 or [v6/64], and :ports")
    if ":" not in inside:
        raise ValueError(f"{text!r}: there is no IPv6 address between the brackets")
    return inside + length, ports if colon else None


def _ports(text: str, ports: str) -> range:
    match = re.fullmatch("([0-9]{1,5})(?:-([0-9]{1,5}))?", ports)
    if match:
        first = int(match[1])
        last = int(match[2] or first)
        if 1 <= first <= last <= 65535:
            return range(first, last + 1)
    raise ValueError(f"{text!r}: the ports must be one, as 443, or from low to high, as 8000-8999")


def _network(text: str, what: str) -> _Network:
    start, slash, length = what.partition("/")
    try:
        address = ipaddress.ip_address(start)
    except ValueError:
        raise ValueError(f"{text!r}: {start!r} is not an IP address") from None
    if "%" in start:
        raise ValueError(f"{text!r}: a rule is for every zone: leave %... out")
    size = address.max_prefixlen
    if slash and not (re.fullmatch("[0-9]{1,3}", length) and int(length) <= size):
        hint = "; ports follow the brackets, as in [::1]:443" if ":" in length else ""
        raise ValueError(f"{text!r}: the prefix length must be from 0 to {size}{hint}")
    network = ipaddress.ip_network(f"{start}/{length if slash else size}", strict=False)
    if network.network_address != address:
        raise ValueError(f"{text!r}: not the start of a network of that size: write {network}")
    _check_spelling(text, network)
    return network


def _check_spelling(text: str, network: _Network) -> None:
    """Refuse a network whose addresses are judged as IPv4: its rule would never be asked."""
    if network.prefixlen >= 96:
        last = network.broadcast_address
        if last not in _judged_as(last):
            start = _ipv4_in(network.network_address, 0)
            raise ValueError(f"{text!r}: write it as IPv4, {start}/{network.prefixlen - 96}")
