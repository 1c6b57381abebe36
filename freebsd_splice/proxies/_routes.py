"""The routes of the ``sni`` proxy, which say where each client goes: a TOML file, read once.

::

    default = "127.0.0.1:8443"                  # optional: for clients without a route

    [[route]]
    name = "www.example.org"
    target = "10.0.0.5:443"

    [[route]]
    name = "*.example.org"                      # any name below, by one or more labels
    alpn = ["h2"]                               # optional: if the client offers one of these
    target = ["10.0.0.6:443", "10.0.0.7:443"]

A target, and the default, is one address (``host:port``, ``[v6]:port``, or a port of 127.0.0.1), a
service (``srv:_https._tcp.example.org``), or a list of them. Names are the same in upper and lower
case, with and without a dot at the end, and as Unicode and as A-labels (``xn--…``, by Python's
``idna`` codec).

A client gets the route with its own name, else the one with the longest wildcard; among those with
the same name one for the protocols that it offers before one for any, and then the first in the
file. A route for protocols that the client doesn't offer is skipped.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, NamedTuple

from ._client_hello import ClientHello
from ._log import fields, logger
from ._mistakes import Found, Mistakes, did_you_mean, mistakes_of
from ._services import Target, parse_target_or_service

#: What a document of routes has.
DOCUMENT_KEYS = ("default", "route")

_NAME = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*")


class RoutesError(Mistakes):
    """A file of routes can't be used; the text names the file and the route, and says why.

    Attributes:
        mistakes: a text for each mistake in the file; the error's own text is the first.
    """


class Routes:
    """Where clients go, by the server name that they ask for and the protocols that they offer.

    The routes are the tables ``[[route]]`` of a TOML file::

        default = "127.0.0.1:8443"                  # optional: for clients without a route

        [[route]]
        name = "www.example.org"
        target = "10.0.0.5:443"

        [[route]]
        name = "*.example.org"                      # any name below, by one or more labels
        alpn = ["h2"]                               # optional: if the client offers one of these
        target = ["10.0.0.6:443", "10.0.0.7:443"]

    A client gets the route with its own name, else the one with the longest wildcard. Among those
    with the same name, one for the protocols that it offers comes before one for any. A route for
    an address is logged as a warning: clients ask for host names alone (RFC 6066, 3).

    Args:
        document: the parsed file, a dictionary with ``default`` and ``route``.

    Raises:
        ValueError: the document can't be used; the message says what is wrong.

    Example::

        ProxyServer(by_server_name(Routes.load("/etc/proxy.toml")))
    """

    def __init__(self, document: dict[str, Any]) -> None:
        found = Found()
        self._default: tuple[Target, ...] | None = None
        self._routes: dict[str, list[_Route]] = {}
        with found.at():
            _check_keys(document, required=set(), optional=set(DOCUMENT_KEYS))
        if "default" in document:
            with found.at("default"):
                self._default = _parse_targets(document["default"])
        with found.at():
            self._routes = _by_name(document.get("route", []))
        if not (found.mistakes or self._routes or self._default is not None):
            raise ValueError("there is neither a route nor a default")
        found.check()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Routes:
        """Read a file of routes.

        Needs tomli on Python 3.10: ``pip install "freebsd-splice[proxy]"``.

        Args:
            path: the TOML file.

        Raises:
            RoutesError: the file can't be used; the text names the file, and says why.
            OSError: the file can't be read.
        """
        parser = toml_parser()
        with open(path, "rb") as file:
            try:
                return cls(parser.load(file))
            except ValueError as error:
                name = os.fspath(path)
                raise RoutesError(*(f"{name}: {each}" for each in mistakes_of(error))) from error
            except RecursionError:  # tomllib's own way to say so, before Python 3.14
                raise RoutesError(f"{os.fspath(path)}: too deeply nested") from None

    def find(self, hello: ClientHello) -> tuple[Target, ...] | None:
        """Return the targets for a client, in the file's order; None: there is no route for it.

        Args:
            hello: what the client asks for and offers.
        """
        for name in _names_for(hello.server_name):
            for route in self._routes.get(name, []):
                if not route.protocols or not route.protocols.isdisjoint(hello.protocols):
                    return route.targets
        return self._default

    def targets(self) -> list[Target]:
        """Return all targets of all routes, the default's included."""
        routes = (route for same_name in self._routes.values() for route in same_name)
        return [*(self._default or ()), *(target for route in routes for target in route.targets)]


