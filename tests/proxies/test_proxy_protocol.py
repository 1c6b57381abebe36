"""What the reader of PROXY headers takes, what it refuses, and at which byte; what is made."""

from __future__ import annotations

import ipaddress
import struct

import pytest

pytest.importorskip("hypothesis", reason="the properties are hypothesis's")

from hypothesis import example, given, settings
from hypothesis import strategies as st

from freebsd_splice.proxies._proxy_protocol import (
    LONGEST_HEADER,
    SIGNATURE_BYTES,
    VERSIONS,
    Endpoint,
    MalformedHeaderError,
    ProxyHeader,
    Version,
    begins_header,
    crc32c,
    make_header,
    read_header,
    show_endpoint,
)

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
FOUR: Endpoint = ("192.0.2.7", 40000)
FOUR_TO: Endpoint = ("198.51.100.1", 443)
SIX: Endpoint = ("2001:db8::7", 40000, 0, 0)
SIX_TO: Endpoint = ("2001:db8::1", 443, 0, 0)
#: As sockets for both families have IPv4.
FOUR_AS_SIX: Endpoint = ("::ffff:192.0.2.7", 40000, 0, 0)
FOUR_TO_AS_SIX: Endpoint = ("::ffff:198.51.100.1", 443, 0, 0)
PACKED_FOUR = bytes([192, 0, 2, 7, 198, 51, 100, 1]) + struct.pack("!HH", 40000, 443)
AUTHORITY, CHECKSUM, NOOP, UNIQUE_ID = 2, 3, 4, 5


# Building headers


def binary(
    block: bytes = PACKED_FOUR, *, command: int = 0x21, kind: int = 0x11, length: int | None = None
) -> bytes:
    size = len(block) if length is None else length
    return SIGNATURE + bytes([command, kind]) + size.to_bytes(2, "big") + block


