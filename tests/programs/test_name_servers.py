"""Targets that name servers steer: SRV records, and addresses that hold for their TTL."""

from __future__ import annotations

import asyncio
import errno
import io
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("dns", reason="it is what asks the name servers, and the test's own is of it")

import dns.message
import dns.rcode
import dns.resolver

from faults.cells import cell
from freebsd_splice.proxies import Address, NameServers, Service
from freebsd_splice.proxies._addresses import Resolved
from freebsd_splice.proxies._name_servers import parse_server
from freebsd_splice.proxies._services import Member
from programs.clients import Certificates, no_accidents, nothing_kept, read_to_eof
from programs.name_server import NameServer
from programs.processes import (
    MAIN,
    PATIENCE,
    Forwarder,
    Program,
    Proxy,
    Server,
    descriptors_left,
    reset,
    until,
)

WEB = "_http._tcp.example.org"
StartServer = Callable[..., Server]
StartForwarder = Callable[..., Forwarder]


@pytest.fixture
def names() -> Iterator[NameServer]:
    with closing(NameServer()) as server:
        yield server


def run(waiting: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(waiting, PATIENCE))


def members(names: NameServer, name: str = WEB, timeout: float = PATIENCE) -> tuple[Member, ...]:
    servers = NameServers([names.address], timeout=timeout)
    found: tuple[Member, ...] = run(servers.members(Service(name)))
    return found


def addresses(names: NameServer, host: str = "www.example.org") -> list[Resolved]:
    servers = NameServers([names.address], timeout=PATIENCE)
    found: list[Resolved] = run(servers.look_up(Address(host, 80), PATIENCE))
    return found


# What is asked, and what is made of the answer


def test_srv_records_are_members(names: NameServer) -> None:
    names.say(WEB, "SRV", "1 10 8001 a.example.org.", "2 0 8002 b.example.org.")
    assert set(members(names)) == {
        Member(Address("a.example.org", 8001), 1, 10),
        Member(Address("b.example.org", 8002), 2, 0),
    }


def test_an_alias_of_a_service_is_followed(names: NameServer) -> None:
    names.say("web.example.org", "CNAME", f"{WEB}.")
    names.say(WEB, "SRV", "1 10 8001 a.example.org.")
    assert len(members(names, "web.example.org")) == 1


@pytest.mark.parametrize("record", ["0 0 0 .", "0 0 80 .", "0 0 0 a.example.org."])
def test_a_record_that_leads_nowhere_is_no_member(record: str, names: NameServer) -> None:
    """The root says that the service is not to be had (RFC 2782)."""
    names.say(WEB, "SRV", record, "0 0 80 b.example.org.")
    assert [member.address for member in members(names)] == [Address("b.example.org", 80)]


@pytest.mark.parametrize("known", [True, False], ids=["other records", "no such name"])
def test_a_service_without_records_has_no_members(known: bool, names: NameServer) -> None:
    if known:
        names.say(WEB, "TXT", '"hello"')
    assert members(names) == ()


def test_many_members_come_over_tcp(names: NameServer) -> None:
    names.say(WEB, "SRV", *(f"0 1 80 member-{number}.example.org." for number in range(500)))
    assert len(members(names)) == 500
    assert names.asked[WEB, "SRV"] == 2


def test_both_kinds_of_addresses_are_found(names: NameServer) -> None:
    names.say("www.example.org", "A", "192.0.2.1", "192.0.2.2")
    names.say("www.example.org", "AAAA", "2001:db8::1", "::ffff:192.0.2.3")
    found = addresses(names)
    assert {str(each) for each in found} == {
        *("192.0.2.1:80", "192.0.2.2:80", "[2001:db8::1]:80", "192.0.2.3:80"),
    }


