"""What the reader of ClientHellos takes, what it refuses, and at which byte."""

from __future__ import annotations

import random
import ssl
import sys
from collections.abc import Callable, Iterable
from itertools import accumulate, pairwise
from types import FrameType
from typing import Any

import pytest

pytest.importorskip("hypothesis", reason="the properties are hypothesis's")

from hypothesis import example, given, settings
from hypothesis import strategies as st

from freebsd_splice.proxies import _client_hello
from freebsd_splice.proxies._client_hello import ClientHello, HelloReader, MalformedError

SERVER_NAME, PADDING, PROTOCOLS, ENCRYPTED_CLIENT_HELLO = 0, 21, 16, 0xFE0D
LARGEST_FRAGMENT = 2**14
TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


# Building hellos


def counted(size: int, data: bytes) -> bytes:
    """``data`` behind its length, which has ``size`` bytes."""
    return len(data).to_bytes(size, "big") + data


def record(fragment: bytes, version: bytes = b"\x03\x01") -> bytes:
    return b"\x16" + version + counted(2, fragment)


def records(message: bytes, sizes: Iterable[int]) -> bytes:
    """The message in a record for each size, and one for the rest."""
    return b"".join(map(record, pieces(message, sizes)))


def pieces(data: bytes, sizes: Iterable[int]) -> list[bytes]:
    """``data`` cut into pieces of these sizes, and the rest."""
    cuts = [0, *(cut for cut in accumulate(sizes) if cut < len(data)), len(data)]
    return [data[start:end] for start, end in pairwise(cuts)]


def hello(
    extensions: bytes | None = None,
    session: bytes = b"",
    suites: bytes = b"\x13\x01",
    compression: bytes = b"\0",
    behind: bytes = b"",
) -> bytes:
    """The body of a ClientHello; ``extensions`` without their length, None for no such block."""
    block = b"" if extensions is None else counted(2, extensions)
    start = b"\x03\x03" + bytes(32) + counted(1, session)
    return start + counted(2, suites) + counted(1, compression) + block + behind


def message(body: bytes) -> bytes:
    return b"\x01" + counted(3, body)


def extension(kind: int, data: bytes) -> bytes:
    return kind.to_bytes(2, "big") + counted(2, data)


def host(name: bytes, kind: int = 0) -> bytes:
    return bytes([kind]) + counted(2, name)


def server_name(*entries: bytes) -> bytes:
    return extension(SERVER_NAME, counted(2, b"".join(entries)))


def protocols(*names: bytes) -> bytes:
    return extension(PROTOCOLS, counted(2, b"".join(counted(1, name) for name in names)))


