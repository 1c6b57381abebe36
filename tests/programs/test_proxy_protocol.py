"""PROXY headers that proxies send, and those that they accept from the proxies in front of them."""

from __future__ import annotations

import asyncio
import errno
import json
import re
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from faults.cells import cell
from freebsd_splice.proxies import Address, Client, Limits, ProxyServer, _transparent, forwarder
from freebsd_splice.proxies._addresses import Resolved
from freebsd_splice.proxies._handshake import Handshake
from freebsd_splice.proxies._proxy_headers import (
    FirstBytes,
    ProxyHeaders,
    _ends_of,
    _first_readable,
    parse_network,
)
from freebsd_splice.proxies._proxy_protocol import (
    LONGEST_HEADER,
    Endpoint,
    ProxyHeader,
    Version,
    make_header,
    read_header,
)
from programs.clients import (
    ALLOW_LOOPBACK,
    arrive,
    name_of,
    no_accidents,
    nothing_kept,
    read_head,
    read_to_eof,
    send_byte_by_byte,
)
from programs.processes import (
    PATIENCE,
    Forwarder,
    Proxy,
    Server,
    closing_all,
    echo,
    exchange,
    needs_address,
    receive,
    reset,
)
from programs.test_server import OpenedTarget, running
from programs.test_transparent import HARMLESS, say_who_it_is

StartForwarder = Callable[..., Forwarder]
StartServer = Callable[..., Server]

CLIENT, FRONT = ("192.0.2.7", 40000), ("198.51.100.1", 443)
CLIENT_6, FRONT_6 = ("2001:db8::7", 40000, 0, 0), ("2001:db8::1", 443, 0, 0)
HEADER = make_header("v2", CLIENT, FRONT)
LINE = make_header("v1", CLIENT, FRONT)

#: Of the clients here these are proxies, and 127.0.0.2 is none.
ACCEPT = ("--accept-proxy", "127.0.0.1,::1")


class Heard:
    """A server that takes a header, sends what follows back, and remembers what it has heard."""

    def __init__(self) -> None:
        self.headers: list[ProxyHeader] = []

    def __call__(self, connection: socket.socket) -> None:
        received = b""
        while (found := read_header(received)) is None:
            piece = connection.recv(1)
            if not piece:
                return
            received += piece
        self.headers.append(found[0])
        while data := connection.recv(1 << 16):
            connection.sendall(data)


@pytest.fixture
def heard() -> Heard:
    return Heard()


def connect_from(front: Proxy, source: str) -> socket.socket:
    needs_address(source)
    where = ("127.0.0.1", front.port)
    return socket.create_connection(where, PATIENCE, source_address=(source, 0))


def greet(connection: socket.socket) -> None:
    """Speak first, and send back what comes then."""
    connection.sendall(b"220 hello")
    echo(connection)