@pytest.mark.parametrize("failing", ["A", "AAAA"])
def test_one_kind_is_enough(failing: str, names: NameServer) -> None:
    """Some servers answer for one of them alone."""
    names.say("www.example.org", "A", "192.0.2.1")
    names.say("www.example.org", "AAAA", "2001:db8::1")

    def answering(question: dns.message.Message) -> bytes:
        is_failing = question.question[0].rdtype.name == failing
        return (names.fail if is_failing else names.answer)(question)

    names.answering = answering
    (found,) = addresses(names)
    assert found.family == (socket.AF_INET6 if failing == "A" else socket.AF_INET)


def test_addresses_hold_for_the_shorter_time_of_both_kinds(names: NameServer) -> None:
    names.say("www.example.org", "A", "192.0.2.1", ttl=1000)
    names.say("www.example.org", "AAAA", "2001:db8::1", ttl=10)
    _, ttl = NameServers([names.address])._questions.addresses("www.example.org")
    assert 8 < ttl <= 10


def test_a_kind_without_an_answer_is_asked_for_soon(names: NameServer) -> None:
    names.say("www.example.org", "A", "192.0.2.1", ttl=1000)
    names.answering = lambda question: (
        names.answer(question) if question.question[0].rdtype.name == "A" else names.fail(question)
    )
    assert NameServers([names.address])._questions.addresses("www.example.org")[1] == 0


def test_an_address_needs_no_name_server(names: NameServer) -> None:
    (found,) = addresses(names, "192.0.2.7")
    assert str(found) == "192.0.2.7:80"
    assert not names.asked


def test_a_name_that_is_not_there_has_no_addresses(names: NameServer) -> None:
    with pytest.raises(OSError, match="know no address"):
        addresses(names)


def other_id(question: dns.message.Message, names: NameServer) -> bytes:
    answer = bytearray(names.answer(question))
    answer[0] ^= 0xFF
    return bytes(answer)


def other_question(question: dns.message.Message, names: NameServer) -> bytes:
    other = dns.message.make_query("other.example.org", "SRV", id=question.id)
    return names.answer(other)


def cut_short(question: dns.message.Message, names: NameServer) -> bytes:
    return names.answer(question)[:-3]


BAD_ANSWERS: dict[str, Callable[[dns.message.Message, NameServer], bytes | None]] = {
    "SERVFAIL": lambda question, names: names.fail(question),
    "silence": lambda question, names: None,
    "no bytes": lambda question, names: b"",
    "random bytes": lambda question, names: bytes(range(7, 200)),
    "the question": lambda question, names: question.to_wire(),
    "another id": other_id,
    "another question": other_question,
    "cut short": cut_short,
}


@pytest.mark.parametrize("kind", BAD_ANSWERS)
def test_a_bad_answer_is_none(kind: str, names: NameServer) -> None:
    names.say(WEB, "SRV", "1 10 8001 a.example.org.")
    names.answering = lambda question: BAD_ANSWERS[kind](question, names)
    while not names.asked:  # a busy machine may take all the time for the question
        with pytest.raises(OSError) as caught:
            members(names, timeout=0.3)
        assert caught.value.errno == errno.EHOSTUNREACH


def test_a_server_that_fails_is_followed_by_the_next(names: NameServer) -> None:
    names.say(WEB, "SRV", "1 10 8001 a.example.org.")
    with closing(NameServer()) as failing:
        failing.answering = failing.fail
        servers = NameServers([failing.address, names.address], timeout=PATIENCE)
        assert len(run(servers.members(Service(WEB)))) == 1
        assert failing.asked[WEB, "SRV"] == 1


@pytest.mark.parametrize("name", ["a" * 64 + ".example.org", "a..b", "\ud800.example.org"])
def test_what_is_no_name_is_an_error(name: str, names: NameServer) -> None:
    with pytest.raises((OSError, UnicodeError)):
        addresses(names, name)


def test_too_few_descriptors_are_a_shortage(names: NameServer) -> None:
    """The name servers are not to blame, and another target would not help."""

    async def main() -> None:
        servers = NameServers([names.address], timeout=1.0)
        with descriptors_left(0):
            await servers.members(Service(WEB))

    with pytest.raises(OSError) as caught:
        asyncio.run(main())
    assert caught.value.errno == errno.EMFILE


