"""What must hold of each parser for any bytes, checked by the fuzzer and over the small corpus."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Callable

import h11

from freebsd_splice.proxies import Address, Routes, UnixAddress
from freebsd_splice.proxies._addresses import parse_authority, parse_listen, parse_target
from freebsd_splice.proxies._client_hello import ClientHello
from freebsd_splice.proxies._mistakes import mistakes_of
from freebsd_splice.proxies._passwords import _parse as parse_entry
from freebsd_splice.proxies._proxy_headers import parse_sender
from freebsd_splice.proxies._routes import toml_parser
from freebsd_splice.proxies._rules import Rules, parse_rule
from freebsd_splice.proxies._services import parse_target_or_service
from freebsd_splice.proxies._socks5_messages import (
    MalformedError,
    read_credentials,
    read_greeting,
    read_request,
)
from freebsd_splice.proxies.connect import RequestError, RequestReader, _target

#: No head of a request may have more (``--handshake-size``).
_LARGEST = 16_384


def check_socks5(data: bytes) -> None:
    """A message, none, or not all of it: and that stays so, whatever comes later."""
    for read in (read_greeting, read_credentials, read_request):
        found = _outcome_of_socks5(read, data)
        for size in range(len(data)):
            before = _outcome_of_socks5(read, data[:size])
            assert before is None or before == found
        if isinstance(found, tuple):
            assert 0 < found[-1] <= len(data)


def _outcome_of_socks5(read: Callable[[bytes], object], data: bytes) -> object:
    try:
        return read(data)
    except MalformedError as error:
        return str(error)


def check_connect(data: bytes) -> None:
    """A target, a refusal that can be answered, or not all of it: however the bytes come."""
    at_once = _outcome_of_connect([data])
    byte_by_byte = _outcome_of_connect([data[at : at + 1] for at in range(len(data))])
    if isinstance(at_once, Address):
        assert byte_by_byte == at_once
        assert at_once.host
        assert 0 < at_once.port < 65536
    else:  # which fault is named depends on how much of it there is; not whether there is one
        assert type(byte_by_byte) is type(at_once)


def _outcome_of_connect(pieces: list[bytes]) -> object:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_LARGEST)
    reader = RequestReader(connection)
    try:
        for piece in pieces:
            request = reader.feed(piece)
            if request is not None:
                return _target(request)
    except RequestError as error:
        refused = error
    else:
        return None
    assert refused.status in range(400, 600)
    return str(refused)


def check_what_is_written(data: bytes) -> None:
    """What people write: addresses, rules, networks, lines of a password file, routes."""
    _check_routes(data)
    text = data.decode("utf-8", "surrogateescape")
    for parse in (parse_authority, parse_target, parse_listen):
        with contextlib.suppress(ValueError):
            address = parse(text)
            assert isinstance(address, UnixAddress) or address.port in range(65536)
            # What is shown is read again as the same.
            assert parse(str(address)) == address
    with contextlib.suppress(ValueError):
        parse_target_or_service(text)
    with contextlib.suppress(ValueError):
        parse_sender(text)
    with contextlib.suppress(ValueError):
        user, entry = parse_entry(text)
        assert user == text.partition(":")[0]
        assert entry.cost.is_in_bounds()
    with contextlib.suppress(ValueError):
        rule = parse_rule(text, True)
        rules = Rules([rule, parse_rule("*", False)])
        for host in ("localhost", "a.example.org", "127.0.0.1", "::1", text[:64]):
            rules.rejects_name(host, 443)
        rule.covers_address(ipaddress.ip_address("192.0.2.1"))


def _check_routes(data: bytes) -> None:
    """A table for each server name, or mistakes that each have a text."""
    try:
        document = toml_parser().loads(data.decode())
    except (ValueError, RecursionError):
        return
    mistakes: tuple[str, ...] = ()
    try:
        routes = Routes(document)
    except ValueError as error:
        mistakes = mistakes_of(error)
    if mistakes:
        assert all(mistakes)
        return
    assert routes.targets()
    for name in (None, "a", "www.example.org", "127.0.0.1"):
        routes.find(ClientHello(name, ("h2",)))