def is_closed(client: socket.socket) -> bool:
    """Whether nothing but the end comes."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:  # bytes of the client's had not been read
        return True


# Sending


#: Why a client is closed whose header isn't whole in time.
LATE = r"the PROXY header did not come in 0\.5 s \(--handshake-timeout\)$"


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_target_is_told_who_the_client_is(
    version: Version, host: str, heard: Heard, server: StartServer, forwarder: StartForwarder
) -> None:
    listen = "[::1]:0" if host == "::1" else "127.0.0.1:0"
    front = forwarder(server(heard).address, "--send-proxy", version, listen=listen)
    with front.connect(host) as client:
        name = name_of(client)
        assert exchange(client, b"hello") == b"hello"
        (header,) = heard.headers
        assert header.version == version
        assert (header.source, header.destination) == (client.getsockname(), client.getpeername())
        assert (header.unique_id is None) == (version == "v1")
    # The header is in no count.
    front.expect(rf"INFO {name} -> .*: 5 bytes up, 5 bytes down, eof,")
    no_accidents(front)


def test_each_connection_has_an_id_which_the_log_has_too(
    heard: Heard, server: StartServer, forwarder: StartForwarder
) -> None:
    front = forwarder(server(heard).address, "--send-proxy", "v2", "--log-format", "json")
    (line,) = front.expect(r'"listening on [\d.]+:(\d+)"')
    for _ in range(2):
        with socket.create_connection(("127.0.0.1", int(line[1])), PATIENCE) as client:
            assert exchange(client, b"hello") == b"hello"
    front.expect('"event": "connection"', 2)
    logged = [json.loads(text) for text in front.lines if '"event": "connection"' in text]
    sent = [header.unique_id.decode() for header in heard.headers if header.unique_id]
    assert sorted(line["unique_id"] for line in logged) == sorted(sent)
    assert len(set(sent)) == 2
    assert all("via" not in line for line in logged)


def test_a_target_that_speaks_first_gets_its_header_at_once(
    server: StartServer, forwarder: StartForwarder
) -> None:
    """A client that says nothing has nothing to do with it."""

    def greet(connection: socket.socket) -> None:
        assert receive(connection, 6) == b"PROXY "
        connection.sendall(b"220 hello")

    front = forwarder(server(greet).address, "--send-proxy", "v1")
    with front.connect() as client:
        assert receive(client, 9) == b"220 hello"


def test_a_target_that_does_not_take_the_header_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, echo_server: Server
) -> None:
    """And the client learns of a reset as of a reset."""

    async def open_target(client: Client) -> OpenedTarget:
        target = await client.dial(Address(*echo_server.address))
        target.shutdown(socket.SHUT_WR)  # EPIPE
        return target, (b"", b"")

    async def main() -> None:
        async with running(ProxyServer(open_target, send_proxy="v1")) as address:
            reader, writer = await asyncio.open_connection(*address)
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(), PATIENCE)
            writer.close()

    asyncio.run(main())
    assert ": the target did not take the PROXY header: Broken pipe" in caplog.text


class FullTarget:
    """A connection whose send buffer has room for so many bytes."""

    def __init__(self, room: int) -> None:
        self.room, self.sent = room, b""

    def send(self, data: bytes) -> int:
        if not self.room:
            raise BlockingIOError
        self.sent += data[: self.room]
        return min(self.room, len(data))


@pytest.mark.parametrize("room", [0, 10, 1000])
def test_what_a_small_buffer_has_no_room_for_goes_first(room: int) -> None:
    """``--buffer-size`` can be anything."""

    async def open_target(client: Client) -> OpenedTarget:
        target = FullTarget(room)
        first = await headers.before_join(client, target, (b"up", b"down"))  # type: ignore[arg-type]
        found.append((target.sent + first[0], first[1]))
        raise OSError

    async def main() -> None:
        async with running(ProxyServer(open_target)) as address:
            reader, writer = await asyncio.open_connection(*address)
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
            expected.append(writer.get_extra_info("sockname"))
            writer.close()

    headers = ProxyHeaders([], "v1", None)
    found: list[tuple[bytes, bytes]] = []
    expected: list[tuple[str, int]] = []
    asyncio.run(main())
    ((up, down),) = found
    assert down == b"down"
    assert re.fullmatch(rb"PROXY TCP4 127.0.0.1 127.0.0.1 %d \d+\r\nup" % expected[0][1], up)


# Accepting


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(
    ("source", "destination", "shown"),
    [(CLIENT, FRONT, r"192\.0\.2\.7:40000"), (CLIENT_6, FRONT_6, r"\[2001:db8::7\]:40000")],
)
def test_the_log_shows_the_client_and_who_connected_for_it(
    version: Version,
    source: Endpoint,
    destination: Endpoint,
    shown: str,
    echo_server: Server,
    forwarder: StartForwarder,
) -> None:
    front = forwarder(echo_server.address, *ACCEPT)
    with front.connect() as client:
        name = name_of(client)
        client.sendall(make_header(version, source, destination))
        assert exchange(client, b"hello") == b"hello"
    front.expect(rf"INFO {shown} via {name} -> .*: 5 bytes up, 5 bytes down, eof,")
    no_accidents(front)


def test_the_log_for_programs_has_both(echo_server: Server, forwarder: StartForwarder) -> None:
    front = forwarder(echo_server.address, *ACCEPT, "--log-format", "json")
    (line,) = front.expect(r'"listening on [\d.]+:(\d+)"')
    with socket.create_connection(("127.0.0.1", int(line[1])), PATIENCE) as client:
        name = "{}:{}".format(*client.getsockname())
        client.sendall(make_header("v2", CLIENT, FRONT, unique_id=b"\xffid"))
        assert exchange(client, b"hello") == b"hello"
    front.expect('"event": "connection"')
    logged = json.loads(next(text for text in front.lines if '"event": "connection"' in text))
    assert (logged["client"], logged["via"]) == ("192.0.2.7:40000", name)
    assert logged["unique_id"] == "\\xffid"
    assert logged["bytes_up"] == 5


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        pytest.param(make_header("v2", None, None), "", id="LOCAL"),
        pytest.param(b"PROXY UNKNOWN\r\n", "", id="UNKNOWN"),
        pytest.param(b"PROXY UNKNOWN ffff 1 2 3\r\n", "", id="UNKNOWN with more"),
        pytest.param(
            make_header("v2", b"/run/app", b"/run/front"), "unix:/run/app via ", id="Unix"
        ),
        pytest.param(make_header("v2", b"/a\n", b""), r"unix:'/a\\n' via ", id="Unix, forged"),
    ],
)
def test_a_client_without_an_address_counts_as_who_connected(
    data: bytes, shown: str, echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, *ACCEPT, "--max-per-client", "1")
    with front.connect() as client:
        name = name_of(client)
        client.sendall(data)
        assert exchange(client, b"hello") == b"hello"
        with front.connect() as another:
            another.sendall(data)
            assert is_closed(another)
            front.expect(rf"WARNING {shown}{name_of(another)}: refused: the client already has 1 ")
    front.expect(rf"INFO {shown}{name} -> ")
    no_accidents(front)


def test_headers_come_in_any_pieces_and_what_follows_is_late(
    server: StartServer, forwarder: StartForwarder
) -> None:
    """The target speaks as soon as the header is there: nobody waits for the client's bytes."""

    front = forwarder(server(greet).address, *ACCEPT)
    for header in (HEADER, LINE):
        with front.connect() as client:
            send_byte_by_byte(client, header)
            assert receive(client, 9) == b"220 hello"
            assert exchange(client, b"late") == b"late"
    no_accidents(front)