def test_the_loop_goes_on_while_a_name_is_looked_up(names: NameServer) -> None:
    async def main() -> None:
        loop, asked = asyncio.get_running_loop(), asyncio.Event()

        def be_silent(_: object) -> None:
            loop.call_soon_threadsafe(asked.set)

        names.answering = be_silent
        servers = NameServers([names.address], timeout=1.0)
        looking_up = asyncio.ensure_future(servers.members(Service(WEB)))
        await asked.wait()
        looking_up.cancel()
        await asyncio.gather(looking_up, return_exceptions=True)
        names.answering = names.answer

    run(main())


def test_an_address_of_an_interface_needs_no_name_server(names: NameServer) -> None:
    _, interface = socket.if_nameindex()[0]
    (found,) = addresses(names, f"fe80::1%{interface}")
    assert found.address[3] == socket.if_nametoindex(interface)
    assert not names.asked


def configured_by(text: str, monkeypatch: pytest.MonkeyPatch) -> NameServers:
    """Where the text is the system's resolv.conf(5)."""
    read = dns.resolver.Resolver.read_resolv_conf
    monkeypatch.setattr(
        dns.resolver.Resolver,
        "read_resolv_conf",
        lambda resolver, path: read(resolver, io.StringIO(text)),
    )
    return NameServers()