class _Route(NamedTuple):
    name: str
    #: Empty: the route is for any protocol.
    protocols: frozenset[str]
    targets: tuple[Target, ...]


def toml_parser() -> Any:
    """Return ``tomllib``, or ``tomli``, which it was before Python 3.11.

    Raises:
        RoutesError: tomli is not installed.
    """
    try:
        return import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    except ModuleNotFoundError as error:
        advice = 'pip install "freebsd-splice[proxy]"'
        raise RoutesError(f"TOML can't be read without {error.name}: {advice}") from error


def _names_for(name: str | None) -> Iterator[str]:
    """Yield the names of routes that are for a server name, the best first."""
    if name is None:
        return
    yield name
    _, _, parent = name.partition(".")
    while parent:
        yield f"*.{parent}"
        _, _, parent = parent.partition(".")


def _by_name(tables: Any) -> dict[str, list[_Route]]:
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ValueError("routes must be written as [[route]]")
    routes: dict[str, list[_Route]] = {}
    found = Found()
    for number, table in enumerate(tables, 1):
        name = f" ({table['name']!r})" if "name" in table else ""
        with found.at(f"route {number}{name}"):
            route = _parse_route(table)
            _warn_of_address(number, route.name)
            same_name = routes.setdefault(route.name, [])
            if any(other.protocols == route.protocols for other in same_name):
                raise ValueError("another route has the same name and alpn")
            same_name.append(route)
    found.check()
    for same_name in routes.values():
        same_name.sort(key=lambda route: not route.protocols)
    return routes


def _warn_of_address(number: int, name: str) -> None:
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name)
        logger.warning(
            "route %d (%r) is for an address, but clients ask for host names alone (RFC 6066, 3): "
            "one that connects to an address gets the default",
            number,
            name,
            extra=fields("route for an address", route=number, name=name),
        )


def _parse_route(table: dict[str, Any]) -> _Route:
    found = Found()
    parsed: dict[str, Any] = {"alpn": frozenset()}
    with found.at():
        _check_keys(table, required={"name", "target"}, optional={"alpn"})
    for key, parse in _PARSERS.items():
        if key in table:
            with found.at():
                parsed[key] = parse(table[key])
    found.check()
    return _Route(parsed["name"], parsed["alpn"], parsed["target"])


def _check_keys(table: dict[str, Any], required: set[str], optional: set[str]) -> None:
    known = required | optional
    unknown = [f"unknown key {key!r}{did_you_mean(key, known)}" for key in set(table) - known]
    missing = [f"{key} is missing" for key in required - set(table)]
    if unknown or missing:
        raise Mistakes(*sorted(unknown), *sorted(missing))


def _parse_name(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("name must be a string")
    try:
        name = value.encode("idna").decode("ascii").lower().removesuffix(".")
    except UnicodeError as error:
        raise ValueError(f"{value!r} is not a valid host name: {error}") from error
    if not _NAME.fullmatch(name):
        raise ValueError(f"{value!r} is not a valid host name: write one, or *. and a host name")
    return name


def _parse_protocols(value: Any) -> frozenset[str]:
    if not isinstance(value, list) or not value or not all(map(_is_protocol, value)):
        raise ValueError('alpn must be a list of protocols, as in ["h2", "http/1.1"]')
    return frozenset(value)


def _is_protocol(value: Any) -> bool:
    return isinstance(value, str) and value != "" and value.isascii()


def _parse_targets(value: Any) -> tuple[Target, ...]:
    targets = value if isinstance(value, list) else [value]
    if not targets or not all(isinstance(target, str) for target in targets):
        raise ValueError("a target must be an address or a list of addresses, as strings")
    found = Found()
    parsed = []
    for target in targets:
        with found.at():
            parsed.append(parse_target_or_service(target))
    found.check()
    return tuple(parsed)


#: What reads each key of a route.
_PARSERS: dict[str, Callable[[Any], Any]] = {
    "name": _parse_name,
    "alpn": _parse_protocols,
    "target": _parse_targets,
}