def test_a_look_up_takes_the_turn_of_whom_the_header_names() -> None:
    """All clients of the proxy in front would share the turn of one else."""
    turns: list[str] = []

    async def look_up(address: Address, seconds: float, client: str) -> list[Resolved]:
        turns.append(client)
        raise OSError(errno.EHOSTUNREACH, "no such name")

    async def open_target(client: Client) -> OpenedTarget:
        return await client.dial(Address("www.example.org", 80), look_up=look_up), (b"", b"")

    async def main() -> None:
        async with running(ProxyServer(open_target, accept_proxy=["127.0.0.1"])) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(HEADER)
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
            writer.close()

    asyncio.run(main())
    assert turns == [CLIENT[0]]


@pytest.mark.parametrize("header", [HEADER, LINE])
def test_nothing_behind_the_header_is_read(header: bytes, echo_server: Server) -> None:
    """It would be lost where ``open_target`` reads nothing."""
    waiting: list[bytes] = []

    async def open_target(client: Client) -> OpenedTarget:
        assert not client.handshake.received
        waiting.append(client.socket.recv(100, socket.MSG_PEEK))
        return await client.dial(Address(*echo_server.address)), (b"", b"")

    async def main() -> None:
        server = ProxyServer(open_target, accept_proxy=["127.0.0.1"])
        async with running(server) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(header + b"hello")
            assert await asyncio.wait_for(reader.readexactly(5), PATIENCE) == b"hello"
            writer.close()

    asyncio.run(main())
    assert waiting == [b"hello"]