def test_the_systems_servers_are_for_services_alone(
    names: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system knows more names than they do, such as those of /etc/hosts."""
    servers = configured_by("nameserver 192.0.2.53", monkeypatch)
    assert not servers.are_for_names
    assert NameServers([names.address]).are_for_names
    (asked,) = servers._questions._resolver.nameservers
    assert "192.0.2.53" in str(asked)


def test_a_system_without_servers_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="there are no name servers"):
        configured_by("", monkeypatch)


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        ("127.0.0.1", Address("127.0.0.1", 53)),
        ("127.0.0.1:8600", Address("127.0.0.1", 8600)),
        ("::1", Address("::1", 53)),
        ("[::1]", Address("::1", 53)),
        ("[::1]:8600", Address("::1", 8600)),
    ],
)
def test_how_a_name_server_is_written(text: str, ours: Address) -> None:
    assert parse_server(text) == ours


@pytest.mark.parametrize(
    "text", ["", "dns.example.org", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "[::1]8600"]
)
def test_what_is_no_name_server(text: str) -> None:
    with pytest.raises(ValueError, match="is not the address of a name server"):
        NameServers([text])


# As processes


def greeter(server: StartServer, text: bytes) -> Server:
    return server(lambda connection: connection.sendall(text))


def ask(front: Proxy) -> bytes:
    with front.connect() as client:
        return client.recv(100)


def say_where(names: NameServer, *records: tuple[int, int, Server | socket.socket]) -> None:
    """Priority, weight and server of each member of WEB, all of them on this machine."""
    names.say("here.example.org", "A", "127.0.0.1")
    lines = []
    for priority, weight, server in records:
        address = server.address if isinstance(server, Server) else server.getsockname()
        lines.append(f"{priority} {weight} {address[1]} here.example.org.")
    names.say(WEB, "SRV", *lines)


def test_the_lowest_priority_is_served(
    names: NameServer, server: StartServer, forwarder: StartForwarder
) -> None:
    say_where(names, (2, 100, greeter(server, b"backup")), (1, 0, greeter(server, b"first")))
    front = forwarder(f"srv:{WEB}", "--resolver", names.address)
    assert {ask(front) for _ in range(10)} == {b"first"}
    no_accidents(front)


def test_a_dead_member_is_followed_by_the_next_priority(
    names: NameServer, refusing: socket.socket, server: StartServer, forwarder: StartForwarder
) -> None:
    """And is skipped then. Once it is back it is used again."""
    say_where(names, (1, 0, refusing), (2, 0, greeter(server, b"backup")))
    front = forwarder(f"srv:{WEB}", "--resolver", names.address, "--retry-after", "0.5")
    assert [ask(front) for _ in range(5)] == 5 * [b"backup"]
    front.expect(r"WARNING cannot connect to here\.example\.org:\d+ .*: skipped for now$")
    refusing.listen(10)

    def is_back() -> bool:
        with front.connect():
            return bool(front.find("here.example.org:.* can be connected to again"))

    until(is_back)
    no_accidents(front)


@pytest.mark.slow
def test_weights_share_the_clients_out(
    names: NameServer, server: StartServer, forwarder: StartForwarder
) -> None:
    """By chance: that 40 clients in a row go to one of two comes once in 10^12 times."""
    say_where(names, (1, 5, greeter(server, b"one")), (1, 5, greeter(server, b"two")))
    front = forwarder(f"srv:{WEB}", "--resolver", names.address)
    assert {ask(front) for _ in range(41)} == {b"one", b"two"}


def test_what_the_records_say_later_is_followed(
    names: NameServer, server: StartServer, forwarder: StartForwarder
) -> None:
    """Their TTL is over at once, so that they are used for a second."""
    say_where(names, (1, 0, greeter(server, b"old")))
    front = forwarder(f"srv:{WEB}", "--resolver", names.address)
    assert ask(front) == b"old"
    say_where(names, (1, 0, greeter(server, b"new")))
    until(lambda: ask(front) == b"new")
    no_accidents(front)


def test_a_ttl_is_kept(names: NameServer, server: StartServer, forwarder: StartForwarder) -> None:
    port = greeter(server, b"hello").address[1]
    names.say("here.example.org", "A", "127.0.0.1", ttl=1000)
    names.say("here.example.org", "AAAA", "::1", ttl=1000)
    names.say(WEB, "SRV", f"0 0 {port} here.example.org.", ttl=1000)
    front = forwarder(f"srv:{WEB}", "--resolver", names.address)
    assert {ask(front) for _ in range(10)} == {b"hello"}
    assert set(names.asked.values()) == {1}


@cell(
    "the name server is dead or slow",
    "forward",
    "any",
    sees="the answer from before is used on, for a while",
)
def test_an_old_answer_is_used_while_no_newer_one_comes(
    names: NameServer, server: StartServer, forwarder: StartForwarder
) -> None:
    say_where(names, (1, 0, greeter(server, b"hello")))
    front = forwarder(f"srv:{WEB}", "--resolver", names.address)
    assert ask(front) == b"hello"
    names.answering = names.fail
    for _ in range(2):
        until(lambda: front.find(f"cannot look up srv:{WEB}: ") or ask(front) != b"hello")
        assert ask(front) == b"hello"
    (line,) = front.find(rf"WARNING cannot look up srv:{WEB}: .*; its last answer is used for .*")
    assert "SERVFAIL" in line[0]
    no_accidents(front)


def test_a_service_without_members_costs_only_that_client(
    names: NameServer, server: StartServer, forwarder: StartForwarder
) -> None:
    """A registry has none of a service whose members are all ill: they are back some time."""
    front = forwarder(f"srv:{WEB}", "--resolver", names.address)
    with nothing_kept(front):
        assert ask(front) == b""
    front.expect(rf"WARNING 127\.0\.0\.1:\d+: srv:{WEB} has no members$")
    say_where(names, (1, 0, greeter(server, b"hello")))
    until(lambda: ask(front) == b"hello")
    no_accidents(front)


@cell(
    "the name server is dead or slow",
    "forward",
    "dialling",
    sees="those of `--resolver`: the client is closed after `--connect-timeout`; the log says it",
)
def test_name_servers_that_are_silent_cost_the_connect_timeout(
    names: NameServer, forwarder: StartForwarder
) -> None:
    names.answering = lambda question: None
    options = ("--resolver", names.address, "--connect-timeout", "0.3")
    front = forwarder(f"srv:{WEB}", *options)
    assert ask(front) == b""
    front.expect(rf"WARNING .*: cannot look up srv:{WEB}: the name servers did not answer in time$")
    no_accidents(front)


def test_another_target_serves_where_a_service_cannot_be_found(
    names: NameServer, server: StartServer, proxy: Callable[..., Proxy]
) -> None:
    names.answering = names.fail
    other = "{}:{}".format(*greeter(server, b"hello").address)
    front = proxy("forward", "--resolver", names.address, "127.0.0.1:0", f"srv:{WEB}", other)
    assert [ask(front) for _ in range(4)] == 4 * [b"hello"]
    assert len(front.expect(f"WARNING cannot look up srv:{WEB}: .*: skipped for now$")) == 1
    no_accidents(front)


def test_a_client_that_leaves_ends_its_wait_for_a_service(
    names: NameServer, forwarder: StartForwarder
) -> None:
    names.answering = lambda question: None
    front = forwarder(
        *(f"srv:{WEB}", "--resolver", names.address, "--connect-timeout", "1000"),
    )
    client = front.connect()
    until(lambda: names.asked)
    reset(client)
    front.expect(f"client closed the connection while looking up srv:{WEB}$")
    no_accidents(front)


def test_a_plain_name_is_looked_up_at_the_name_servers_too(
    names: NameServer, server: StartServer, forwarder: StartForwarder
) -> None:
    port = greeter(server, b"hello").address[1]
    names.say("www.example.org", "A", "127.0.0.1")
    front = forwarder(f"www.example.org:{port}", "--resolver", names.address)
    assert ask(front) == b"hello"
    assert names.asked["www.example.org", "A"] == 1


def test_routes_lead_to_services(
    names: NameServer, server: StartServer, proxy: Callable[..., Proxy], tmp_path: Path
) -> None:
    pytest.importorskip("trustme", reason="it makes the certificates")
    certificates = Certificates(tmp_path)
    web = server(certificates.server(lambda each: each.sendall(b"hello"), "www.example.org"))
    say_where(names, (1, 0, web))
    routes = tmp_path / "routes.toml"
    routes.write_text(f'[[route]]\nname = "www.example.org"\ntarget = "srv:{WEB}"\n')
    front = proxy("sni", "--resolver", names.address, str(routes), "127.0.0.1:0")
    context = certificates.client()
    for _ in range(2):
        with context.wrap_socket(front.connect(), server_hostname="www.example.org") as client:
            assert read_to_eof(client) == b"hello"
    no_accidents(front)


@pytest.mark.slow
def test_workers_ask_for_themselves(
    names: NameServer, server: StartServer, forwarder: StartForwarder
) -> None:
    say_where(names, (1, 0, greeter(server, b"hello")))
    front = forwarder(f"srv:{WEB}", "--resolver", names.address, "--workers", "2")
    assert {ask(front) for _ in range(20)} == {b"hello"}
    assert front.stop() == 0


@pytest.mark.parametrize("command", ["forward", "sni"])
def test_without_dnspython_the_command_says_what_to_install(
    command: str, proxy: Callable[..., Proxy], tmp_path: Path
) -> None:
    routes = tmp_path / "routes.toml"
    routes.write_text(f'default = "srv:{WEB}"\n')
    places = ("127.0.0.1:0", f"srv:{WEB}") if command == "forward" else (str(routes), "127.0.0.1:0")
    front = proxy(command, *places, patch="import sys\nsys.modules['dns'] = None")
    assert front.end() == 1
    assert 'pip install "freebsd-splice[dns]"' in front.lines[-1]


@pytest.mark.parametrize("text", ["dns.example.org", "127.0.0.1:0"])
def test_a_wrong_name_server_is_wrong_usage(text: str, program: Callable[..., Program]) -> None:
    run = program(*MAIN, "forward", "--resolver", text, "127.0.0.1:0", f"srv:{WEB}")
    assert run.end() == 2
    assert "argument --resolver: " in run.lines[-1]