def real(name: str | None, names: list[str], version: ssl.TLSVersion = TLS_1_3) -> bytes:
    """What a client of Python's sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version = context.maximum_version = version
    if names:
        context.set_alpn_protocols(names)
    sent = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()


def real_message(*arguments: Any) -> bytes:
    sent = real(*arguments)
    assert len(sent) == 5 + int.from_bytes(sent[3:5], "big"), "more than one record"
    return sent[5:]


# Reading them


def read(*parts: bytes) -> ClientHello | None:
    reader = HelloReader()
    answers = (reader.feed(part) for part in parts)
    return next((answer for answer in answers if answer is not None), None)


def outcome(*parts: bytes) -> ClientHello | str | None:
    try:
        return read(*parts)
    except MalformedError as error:
        return str(error)


def byte_by_byte(data: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in data]


def check_any_bytes(data: bytes) -> None:
    """Nothing but the three outcomes, and the same one however the bytes come."""
    at_once = outcome(data)
    assert at_once is None or isinstance(at_once, (ClientHello, str))
    assert outcome(*byte_by_byte(data)) == at_once
    if isinstance(at_once, ClientHello):
        assert at_once.server_name is None or "" not in at_once.server_name.split(".")
        assert all(at_once.protocols)


@pytest.mark.parametrize(
    ("extensions", "expected"),
    [
        pytest.param(None, (None, ()), id="without a block"),
        pytest.param(b"", (None, ()), id="none"),
        pytest.param(extension(PADDING, b""), (None, ()), id="others"),
        (server_name(host(b"www.Example.ORG")), ("www.example.org", ())),
        (server_name(host(b"www.example.org.")), ("www.example.org", ())),
        (server_name(host(b"localhost")), ("localhost", ())),
        (server_name(host(b"127.0.0.1")), ("127.0.0.1", ())),
        (server_name(host(b"::1")), ("::1", ())),
        (server_name(host(b" a~_")), (" a~_", ())),
        pytest.param(server_name(host(b"a" * 255)), ("a" * 255, ()), id="255 characters"),
        (protocols(b"h2", b"http/1.1"), (None, ("h2", "http/1.1"))),
        (protocols(b"\x8a\x8a", b"H2"), (None, ("\x8a\x8a", "H2"))),
        (protocols(b"h2") + server_name(host(b"a.b")), ("a.b", ("h2",))),
        pytest.param(
            extension(ENCRYPTED_CLIENT_HELLO, b"\x00") + server_name(host(b"outer.example")),
            ("outer.example", ()),
            id="with a name that is hidden",
        ),
    ],
)
def test_what_a_hello_says(
    extensions: bytes | None, expected: tuple[str | None, tuple[str, ...]]
) -> None:
    assert read(record(message(hello(extensions)))) == expected


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(hello(session=bytes(32)), id="session id"),
        pytest.param(hello(suites=bytes(16_384 - 40)), id="16,383 bytes"),
        pytest.param(hello(compression=bytes(255)), id="compression methods"),
    ],
)
def test_the_largest_there_may_be(body: bytes) -> None:
    assert read(records(message(body), [LARGEST_FRAGMENT] * 4)) == (None, ())


def test_nothing_is_no_hello_yet() -> None:
    assert read(b"") is None


@pytest.mark.parametrize("minor", [0, 1, 3, 255])
def test_the_minor_version_of_a_record_says_nothing(minor: int) -> None:
    assert read(record(message(hello()), bytes([3, minor]))) == (None, ())


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(record(message(hello())) + b"\x15anything", id="a record"),
        pytest.param(record(message(hello()) + b"anything"), id="in its record"),
    ],
)
def test_what_is_behind_a_hello_is_nobodys_business(data: bytes) -> None:
    assert read(data) == (None, ())


REFUSED_EARLY = [
    (b"G", "not a TLS handshake record"),
    (b"\x15", "not a TLS handshake record"),
    (b"\x80", "not a TLS handshake record"),
    (b"\x16\x02", "not a version of TLS"),
    (b"\x16\x04", "not a version of TLS"),
    (b"\x16\x03\x01\x41", "a record that is too large"),
    (b"\x16\x03\x01\x40\x01", "a record that is too large"),
    (b"\x16\x03\x01\x00\x00", "an empty record"),
    (record(b"\x01") + record(b""), "an empty record"),
    (record(b"\x01") + b"\x17", "not a TLS handshake record"),
    (record(b"\x02"), "the first message is not a ClientHello"),
    (record(b"\x01\x02"), "a hello that is too large"),
    (record(b"\x01\x00\x40\x01"), "a hello that is too large"),
]

REFUSED_INSIDE = [
    (b"", "a hello cut short"),
    (hello(behind=b"\x00"), "a hello cut short"),
    (hello(b"", behind=b"\x00"), "a hello with more"),
    (hello(behind=b"\x00\x01"), "a hello cut short"),
    (hello(session=bytes(33)), "session id that is too long"),
    (hello(suites=b""), "no list of cipher suites"),
    (hello(suites=b"\x13"), "no list of cipher suites"),
    (hello(suites=b"\x13\x01\x13"), "no list of cipher suites"),
    (hello(compression=b""), "no compression methods"),
    (hello(b"\x00"), "extensions cut short"),
    (hello(b"\x00\x15\x00"), "extensions cut short"),
    (hello(b"\x00\x15\x00\x01"), "extensions cut short"),
    (hello(extension(PADDING, b"") * 2), "an extension that is there twice"),
    (hello(server_name(host(b"a")) * 2), "an extension that is there twice"),
    (hello(extension(SERVER_NAME, b"")), "a server name cut short"),
    (hello(extension(SERVER_NAME, b"\x00\x05\x00\x00\x01a")), "a server name cut short"),
    (hello(extension(SERVER_NAME, counted(2, host(b"a")) + b"\x00")), "a server name with more"),
    (hello(server_name()), "a server name cut short"),
    (hello(server_name(b"\x00\x00\x02a")), "a server name cut short"),
    (hello(server_name(host(b"a"), host(b"b"))), "a server name with more"),
    (hello(server_name(host(b"a"), host(b"b", 1))), "a server name with more"),
    (hello(server_name(host(b"a", 1))), "not a host name"),
    (hello(server_name(host(b"a" * 256))), "a server name that is too long"),
    *(
        (hello(server_name(host(b"a%cb" % byte))), "bytes that no name has")
        for byte in (0x00, 0x0A, 0x1F, 0x7F, 0x80, 0xE4, 0xFF)
    ),
    *(
        (hello(server_name(host(name))), "an empty part")
        for name in (b"", b".", b"..", b"a..", b".a", b"a..b")
    ),
    (hello(extension(PROTOCOLS, b"")), "a list of protocols cut short"),
    (hello(extension(PROTOCOLS, b"\x00\x04\x02h2")), "a list of protocols cut short"),
    (hello(extension(PROTOCOLS, b"\x00\x03\x02h2\x00")), "a list of protocols with more"),
    (hello(extension(PROTOCOLS, b"\x00\x03\x03h2")), "a list of protocols cut short"),
    (hello(protocols()), "a list of protocols without a name"),
    (hello(protocols(b"h2", b"")), "a list of protocols without a name"),
]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [*REFUSED_EARLY, *((record(message(body)), complaint) for body, complaint in REFUSED_INSIDE)],
)
def test_what_is_no_hello_is_refused_at_the_byte_that_shows_it(data: bytes, complaint: str) -> None:
    reader = HelloReader()
    for byte in byte_by_byte(data[:-1]):
        assert reader.feed(byte) is None
    with pytest.raises(MalformedError, match=complaint):
        reader.feed(data[-1:])


def test_a_body_that_ends_too_soon_is_refused_wherever_it_ends() -> None:
    body = hello(server_name(host(b"example.org")) + protocols(b"h2"), session=bytes(32))
    complete = [end for end in range(len(body)) if _is_hello(body[:end])]
    assert complete == [len(hello(session=bytes(32)))]  # a hello without extensions is one too


def _is_hello(body: bytes) -> bool:
    return isinstance(outcome(record(message(body))), ClientHello)


def test_the_limit_is_the_callers() -> None:
    body = hello()
    data = record(message(body))
    assert HelloReader(len(body)).feed(data) == (None, ())
    with pytest.raises(MalformedError, match="a hello that is too large"):
        HelloReader(len(body) - 1).feed(data[: 5 + 4])


# The work


class CountedBytes(bytes):
    """Adds up how many bytes are taken out of it, and out of what has been taken."""

    taken = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        if not isinstance(key, slice):
            return found
        CountedBytes.taken += len(found)
        return CountedBytes(found)


def _many_extensions(count: int) -> bytes:
    return message(hello(b"".join(extension(1000 + number, b"") for number in range(count))))


@pytest.mark.parametrize(
    "cut",
    [
        pytest.param(lambda made: [records(made, [1] * len(made))], id="records of a byte"),
        pytest.param(lambda made: byte_by_byte(record(made)), id="segments of a byte"),
        pytest.param(
            lambda made: byte_by_byte(records(made, [1] * len(made))),
            id="segments and records of a byte",
        ),
    ],
)
def test_twice_the_bytes_are_twice_the_work(cut: Callable[[bytes], list[bytes]]) -> None:
    once, twice = (_work(cut(_many_extensions(count))) for count in (500, 1000))
    assert once < twice < 2.1 * once


def _work(parts: list[bytes]) -> int:
    """Lines that the module runs for these parts, and bytes that it takes out of them."""
    lines = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal lines
        if frame.f_code.co_filename != _client_hello.__file__:
            return None
        lines += event == "line"
        return trace

    CountedBytes.taken = 0
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        answer = read(*map(CountedBytes, parts))
    finally:
        sys.settrace(before)
    assert answer == (None, ())
    return lines + CountedBytes.taken


# Whatever comes

SIZES = st.lists(st.integers(1, 80), max_size=40)
LABELS = st.from_regex(r"[a-zA-Z][a-zA-Z0-9_-]{0,15}", fullmatch=True)
NAMES = st.lists(LABELS, min_size=1, max_size=5).map(".".join)
ASCII_PROTOCOLS = st.lists(
    st.text(st.characters(max_codepoint=127), min_size=1, max_size=255), max_size=5
)
VERSIONS = st.sampled_from([TLS_1_2, TLS_1_3])
REAL = [
    real("www.example.org", ["h2", "http/1.1"], TLS_1_3),
    real("localhost", [], TLS_1_2),
    real(None, ["h2"], TLS_1_3),
]
EDITS = st.lists(
    st.tuples(st.integers(0, 700), st.integers(0, 3), st.binary(max_size=4)), max_size=8
)


def edited(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """At each place so many bytes are gone and others are there."""
    for place, gone, put in edits:
        place %= len(data) + 1
        data = data[:place] + put + data[place + gone :]
    return data


@settings(max_examples=150, deadline=None)
@given(st.none() | NAMES, ASCII_PROTOCOLS, VERSIONS, SIZES, SIZES)
def test_a_real_hello_is_read_right_however_it_comes(
    name: str | None,
    names: list[str],
    version: ssl.TLSVersion,
    record_sizes: list[int],
    segment_sizes: list[int],
) -> None:
    data = records(real_message(name, names, version), record_sizes)
    expected = (name if name is None else name.lower(), tuple(names))
    assert read(*pieces(data, segment_sizes)) == expected


@settings(max_examples=300, deadline=None)
@given(
    st.none() | NAMES,
    st.lists(st.binary(min_size=1, max_size=255), max_size=5),
    st.dictionaries(st.integers(17, 65535), st.binary(max_size=50), max_size=5),
    st.binary(max_size=32),
    st.integers(1, 200),
    st.binary(min_size=1, max_size=255),
    st.randoms(use_true_random=False),
    SIZES,
    SIZES,
)
def test_a_hello_of_any_content_is_read_right(
    name: str | None,
    names: list[bytes],
    others: dict[int, bytes],
    session: bytes,
    suites: int,
    compression: bytes,
    order: random.Random,
    record_sizes: list[int],
    segment_sizes: list[int],
) -> None:
    extensions = [extension(kind, data) for kind, data in others.items()]
    if name is not None:
        extensions.append(server_name(host(name.encode())))
    if names:
        extensions.append(protocols(*names))
    order.shuffle(extensions)
    body = hello(b"".join(extensions), session, bytes(2 * suites), compression)
    data = records(message(body), record_sizes)
    expected = (name if name is None else name.lower(), tuple(n.decode("latin-1") for n in names))
    assert read(*pieces(data, segment_sizes)) == expected


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(REAL), EDITS)
def test_a_hello_that_has_been_tampered_with_has_an_outcome(
    data: bytes, edits: list[tuple[int, int, bytes]]
) -> None:
    check_any_bytes(edited(data, edits))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
@example(b"")
def test_any_bytes_have_an_outcome(data: bytes) -> None:
    check_any_bytes(data)
    check_any_bytes(record(message(data)))
    check_any_bytes(record(message(hello(data))))