def test_what_a_header_says_is_sent_on(
    heard: Heard, server: StartServer, forwarder: StartForwarder
) -> None:
    front = forwarder(server(heard).address, *ACCEPT, "--send-proxy", "v2")
    given = make_header("v2", CLIENT_6, FRONT_6, authority="www.example.org", unique_id=b"id")
    with front.connect() as client:
        client.sendall(given + b"hello")
        assert receive(client, 5) == b"hello"
    (header,) = heard.headers
    assert header == read_header(given)[0]  # type: ignore[index]


@pytest.mark.parametrize(
    ("version", "expected"),
    [("v1", ProxyHeader("v1")), ("v2", ProxyHeader("v2", b"/run/app", b"/run/front"))],
)
def test_a_unix_client_is_sent_on_where_the_format_can(
    version: Version,
    expected: ProxyHeader,
    heard: Heard,
    server: StartServer,
    forwarder: StartForwarder,
) -> None:
    front = forwarder(server(heard).address, *ACCEPT, "--send-proxy", version)
    with front.connect() as client:
        client.sendall(make_header("v2", b"/run/app", b"/run/front") + b"hello")
        assert receive(client, 5) == b"hello"
    (header,) = heard.headers
    assert header._replace(fields=()) == expected


def test_a_check_of_health_is_sent_on_as_who_made_it(
    heard: Heard, server: StartServer, forwarder: StartForwarder
) -> None:
    front = forwarder(server(heard).address, *ACCEPT, "--send-proxy", "v1")
    with front.connect() as client:
        client.sendall(make_header("v2", None, None) + b"hello")
        assert receive(client, 5) == b"hello"
        (header,) = heard.headers
        assert header == ProxyHeader("v1", client.getsockname(), client.getpeername())


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        pytest.param(
            b"GET / HTTP/1.1\r\n", "malformed PROXY header: not a PROXY header", id="none"
        ),
        pytest.param(b"PROXY TCP4 1.2.3.4\r\n", "malformed PROXY header: not two", id="malformed"),
        pytest.param(
            b"PROXY UNKNOWN" + b" " * 100, "malformed PROXY header: a line that", id="long line"
        ),
        pytest.param(
            HEADER[:14] + LONGEST_HEADER.to_bytes(2, "big"),
            "malformed PROXY header: a header that is too long",
            id="long",
        ),
        pytest.param(
            HEADER[:-1],
            LATE,
            id="incomplete",
        ),
        pytest.param(b"", LATE, id="nothing"),
        pytest.param(
            LINE[:-1],
            LATE,
            id="incomplete line",
        ),
    ],
)
def test_without_a_whole_header_there_is_no_connection(
    data: bytes,
    complaint: str,
    server: StartServer,
    forwarder: StartForwarder,
) -> None:
    served: list[int] = []
    front = forwarder(
        server(lambda _: served.append(1)).address, *ACCEPT, "--handshake-timeout", "0.5"
    )
    with nothing_kept(front), front.connect() as client:
        client.sendall(data)
        assert is_closed(client)
        front.expect(f"WARNING {name_of(client)}: {complaint}")
    assert not served


@pytest.mark.parametrize("data", [b"", HEADER[:-1]])
@pytest.mark.parametrize("how", ["FIN", "RST"])
@cell(
    "the peer closes",
    "forward",
    "handshake",
    sees="amid a PROXY header: the log says it, and nothing is dialled",
)
def test_a_sender_that_leaves_before_its_header_is_complete(
    data: bytes, how: str, echo_server: Server, forwarder: StartForwarder
) -> None:
    options = (*ACCEPT, "--handshake-timeout", "1000", "--log-level", "debug")
    front = forwarder(echo_server.address, *options)
    with nothing_kept(front):
        client = arrive(front)
        name = name_of(client)
        client.sendall(data)
        if how == "FIN":
            client.close()
            front.expect(f"WARNING {name}: client closed the connection before its PROXY header$")
        else:
            reset(client)
            front.expect(f"WARNING {name}: the PROXY header did not come: Connection reset by peer")


