"""SOCKS 5 as bytes."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from freebsd_splice.proxies._addresses import Address
from freebsd_splice.proxies._socks5_messages import (
    CONNECT,
    CREDENTIALS,
    NO_ACCEPTABLE_METHOD,
    NO_AUTHENTICATION,
    MalformedError,
    Reply,
    credentials_reply,
    method_reply,
    read_credentials,
    read_greeting,
    read_request,
    reply,
    reply_for,
)

Reader = Callable[[bytes], object]

LONG = 255 * "a"
IPV4 = b"\x05\x01\x00\x01\x7f\x00\x00\x01\x1f\x90"
IPV6 = b"\x05\x01\x00\x04\x20\x01\x0d\xb8" + bytes(11) + b"\x01\x00\x50"
NAME = b"\x05\x01\x00\x03\x0bexample.org\x01\xbb"

MESSAGES: list[tuple[Reader, bytes, object]] = [
    (read_greeting, b"\x05\x01\x00", ({NO_AUTHENTICATION}, 3)),
    (read_greeting, b"\x05\x03\x00\x01\x02", ({0, 1, CREDENTIALS}, 5)),
    (read_greeting, b"\x05\xff" + bytes(range(255)), (set(range(255)), 257)),
    (read_credentials, b"\x01\x04user\x06secret", ("user", "secret", 13)),
    (read_credentials, b"\x01\x02\xc3\xa4\x03\xe2\x82\xac", ("ä", "€", 8)),
    (read_credentials, b"\x01\x00\x00", ("", "", 3)),
    (read_credentials, b"\x01" + 2 * (b"\xff" + LONG.encode()), (LONG, LONG, 513)),
    (read_request, IPV4, ((CONNECT, ("127.0.0.1", 8080)), 10)),
    (read_request, IPV6, ((CONNECT, ("2001:db8::1", 80)), 22)),
    (read_request, NAME, ((CONNECT, ("example.org", 443)), 18)),
    (read_request, b"\x05\x01\x00\x03\x01A\xff\xff", ((1, ("A", 65535)), 8)),
    (read_request, b"\x05\x01\x00\x03\x02!~\x00\x01", ((1, ("!~", 1)), 9)),
    (read_request, b"\x05\x01\x00\x03\xff" + LONG.encode() + b"\x00\x01", ((1, (LONG, 1)), 262)),
    (read_request, b"\x05\x02\x00\x01" + bytes(6), ((2, ("0.0.0.0", 0)), 10)),
    (read_request, b"\x05\xff\x00\x03\x01a\x00\x00", ((255, ("a", 0)), 8)),
]


@pytest.mark.parametrize(("read", "message", "expected"), MESSAGES)
def test_messages(read: Reader, message: bytes, expected: object) -> None:
    assert read(message) == expected
    assert read(message + b"\x00more") == expected
    for length in range(len(message)):
        assert read(message[:length]) is None


def test_a_request_has_an_address() -> None:
    found = read_request(NAME)
    assert found is not None
    request, _ = found
    assert request.command == CONNECT
    assert request.address == Address("example.org", 443)


@pytest.mark.parametrize(
    ("read", "message", "complaint", "told"),
    [
        (read_greeting, b"\x04", "SOCKS 4, not SOCKS 5", None),
        (read_greeting, b"\x16", "TLS, it seems", None),
        (read_greeting, b"G", "HTTP, it seems", None),
        (read_greeting, b"\x00", "its first byte is 0", None),
        (read_greeting, b"\xff", "its first byte is 255", None),
        (read_greeting, b"\x05\x00", "no method at all", None),
        (read_credentials, b"\x05", "version 5 of user name and password, not 1", None),
        (read_credentials, b"\x01\x01\xff", "not UTF-8", None),
        (read_credentials, b"\x01\x01a\x02\xc3(", "not UTF-8", None),
        (read_request, b"\x04", "SOCKS 4, not SOCKS 5", None),
        (read_request, b"\x05\x01\x01", "the reserved byte is not 0", Reply.GENERAL_FAILURE),
        (read_request, b"\x05\x01\x00\x00", "no address type 0", Reply.ADDRESS_TYPE_NOT_SUPPORTED),
        (read_request, b"\x05\x01\x00\x02", "no address type 2", Reply.ADDRESS_TYPE_NOT_SUPPORTED),
        (read_request, b"\x05\x01\x00\x05", "no address type 5", Reply.ADDRESS_TYPE_NOT_SUPPORTED),
        (read_request, b"\x05\x01\x00\x03\x00", "target is empty", Reply.GENERAL_FAILURE),
        (read_request, b"\x05\x01\x00\x03\x05ab\x00", "bytes that no name", Reply.GENERAL_FAILURE),
        (read_request, b"\x05\x01\x00\x03\x05\n", "bytes that no name has", Reply.GENERAL_FAILURE),
        (read_request, b"\x05\x01\x00\x03\x05 ", "bytes that no name has", Reply.GENERAL_FAILURE),
        (read_request, b"\x05\x01\x00\x03\x05\x7f", "bytes that no name", Reply.GENERAL_FAILURE),
        (read_request, b"\x05\x01\x00\x03\x05\xc3", "bytes that no name", Reply.GENERAL_FAILURE),
        (read_request, IPV4[:-2] + b"\x00\x00", "at port 0", Reply.GENERAL_FAILURE),
    ],
)
def test_the_first_byte_that_is_wrong(
    read: Reader, message: bytes, complaint: str, told: Reply | None
) -> None:
    assert read(message[:-1]) is None
    for received in (message, message + b"\x00more"):
        with pytest.raises(MalformedError, match=complaint) as raised:
            read(received)
        assert raised.value.reply is told
        assert raised.value.args == (str(raised.value),)


def test_replies_to_a_greeting() -> None:
    assert method_reply(NO_AUTHENTICATION) == b"\x05\x00"
    assert method_reply(CREDENTIALS) == b"\x05\x02"
    assert method_reply(NO_ACCEPTABLE_METHOD) == b"\x05\xff"


def test_replies_to_credentials() -> None:
    assert credentials_reply(True) == b"\x01\x00"
    assert credentials_reply(False) == b"\x01\x01"


@pytest.mark.parametrize(
    ("code", "bound", "message"),
    [
        (Reply.SUCCEEDED, ("127.0.0.1", 8080), b"\x05\x00\x00\x01\x7f\x00\x00\x01\x1f\x90"),
        (Reply.SUCCEEDED, ("::1", 80, 0, 0), b"\x05\x00\x00\x04" + bytes(15) + b"\x01\x00\x50"),
        (
            Reply.SUCCEEDED,
            ("fe80::1%eth0", 65535, 0, 2),
            b"\x05\x00\x00\x04\xfe\x80" + bytes(13) + b"\x01\xff\xff",
        ),
        (Reply.ADDRESS_TYPE_NOT_SUPPORTED, None, b"\x05\x08\x00\x01" + bytes(6)),
    ],
)
def test_replies_to_a_request(
    code: Reply, bound: tuple[str | int, ...] | None, message: bytes
) -> None:
    assert reply(code, bound) == message


def test_the_codes_of_replies() -> None:
    assert [code.name for code in sorted(Reply)] == [
        "SUCCEEDED",
        "GENERAL_FAILURE",
        "NOT_ALLOWED",
        "NETWORK_UNREACHABLE",
        "HOST_UNREACHABLE",
        "CONNECTION_REFUSED",
        "TTL_EXPIRED",
        "COMMAND_NOT_SUPPORTED",
        "ADDRESS_TYPE_NOT_SUPPORTED",
    ]
    assert list(Reply) == list(range(9))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ECONNREFUSED, "refused"), 5),
        (OSError(errno.ENETUNREACH, "no network"), 3),
        (OSError(errno.EHOSTUNREACH, "no host"), 4),
        (OSError(errno.ETIMEDOUT, "no answer"), 4),
        (OSError(errno.EACCES, "not allowed"), 2),
        (OSError(errno.ECONNRESET, "reset"), 1),
        (OSError(0, "success?"), 1),
        (OSError("without a number"), 1),
    ],
)
def test_what_an_error_is_to_the_client(error: OSError, told: int) -> None:
    assert reply_for(error) == told
