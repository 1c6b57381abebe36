"""``help()`` of each public name of the proxies describes all that it takes and has."""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import inspect
import re
import socket
import textwrap
from typing import Any

import pytest

from freebsd_splice import proxies
from freebsd_splice.proxies import (
    Address,
    Client,
    ClientHello,
    Handshake,
    Limits,
    Member,
    Resolved,
    Rule,
    Service,
)

#: Those whose arguments are documented; others have none, or one that the summary names.
CALLED = [
    *("ProxyServer", "ProxyServer.listen", "ProxyServer.use", "forwarder", "Client.dial"),
    *("socks5_connect", "by_server_name", "parse_rule", "Rules", "Rules.refusal"),
    *("Rules.rejects_name", "Routes", "Routes.load", "Routes.find", "Passwords"),
    *("Passwords.verify", "Handshake.read", "Handshake.in_time"),
    *("NameServers", "NameServers.look_up", "NameServers.members"),
]
#: Those that a reader needs to see used.
WITH_EXAMPLE = [
    *("ProxyServer", "Client", "Address", "Limits", "Rules", "parse_rule", "Routes", "Passwords"),
    *("Handshake.read", "forwarder", "socks5_connect", "by_server_name"),
    *("NameServers", "Service"),
]
CLASSES = [name for name in proxies.__all__ if isinstance(getattr(proxies, name), type)]
METHODS = [
    f"{name}.{method}"
    for name in CLASSES
    for method, value in vars(getattr(proxies, name)).items()
    if inspect.isroutine(value) and not method.startswith("_")
]
FUNCTIONS = [name for name in proxies.__all__ if inspect.isfunction(getattr(proxies, name))]


def value_of(path: str) -> Any:
    found: Any = proxies
    for name in path.split("."):
        found = getattr(found, name)
    return found


def described(documented: object, section: str) -> set[str]:
    """The names that a section of the docstring describes, with or without their types."""
    text = inspect.getdoc(documented) or ""
    found = re.search(rf"^{section}:\n((?: .*\n|\n)*)", f"{text}\n", re.M)
    return set(re.findall(r"^    (\w+)(?: \([^)]*\))?: ", found[1], re.M)) if found else set()


@pytest.mark.parametrize("path", CALLED)
def test_each_parameter_is_described(path: str) -> None:
    called = value_of(path)
    assert described(called, "Args") == set(inspect.signature(called).parameters) - {"self"}


def test_each_parameter_of_http_connect_is_described() -> None:
    pytest.importorskip("h11", reason="it is what the proxy parses requests with")
    from freebsd_splice.proxies.connect import http_connect

    assert described(http_connect, "Args") == set(inspect.signature(http_connect).parameters)


@pytest.mark.parametrize("record", [Address, Resolved, Rule, ClientHello, Service, Member])
def test_each_field_is_described(record: type) -> None:
    assert described(record, "Attributes") == set(record.__match_args__)  # type: ignore[attr-defined]


def test_each_limit_is_described() -> None:
    assert described(Limits, "Attributes") == {each.name for each in dataclasses.fields(Limits)}


def test_each_attribute_of_a_client_is_described() -> None:
    async def main() -> None:
        with socket.socket() as sock:
            handshake = Handshake(sock, 1.0, 1)
            client = Client(sock, ("127.0.0.1", 1), handshake, None)  # type: ignore[arg-type]
            for made in (client, handshake):
                public = {name for name in vars(made) if not name.startswith("_")}
                assert described(type(made), "Attributes") == public

    asyncio.run(main())


@pytest.mark.parametrize("path", [*CLASSES, *METHODS, *FUNCTIONS])
def test_each_docstring_begins_with_a_summary(path: str) -> None:
    first = (inspect.getdoc(value_of(path)) or "").split("\n")[0]
    assert re.fullmatch(r"[A-Z`].*[.:]", first), first


@pytest.mark.parametrize("path", WITH_EXAMPLE)
def test_each_example_is_python(path: str) -> None:
    text = inspect.getdoc(value_of(path)) or ""
    found = re.search(r"^Example::\n\n((?: {4}.*\n|\n)+)", f"{text}\n", re.M)
    assert found is not None
    compile(textwrap.dedent(found[1]), path, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