def test_a_sender_that_is_read_needs_no_looks() -> None:
    """Reading fails by itself, as in the handshake."""

    async def open_target(client: Client) -> OpenedTarget:
        raise AssertionError

    async def main() -> None:
        server = ProxyServer(open_target, accept_proxy=["127.0.0.1"])
        async with running(server) as address:
            _, writer = await asyncio.open_connection(*address)
            while not [client for client in server._clients.values() if not client.handshake.stage]:
                await asyncio.sleep(0.01)
            writer.close()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


# Whose header is refused


@pytest.mark.parametrize("header", [HEADER, LINE], ids=["v2", "v1"])
@pytest.mark.parametrize("pieces", ["at once", "byte by byte"])
def test_a_header_from_anybody_else_is_refused(
    header: bytes, pieces: str, server: StartServer, forwarder: StartForwarder
) -> None:
    came: list[bytes] = []
    gone = threading.Event()

    def serve(connection: socket.socket) -> None:
        came.append(read_to_eof(connection))
        gone.set()

    front = forwarder(server(serve).address, *ACCEPT)
    with connect_from(front, "127.0.0.2") as client:
        if pieces == "at once":
            client.sendall(header)
        else:
            send_byte_by_byte(client, header[:12])
        assert is_closed(client)
        reason = "client sent a PROXY header, and is in none of the networks that may"
        front.expect(f"WARNING {name_of(client)}: {reason}$")
    assert gone.wait(PATIENCE)
    assert came == [b""]
    no_accidents(front)


@pytest.mark.parametrize(
    "pieces", [[b"hello"], [b"P"], [b"PROX", b"IMITY"], [b"\r\n", b"\r\n", b"x"], [b"PROXY", b"."]]
)
def test_anybody_else_is_served_as_if_there_were_no_headers(
    pieces: list[bytes], echo_server: Server, forwarder: StartForwarder
) -> None:
    """Where bytes could begin a header, more are awaited."""
    front = forwarder(echo_server.address, *ACCEPT, "--log-level", "debug")
    data = b"".join(pieces)
    with connect_from(front, "127.0.0.2") as client:
        name = name_of(client)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        front.expect(f"DEBUG {name}: accepted$")
        for piece in pieces:
            client.sendall(piece)
        client.shutdown(socket.SHUT_WR)
        assert read_to_eof(client) == data
    front.expect(rf"INFO {name} -> .*: {len(data)} bytes up, {len(data)} bytes down, eof,")
    no_accidents(front)


def test_anybody_else_may_wait_for_the_target_to_speak(
    server: StartServer, forwarder: StartForwarder
) -> None:
    """A header that comes after that is not taken for one by any target."""

    front = forwarder(server(greet).address, *ACCEPT)
    with connect_from(front, "127.0.0.2") as client:
        assert receive(client, 9) == b"220 hello"
        assert exchange(client, LINE) == LINE


def test_the_target_speaks_while_the_first_bytes_are_undecided(
    server: StartServer, forwarder: StartForwarder
) -> None:
    speak = threading.Event()

    def greet_later(connection: socket.socket) -> None:
        assert speak.wait(PATIENCE)
        greet(connection)

    front = forwarder(server(greet_later).address, *ACCEPT)
    with connect_from(front, "127.0.0.2") as client:
        client.sendall(b"PROX")
        speak.set()
        assert receive(client, 13) == b"220 helloPROX"
        assert exchange(client, b"Y anything") == b"Y anything"


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_a_target_that_leaves_is_nothing_to_wait_for(
    how: str, server: StartServer, forwarder: StartForwarder
) -> None:
    front = forwarder(server(reset if how == "RST" else socket.socket.close).address, *ACCEPT)
    with connect_from(front, "127.0.0.2") as client:
        assert is_closed(client)


