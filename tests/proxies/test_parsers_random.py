"""What parsers of the proxies make of whatever arrives."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable

import pytest

pytest.importorskip("hypothesis", reason="the messages and rules are hypothesis's")

from hypothesis import example, given, settings
from hypothesis import strategies as st

from freebsd_splice.proxies._addresses import Resolved
from freebsd_splice.proxies._rules import Rule, Rules, parse_rule
from freebsd_splice.proxies._socks5_messages import (
    CONNECT,
    MalformedError,
    read_credentials,
    read_greeting,
    read_request,
)

Reader = Callable[[bytes], object]

without_deadline = settings(deadline=None, database=None)

READERS: list[Reader] = [read_greeting, read_credentials, read_request]

octets = st.integers(0, 255)
ports = st.integers(1, 65535)
addresses = st.ip_addresses()
names = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=255)
secrets = st.text(max_size=63)

#: What begins like a message gets further than what is random from its first byte.
beginnings = st.sampled_from([b"", b"\x05", b"\x01", b"\x05\x01\x00", b"\x05\x01\x00\x03"])
arrivals = st.builds(lambda start, rest: start + rest, beginnings, st.binary(max_size=600))


def outcome(read: Reader, data: bytes) -> object:
    try:
        return read(data)
    except MalformedError as error:
        return str(error)


@pytest.mark.parametrize("read", READERS)
@without_deadline
@given(arrivals, st.binary(max_size=20))
def test_bytes_are_a_message_or_none_or_not_all_there(
    read: Reader, data: bytes, more: bytes
) -> None:
    """And what has been said about them does not change with what arrives later."""
    found = outcome(read, data)
    if found is not None:
        assert outcome(read, data + more) == found
        if isinstance(found, tuple):
            assert 0 < found[-1] <= len(data)


def arrives(read: Reader, message: bytes, expected: tuple[object, ...], more: bytes) -> None:
    for length in range(len(message)):
        assert read(message[:length]) is None
    assert read(message + more) == (*expected, len(message))


@without_deadline
@given(st.lists(octets, min_size=1, max_size=255), st.binary(max_size=3))
def test_greetings(methods: list[int], more: bytes) -> None:
    message = bytes([5, len(methods), *methods])
    arrives(read_greeting, message, (frozenset(methods),), more)


@without_deadline
@given(secrets, secrets, st.binary(max_size=3))
def test_credentials(user: str, password: str, more: bytes) -> None:
    encoded = [text.encode() for text in (user, password)]
    message = b"\x01" + b"".join(bytes([len(text)]) + text for text in encoded)
    arrives(read_credentials, message, (user, password), more)


@without_deadline
@given(octets, names | addresses, ports, st.binary(max_size=3))
@example(CONNECT, ipaddress.ip_address("::ffff:127.0.0.1"), 80, b"")
def test_requests(
    command: int,
    host: str | ipaddress.IPv4Address | ipaddress.IPv6Address,
    port: int,
    more: bytes,
) -> None:
    if isinstance(host, str):
        body = bytes([3, len(host)]) + host.encode()
    else:
        body = bytes([1 if host.version == 4 else 4]) + host.packed
    message = bytes([5, command, 0]) + body + port.to_bytes(2, "big")
    arrives(read_request, message, ((command, (str(host), port)),), more)


texts = st.text() | st.text("*.:/[]-%0123456789abcdefgx", max_size=20)


def parsed(text: str) -> Rule | None:
    try:
        return parse_rule(text, True)
    except UnicodeError:
        raise  # whose message is not for people
    except ValueError:
        return None


@without_deadline
@given(texts)
@example("[::1]/128:1-2")
def test_text_is_a_rule_or_none(text: str) -> None:
    rule = parsed(text)
    assert rule is None or (rule.text == text and 0 <= rule.ports[0] <= rule.ports[-1] <= 65535)


@without_deadline
@given(st.integers(0, 2), addresses, ports, ports)
def test_rules_for_networks(
    form: int, address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int, last: int
) -> None:
    prefix = address.max_prefixlen // 2
    network = ipaddress.ip_network(f"{address}/{prefix}", strict=False)
    start, low, high = network.network_address, min(port, last), max(port, last)
    written = [f"[{network}]", f"[{start}]/{prefix}"][form % 2] if ":" in str(start) else network
    rule = parse_rule(f"{written}:{low}-{high}", True)
    assert (rule.network, rule.ports) == (network, range(low, high + 1))
    assert parse_rule(str(network), True).network == network


pieces = st.sampled_from(
    ["*", "a.example", ".example", "10.0.0.0/8", "8.8.0.0/16", "::/0", "*:443", "b.example:443"]
)
some_rules = st.lists(st.builds(parse_rule, pieces, st.booleans()), max_size=5)
hosts = st.sampled_from(["a.example", "b.example", "c.a.example", "8.8.8.8", "::1"]) | st.text()
targets = st.sampled_from(["8.8.8.8", "10.0.0.1", "127.0.0.1"]) | st.ip_addresses(v=4).map(str)


@without_deadline
@given(some_rules, hosts, targets, st.sampled_from([80, 443]))
def test_a_name_that_is_rejected_is_refused_at_every_address(
    rules: list[Rule], host: str, target: str, port: int
) -> None:
    made = Rules(rules)
    if made.rejects_name(host, port) is not None:
        assert made.refusal(host, Resolved(socket.AF_INET, (target, port))) is not None