def field(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + len(value).to_bytes(2, "big") + value


def with_checksum(*before: bytes, after: bytes = b"") -> bytes:
    """A header with a right checksum."""
    block = PACKED_FOUR + b"".join(before)
    without = binary(block + field(CHECKSUM, bytes(4)) + after)
    checksum = crc32c(without).to_bytes(4, "big")
    return binary(block + field(CHECKSUM, checksum) + after)


def path(name: bytes) -> bytes:
    return name.ljust(108, b"\0")


# Reading them


def outcome(data: bytes) -> tuple[ProxyHeader, int] | str | None:
    try:
        return read_header(data)
    except MalformedHeaderError as error:
        return str(error)


def check_any_bytes(data: bytes) -> None:
    """Nothing but the three outcomes, and none is changed by what comes later."""
    found = outcome(data)
    if found is not None:
        assert outcome(data + b"more") == found
    if isinstance(found, tuple):
        header, size = found
        assert 0 < size <= min(len(data), LONGEST_HEADER)
        assert begins_header(data) is True
        assert read_header(data[:size]) == found
        assert read_header(data[: size - 1]) is None
        assert header.authority is None or header.version == "v2"
        for endpoint in (header.source, header.destination):
            assert endpoint is None or show_endpoint(endpoint)
        # Whatever is taken can be sent on.
        again = make_header("v2", header.source, header.destination, authority=header.authority)
        assert read_header(again) is not None


@pytest.mark.parametrize(
    ("data", "source", "destination"),
    [
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n", FOUR, FOUR_TO),
        (
            b"PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n",
            ("0.0.0.0", 0),
            ("255.255.255.255", 65535),
        ),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 40000 443\r\n", SIX, SIX_TO),
        (b"PROXY TCP6 2001:DB8:0:0:0:0:0:7 2001:db8::1 40000 443\r\n", SIX, SIX_TO),
        (b"PROXY UNKNOWN\r\n", None, None),
        (b"PROXY UNKNOWN 192.0.2.7 198.51.100.1 40000 443\r\n", None, None),
        (b"PROXY UNKNOWN any\rthing\0\xff\r\n", None, None),
        (b"PROXY UNKNOWN ".ljust(105, b"x") + b"\r\n", None, None),
    ],
)
def test_what_a_line_says(
    data: bytes, source: Endpoint | None, destination: Endpoint | None
) -> None:
    assert read_header(data) == (ProxyHeader("v1", source, destination), len(data))


@pytest.mark.parametrize(
    ("data", "source", "destination"),
    [
        pytest.param(binary(), FOUR, FOUR_TO, id="IPv4"),
        pytest.param(binary(kind=0x12), FOUR, FOUR_TO, id="UDP over IPv4"),
        pytest.param(
            binary(
                ipaddress.ip_address("2001:db8::7").packed
                + ipaddress.ip_address("2001:db8::1").packed
                + struct.pack("!HH", 40000, 443),
                kind=0x21,
            ),
            SIX,
            SIX_TO,
            id="IPv6",
        ),
        pytest.param(
            binary(path(b"/run/client") + path(b"/run/proxy"), kind=0x31),
            b"/run/client",
            b"/run/proxy",
            id="Unix",
        ),
        pytest.param(
            binary(path(b"") + path(b"\0abstract\0name"), kind=0x31),
            b"",
            b"\0abstract\0name",
            id="Unix without a name, and an abstract one",
        ),
        pytest.param(
            binary(path(b"/a\0behind it") + b"/" * 108, kind=0x32), b"/a", b"/" * 108, id="full"
        ),
        pytest.param(binary(b"", command=0x20, kind=0), None, None, id="LOCAL"),
        pytest.param(binary(command=0x20), None, None, id="LOCAL with addresses"),
        pytest.param(binary(b"any", command=0x20, kind=0xFF), None, None, id="LOCAL with anything"),
        pytest.param(binary(b"", kind=0), None, None, id="of no kind"),
        pytest.param(binary(b"anything", kind=0x01), None, None, id="of no family"),
        pytest.param(binary(kind=0x10), None, None, id="of no protocol"),
    ],
)
def test_what_a_binary_header_says(
    data: bytes, source: Endpoint | None, destination: Endpoint | None
) -> None:
    assert read_header(data + b"and more") == (ProxyHeader("v2", source, destination), len(data))


def test_the_fields_of_a_binary_header() -> None:
    fields = [
        (NOOP, b""),
        (AUTHORITY, "bücher.example".encode()),
        (0xEA, b"\x01vpce-1"),
        (UNIQUE_ID, bytes(128)),
        (AUTHORITY, b"second"),
        (NOOP, b"padding"),
    ]
    found = read_header(binary(PACKED_FOUR + b"".join(field(*each) for each in fields)))
    assert found is not None
    header, _ = found
    assert header.fields == tuple(fields)
    assert header.authority == "bücher.example"
    assert header.unique_id == bytes(128)


def test_the_checksum_is_rfc_4960s() -> None:
    """The value is that of many collections of test vectors, such as RFC 3720's B.4."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA


@pytest.mark.parametrize("after", [b"", field(NOOP, b"x")])
def test_a_right_checksum_is_taken_and_any_other_refused(after: bytes) -> None:
    data = with_checksum(field(AUTHORITY, b"a"), after=after)
    assert isinstance(outcome(data), tuple)
    for number in range(SIGNATURE_BYTES + 4, len(data)):
        damaged = bytearray(data)
        damaged[number] ^= 1
        assert isinstance(outcome(bytes(damaged)), str) or number >= len(data) - 7


LINES_REFUSED = [
    (b"G", "not a PROXY header"),
    (b"PROXYT", "not a PROXY header"),
    (b"p", "not a PROXY header"),
    (b"PROXY UNKNOWN\n", "does not end with CR LF"),
    (b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\n", "does not end with CR LF"),
    (b"PROXY UNKNOWN ".ljust(107, b"x"), "a line that is too long"),
    (b"PROXY UNKNOWN ".ljust(106, b"x") + b"\r", "a line that is too long"),
    (b"PROXY \r\n", "neither TCP4 nor"),
    (b"PROXY UNKNOWN2\r\n", "neither TCP4 nor"),
    (b"PROXY TCP5 192.0.2.7 198.51.100.1 40000 443\r\n", "neither TCP4 nor"),
    (b"PROXY tcp4 192.0.2.7 198.51.100.1 40000 443\r\n", "neither TCP4 nor"),
    (b"PROXY TCP4\r\n", "not two addresses and two ports"),
    (b"PROXY TCP4 192.0.2.7 198.51.100.1 40000\r\n", "not two addresses and two ports"),
    (b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443 \r\n", "not two addresses and two ports"),
    (b"PROXY TCP4  192.0.2.7 198.51.100.1 40000 443\r\n", "not two addresses and two ports"),
    *(
        (b"PROXY TCP4 192.0.2.7 %s 40000 443\r\n" % address, "not an address of TCP4")
        for address in (b"", b"::1", b"1.2.3", b"01.2.3.4", b"1.2.3.4/32", b"1.2.3.256", b"\xb2")
    ),
    *(
        (b"PROXY TCP6 ::1 %s 40000 443\r\n" % address, "not an address of TCP6")
        for address in (b"", b"1.2.3.4", b"::1%eth0", b"::1/128", b"[::1]", b"1::2::3", b":1")
    ),
    *(
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 %s\r\n" % port, "not a port")
        for port in (b"", b"-1", b"+1", b"01", b"1_0", b"65536", b"\xb2")
    ),
]

BINARY_REFUSED = [
    (SIGNATURE[:-1] + b"\r", "not a PROXY header"),
    (b"\r\n\r\r", "not a PROXY header"),
    *((SIGNATURE + bytes([command]), "not version 2") for command in (0x01, 0x11, 0x31, 0xF1)),
    (binary(length=LONGEST_HEADER - 15)[:16], "a header that is too long"),
    (binary(length=65535)[:16], "a header that is too long"),
    (binary(command=0x22), "neither PROXY nor LOCAL"),
    (binary(command=0x2F), "neither PROXY nor LOCAL"),
    (binary(kind=0x41), "not a kind of address"),
    (binary(kind=0x13), "not a kind of address"),
    (binary(b"", length=0), "addresses cut short"),
    (binary(PACKED_FOUR[:-1]), "addresses cut short"),
    (binary(kind=0x21), "addresses cut short"),
    (binary(bytes(215), kind=0x31), "addresses cut short"),
    (binary(PACKED_FOUR + b"\4"), "a field cut short"),
    (binary(PACKED_FOUR + b"\4\0"), "a field cut short"),
    (binary(PACKED_FOUR + b"\4\0\1"), "a field cut short"),
    (binary(PACKED_FOUR + field(NOOP, b"") + b"\4\0\1"), "a field cut short"),
    (binary(PACKED_FOUR + field(AUTHORITY, b"\xff")), "an authority that is not UTF-8"),
    (binary(PACKED_FOUR + field(UNIQUE_ID, bytes(129))), "a unique id that is too long"),
    (binary(PACKED_FOUR + field(CHECKSUM, b"123")), "a checksum that does not have 4 bytes"),
    (binary(PACKED_FOUR + field(CHECKSUM, b"1234")), "a wrong checksum"),
]


@pytest.mark.parametrize(("data", "complaint"), [*LINES_REFUSED, *BINARY_REFUSED])
def test_what_is_malformed_is_refused_at_the_byte_that_shows_it(
    data: bytes, complaint: str
) -> None:
    for size in range(len(data)):
        assert read_header(data[:size]) is None
    with pytest.raises(MalformedHeaderError, match=complaint):
        read_header(data)


def test_the_longest_there_may_be() -> None:
    data = binary(PACKED_FOUR + field(NOOP, bytes(LONGEST_HEADER - 16 - 12 - 3)))
    assert len(data) == LONGEST_HEADER
    assert outcome(data) == (
        ProxyHeader("v2", FOUR, FOUR_TO, ((NOOP, bytes(LONGEST_HEADER - 31)),)),
        LONGEST_HEADER,
    )


@pytest.mark.parametrize(
    ("data", "begins"),
    [
        (b"", None),
        (b"P", None),
        (b"PROXY", None),
        (b"PROXY ", True),
        (b"PROXY anything", True),
        (b"PROXY\t", False),
        (b"POST", False),
        (b"\r\n", None),
        (SIGNATURE[:-1], None),
        (SIGNATURE, True),
        (b"\r\n\r\n\0\r\nQUITS", False),
        (b"\x16\x03\x01", False),
    ],
)
def test_how_a_connection_begins(data: bytes, begins: bool | None) -> None:
    assert begins_header(data) is begins
    assert len(data) < SIGNATURE_BYTES or begins is not None


# Making them


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(
    ("source", "destination", "expected"),
    [
        (FOUR, FOUR_TO, (FOUR, FOUR_TO)),
        (SIX, SIX_TO, (SIX, SIX_TO)),
        (FOUR_AS_SIX, FOUR_TO_AS_SIX, (FOUR, FOUR_TO)),
        (("fe80::1%eth0", 1, 0, 2), SIX_TO, (("fe80::1", 1, 0, 0), SIX_TO)),
        (SIX, ("::ffff:0:1", 443, 0, 0), (SIX, ("::ffff:0:1", 443, 0, 0))),
        (None, FOUR_TO, (None, None)),
        ((), FOUR_TO, (None, None)),
        (FOUR, None, (None, None)),
        (FOUR, b"/run/proxy", (None, None)),
    ],
)
def test_what_is_made_is_read_again(
    version: Version,
    source: Endpoint | None,
    destination: Endpoint | None,
    expected: tuple[Endpoint | None, Endpoint | None],
) -> None:
    made = make_header(version, source, destination, authority="example.org", unique_id=b"id")
    found = read_header(made)
    assert found is not None
    header, size = found
    assert size == len(made)
    read = tuple(
        end if not isinstance(end, tuple) else (str(ipaddress.ip_address(end[0])), *end[1:])
        for end in (header.source, header.destination)
    )
    assert read == tuple(
        end if not isinstance(end, tuple) else (str(ipaddress.ip_address(end[0])), *end[1:])
        for end in expected
    )
    if version == "v2" and expected[0] is not None:
        assert (header.authority, header.unique_id) == ("example.org", b"id")
    else:
        assert (header.authority, header.unique_id) == (None, None)


def test_a_unix_client_is_unknown_in_a_line() -> None:
    assert make_header("v1", b"/run/client", b"/run/proxy") == b"PROXY UNKNOWN\r\n"
    made = make_header("v2", b"/run/client", b"/run/proxy", unique_id=b"id")
    assert made == binary(
        path(b"/run/client") + path(b"/run/proxy") + field(UNIQUE_ID, b"id"), kind=0x31
    )


def test_who_is_not_known_is_local() -> None:
    """As HAProxy does it; a command PROXY without addresses is one that receivers may refuse."""
    assert make_header("v2", None, None, unique_id=b"id") == binary(b"", command=0x20, kind=0)


@pytest.mark.parametrize(
    ("endpoint", "shown"),
    [
        (FOUR, "192.0.2.7:40000"),
        (SIX, "[2001:db8::7]:40000"),
        (b"/run/a", "unix:/run/a"),
        (b"/run/\xff", r"unix:'/run/\\xff'"),
        (b"/a -> 10.0.0.1:80: 5 bytes up", "unix:'/a -> 10.0.0.1:80: 5 bytes up'"),
        ("/\u202e".encode(), r"unix:'/\u202e'"),
    ],
)
def test_how_the_log_shows_them(endpoint: Endpoint, shown: str) -> None:
    assert show_endpoint(endpoint) == shown


# Whatever comes

SEEDS = [
    b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\nGET",
    b"PROXY TCP6 2001:db8::7 2001:db8::1 40000 443\r\n",
    b"PROXY UNKNOWN x\r\n",
    binary(kind=0x31, block=path(b"/a") + path(b"/b")),
    with_checksum(field(AUTHORITY, b"a.example"), field(UNIQUE_ID, b"id")),
    binary(command=0x20),
]
PORTS = st.integers(0, 65535)
IPV4 = st.tuples(st.ip_addresses(v=4).map(str), PORTS)
IPV6 = st.tuples(st.ip_addresses(v=6).map(str), PORTS, st.just(0), st.just(0))
PATHS = st.binary(max_size=108).map(lambda name: name.partition(b"\0")[0])
ENDS = st.tuples(IPV4, IPV4) | st.tuples(IPV6, IPV6) | st.tuples(PATHS, PATHS)
EDITS = st.lists(
    st.tuples(st.integers(0, 300), st.integers(0, 3), st.binary(max_size=4)), max_size=6
)


@settings(max_examples=300, deadline=None)
@given(ENDS, st.none() | st.text(max_size=255), st.none() | st.binary(max_size=128), st.binary())
def test_any_header_is_read_as_it_was_made(
    ends: tuple[Endpoint, Endpoint], authority: str | None, unique_id: bytes | None, more: bytes
) -> None:
    for version in VERSIONS:
        made = make_header(version, *ends, authority=authority, unique_id=unique_id)
        assert len(made) <= 107 or version == "v2"
        for size in range(len(made)):
            assert read_header(made[:size]) is None
        found = read_header(made + more)
        assert found is not None
        assert found[1] == len(made)
        if version == "v2":
            assert (found[0].authority, found[0].unique_id) == (authority, unique_id)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SEEDS), EDITS)
def test_a_header_that_has_been_tampered_with_has_an_outcome(
    data: bytes, edits: list[tuple[int, int, bytes]]
) -> None:
    for place, gone, put in edits:
        place %= len(data) + 1
        data = data[:place] + put + data[place + gone :]
    check_any_bytes(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
@example(b"")
def test_any_bytes_have_an_outcome(data: bytes) -> None:
    check_any_bytes(data)
    check_any_bytes(b"PROXY " + data)
    check_any_bytes(b"PROXY TCP6 " + data + b"\r\n")
    check_any_bytes(SIGNATURE + data)
    check_any_bytes(binary(data))
    check_any_bytes(binary(PACKED_FOUR + data))