def test_who_says_nothing_and_hears_nothing_has_the_idle_timeout(
    server: StartServer, forwarder: StartForwarder
) -> None:
    front = forwarder(server(read_to_eof).address, *ACCEPT, "--idle-timeout", "0.3")
    with connect_from(front, "127.0.0.2") as client:
        assert is_closed(client)
        front.expect(f"{name_of(client)}: client and target said nothing for 0.3 s$")


def test_who_resets_meanwhile_gives_the_place_back(
    server: StartServer, forwarder: StartForwarder
) -> None:
    taken = threading.Event()

    def serve(connection: socket.socket) -> None:
        taken.set()
        read_to_eof(connection)

    front = forwarder(server(serve).address, *ACCEPT)
    client = connect_from(front, "127.0.0.2")
    name = name_of(client)
    assert taken.wait(PATIENCE)
    reset(client)
    front.expect(f"WARNING {name}: Connection reset by peer$")
    no_accidents(front)


@pytest.mark.parametrize(("sent", "is_served"), [(b"hello", True), (LINE, False), (HEADER, False)])
def test_what_a_proxy_reads_is_looked_at_too(
    sent: bytes, is_served: bool, echo_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """And is not awaited a second time."""

    async def open_target(client: Client) -> OpenedTarget:
        await client.handshake.read(lambda piece: piece)
        target = await client.dial(Address(*echo_server.address))
        return target, (bytes(client.handshake.received), b"")

    async def main() -> None:
        async with running(ProxyServer(open_target, accept_proxy=["::1"])) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(sent)
            expected = sent if is_served else b""
            assert await asyncio.wait_for(reader.read(len(sent)), PATIENCE) == expected
            writer.close()

    asyncio.run(main())
    assert ("client sent a PROXY header" in caplog.text) != is_served


@pytest.mark.parametrize("command", ["connect", "socks5"])
@pytest.mark.parametrize("header", [b"", LINE, HEADER])
def test_proxies_that_are_asked_refuse_a_strangers_header(
    command: str, header: bytes, echo_server: Server, proxy: Callable[..., Proxy]
) -> None:
    if command == "connect":
        pytest.importorskip("h11", reason="it is what the proxy parses requests with")
    front = proxy(command, *ALLOW_LOOPBACK, *ACCEPT, "127.0.0.1:0")
    _, port = echo_server.address
    with connect_from(front, "127.0.0.2") as client:
        name = name_of(client)
        if command == "connect":
            request = b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: a\r\n\r\n" % port
        else:
            request = b"\x05\x01\x00\x05\x01\x00\x01\x7f\0\0\1" + port.to_bytes(2, "big")
        client.sendall(header + request)
        if header:
            assert is_closed(client)
            front.expect(f"WARNING {name}: client sent a PROXY header, and is in none ")
        else:
            if command == "connect":
                assert read_head(client).startswith(b"HTTP/1.1 200")
            else:
                assert receive(client, 12)[:4] == b"\x05\x00\x05\x00"
            assert exchange(client, b"hello") == b"hello"
    no_accidents(front)


# Limits, and other things that look at a client's address


def test_a_client_that_a_header_names_has_its_own_places(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    options = (*ACCEPT, "--max-per-client", "1", "--log-level", "debug")
    front = forwarder(echo_server.address, *options)
    with closing_all() as clients:
        for _ in range(3):  # who has yet to say for whom is nobody's place
            clients.append(arrive(front))
        for number, client in enumerate(clients, 1):
            client.sendall(make_header("v1", (f"192.0.2.{number}", 1), FRONT))
            assert exchange(client, b"hello") == b"hello"
        with front.connect() as refused:
            refused.sendall(make_header("v1", ("192.0.2.2", 2), FRONT) + b"hello")
            assert is_closed(refused)
            via = name_of(refused)
        front.expect(rf"WARNING 192.0.2.2:2 via {via}: refused: the client already has 1 conn")
        clients.pop(1).close()
        front.expect("INFO 192.0.2.2:1 via .*, eof,")
        with front.connect() as client:
            client.sendall(make_header("v1", ("192.0.2.2", 3), FRONT))
            assert exchange(client, b"hello") == b"hello"
    no_accidents(front)


@pytest.mark.parametrize("options", [ACCEPT, ("--send-proxy", "v1")])
def test_a_client_without_a_header_has_one_place(
    options: tuple[str, ...], heard: Heard, server: StartServer, forwarder: StartForwarder
) -> None:
    """It is counted once, and given back once."""
    serve = echo if options is ACCEPT else heard
    front = forwarder(server(serve).address, *options, "--max-per-client", "1")
    for number in (1, 2):
        with connect_from(front, "127.0.0.2") as client:
            assert exchange(client, b"hello") == b"hello"
            with connect_from(front, "127.0.0.2") as refused:
                assert is_closed(refused)
        front.expect("5 bytes up, 5 bytes down, eof", number)


def test_a_client_that_hangs_up_is_named_too(
    silent: socket.socket, forwarder: StartForwarder
) -> None:
    port = silent.getsockname()[1]
    options = (*ACCEPT, "--connect-timeout", "1000", "--max-per-client", "1")
    front = forwarder(("127.0.0.1", port), *options, "--log-level", "debug")
    for count in (1, 2):
        client = arrive(front)
        client.sendall(LINE)
        with front.connect() as another:  # who is served after the first: the header was read
            another.sendall(b"no header")
            assert is_closed(another)
        reset(client)
        reason = f"client closed the connection while connecting to 127.0.0.1:{port}"
        front.expect(rf"WARNING 192.0.2.7:40000 via 127\.0\.0\.1:\d+: {reason}$", count)
    assert not front.find("refused")


def test_transparent_is_as_the_client_that_the_header_names(
    server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_address("127.0.0.2")
    monkeypatch.setattr(_transparent, "_OPTIONS", HARMLESS)
    target = Address(*server(say_who_it_is).address)

    async def main() -> None:
        front = forwarder(target, transparent=True, accept_proxy=["127.0.0.1"])
        async with running(front) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(make_header("v1", ("127.0.0.2", 1), FRONT))
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b"127.0.0.2"
            writer.close()

    asyncio.run(main())


# The library


def _clients_of(
    echo_server: Server, sent: bytes, **options: Any
) -> tuple[Client, tuple[Any, ...], str]:
    """The client that sent this, as a proxy is given it, its real address, and who it counts as."""
    clients: list[tuple[Client, tuple[Any, ...], str]] = []

    async def open_target(client: Client) -> OpenedTarget:
        clients.append((client, client.socket.getpeername(), client.counts_as))
        return await client.dial(Address(*echo_server.address)), (b"", b"")

    async def main() -> None:
        server = ProxyServer(open_target, limits=Limits(handshake_bytes=5), **options)
        async with running(server) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(sent)
            assert await asyncio.wait_for(reader.readexactly(5), PATIENCE) == b"hello"
            writer.close()
        assert not server._occupancy._live

    asyncio.run(main())
    return clients[0]


def test_a_proxy_of_ones_own_sees_the_client_of_the_header(echo_server: Server) -> None:
    """The header has its own size, besides the handshake's."""
    given = make_header("v2", CLIENT_6, FRONT_6, authority="www.example.org", unique_id=b"id")
    client, peer, counts_as = _clients_of(echo_server, given + b"hello", accept_proxy=["127.0.0.1"])
    assert (client.address, client.name) == (CLIENT_6, "[2001:db8::7]:40000")
    assert (client.peer, counts_as) == (peer, "2001:db8::/64")
    assert client.header is not None
    assert client.header.destination == FRONT_6
    assert (client.header.authority, client.unique_id) == ("www.example.org", b"id")


@pytest.mark.parametrize("networks", [[], ["192.0.2.0/24"], ["::1"]])
def test_a_proxy_of_ones_own_sees_a_client_without_a_header(
    networks: list[str], echo_server: Server
) -> None:
    client, peer, counts_as = _clients_of(echo_server, b"hello", accept_proxy=networks)
    assert (client.address, client.peer, client.header) == (peer, peer, None)
    assert (client.name, str(client), counts_as) == ("{}:{}".format(*peer),) * 2 + ("127.0.0.1",)
    assert client.unique_id is None


def test_where_there_are_no_headers_there_is_nothing_to_do() -> None:
    async def open_target(client: Client) -> OpenedTarget:
        raise AssertionError

    assert ProxyServer(open_target)._headers is None
    assert ProxyServer(open_target, send_proxy="v1")._headers is not None
    assert ProxyServer(open_target, accept_proxy=["::/0"])._headers is not None


@pytest.mark.parametrize(
    ("networks", "address", "is_sender"),
    [
        (["10.0.0.0/8"], ("10.1.2.3", 1), True),
        (["10.0.0.0/8"], ("::ffff:10.1.2.3", 1, 0, 0), True),
        (["10.0.0.0/8", "fe80::/10"], ("fe80::1%eth0", 1, 0, 2), True),
        (["10.1.2.3"], ("10.1.2.4", 1), False),
        (["0.0.0.0/0"], ("::1", 1, 0, 0), False),
        (["::/0"], ("10.1.2.3", 1), False),
        (["0.0.0.0/0", "::/0"], (), False),
        ([], ("10.1.2.3", 1), False),
    ],
)
def test_who_must_send_a_header(
    networks: list[str], address: tuple[Any, ...], is_sender: bool
) -> None:
    assert ProxyHeaders(networks, None, None).is_sender(address) is is_sender


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is not a network"),
        ("example.org", "is not a network"),
        ("10.0.0.0/33", "is not a network"),
        ("10.0.0.1/8", "that it is in is 10.0.0.0/8"),
        ("::ffff:10.0.0.0/104", "write it as IPv4"),
    ],
)
def test_what_is_not_a_network(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_network(text)


def test_a_version_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="send_proxy must be 'v1', 'v2' or None, not 'v3'"):
        forwarder(Address("127.0.0.1", 1), send_proxy="v3")  # type: ignore[arg-type]


def test_the_first_bytes_are_remembered_no_longer_than_needed() -> None:
    first = FirstBytes()
    first(b"PROXIMITY" * 1000)
    assert first.are_known
    for _ in range(100):
        first(LINE)  # behind that it is none
    assert len(first._bytes) <= 12


@pytest.mark.parametrize("number", [0, 1])
def test_a_loop_that_reports_no_readiness(number: int, opened: ExitStack) -> None:
    """As Windows' usual one: the sockets are looked at, now and then."""
    pairs = [socket.socketpair() for _ in range(2)]
    for pair in pairs:
        for sock in pair:
            opened.enter_context(sock)

    def refuse(*_: object) -> None:
        raise NotImplementedError

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(loop, "add_reader", refuse)
            waiting = loop.create_task(_first_readable(pairs[0][0], pairs[1][0]))
            await asyncio.sleep(0)
            assert not waiting.done()
            pairs[number][1].send(b"x")
            assert await asyncio.wait_for(waiting, PATIENCE) is pairs[number][0]

    asyncio.run(main())


def test_a_client_that_has_reset_is_known_to_nobody() -> None:
    """Some systems know no addresses of it any more."""
    sock = socket.socket()
    sock.close()

    async def main() -> None:
        client = Client(sock, CLIENT, Handshake(sock, 1, 1), None)  # type: ignore[arg-type]
        assert _ends_of(client) == (None, None)
        client.is_known_as(ProxyHeader("v1", CLIENT_6, FRONT_6))
        assert _ends_of(client) == (CLIENT_6, FRONT_6)

    asyncio.run(main())
