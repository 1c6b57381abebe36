"""Listening on all addresses of a name, and connecting to one of them."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest

from faults.cells import cell
from freebsd_splice._errors import SHORTAGES
from freebsd_splice.proxies import Address, ListenError, TargetError, _listening, _resolving
from freebsd_splice.proxies._addresses import Resolved, look_up
from freebsd_splice.proxies._connecting import (
    Dialer,
    ReservedDescriptors,
    set_buffers,
    tune,
)
from freebsd_splice.proxies._listening import listen_on
from programs.processes import PATIENCE, Server, descriptors_left, until


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Resolved]]:
    """What names stand for: the name servers that a test has no say in."""
    known: dict[str, list[Resolved]] = {}

    def look_up_here(address: Address, flags: int = 0) -> list[Resolved]:
        if address.host not in known:
            return look_up(address, flags)
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "not numeric")
        return known[address.host]

    monkeypatch.setattr(_resolving, "look_up", look_up_here)
    monkeypatch.setattr(_listening, "look_up", look_up_here)
    return known


def test_all_addresses_of_a_name_listen_on_the_same_free_port(
    names: dict[str, list[Resolved]],
) -> None:
    names["both"] = [
        Resolved(socket.AF_INET6, ("::1", 0, 0, 0)),
        Resolved(socket.AF_INET, ("127.0.0.1", 0)),
    ]
    six, four = listen_on(Address("both", 0), 5)
    with six, four:
        assert six.getsockname()[:2] == ("::1", four.getsockname()[1])
        assert four.getsockname() == ("127.0.0.1", six.getsockname()[1])


def test_without_a_host_every_address_is_listened_on() -> None:
    listeners = listen_on(Address("", 0), 5)
    try:
        for host in ("127.0.0.1", "::1"):
            address = (host, listeners[0].getsockname()[1])
            socket.create_connection(address, PATIENCE).close()
    finally:
        for listener in listeners:
            listener.close()


def test_another_port_is_taken_if_one_address_lacks_the_first(
    names: dict[str, list[Resolved]], monkeypatch: pytest.MonkeyPatch
) -> None:
    names["both"] = [
        Resolved(socket.AF_INET6, ("::1", 0, 0, 0)),
        Resolved(socket.AF_INET, ("127.0.0.1", 0)),
    ]
    tried: list[Resolved] = []
    real = _listening._listener

    def listener_whose_port_is_taken_at_first(resolved: Resolved, **options: Any) -> socket.socket:
        if resolved.family == socket.AF_INET:
            tried.append(resolved)
            if len(tried) < 4:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        return real(resolved, **options)

    monkeypatch.setattr(_listening, "_listener", listener_whose_port_is_taken_at_first)
    six, four = listen_on(Address("both", 0), 5)
    with six, four:
        assert six.getsockname()[1] == four.getsockname()[1]
    assert len({resolved.address for resolved in tried}) >= 4


def test_a_port_that_was_asked_for_is_not_replaced_by_another(echo_server: Server) -> None:
    with pytest.raises(ListenError) as caught:
        listen_on(Address(*echo_server.address), 5)
    assert caught.value.errno == errno.EADDRINUSE


def test_addresses_that_the_machine_does_not_have_are_left_out(
    names: dict[str, list[Resolved]],
) -> None:
    absent = Resolved(socket.AF_INET, ("192.0.2.1", 0))
    names["partly"] = [absent, Resolved(socket.AF_INET, ("127.0.0.1", 0))]
    (listener,) = listen_on(Address("partly", 0), 5)
    with listener:
        assert listener.getsockname()[0] == "127.0.0.1"

    names["elsewhere"] = [absent]
    with pytest.raises(ListenError, match="cannot listen on elsewhere:0: ") as caught:
        listen_on(Address("elsewhere", 0), 5)
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_what_can_be_no_name_is_said_to_be_none() -> None:
    impossible = Address("a" * 64 + ".example", 80)
    with pytest.raises(ListenError, match="not a valid host name"):
        listen_on(impossible, 5)
    with pytest.raises(TargetError, match="not a valid host name"):
        asyncio.run(Dialer(PATIENCE).dial(impossible))


def test_the_timeout_is_for_all_addresses_together(
    names: dict[str, list[Resolved]], silent: socket.socket
) -> None:
    names["several"] = 5 * [Resolved(socket.AF_INET, silent.getsockname())]
    start = time.monotonic()
    with pytest.raises(TargetError, match="no answer in time, see --connect-timeout") as caught:
        asyncio.run(Dialer(0.5).dial(Address("several", 80)))
    assert caught.value.errno == errno.ETIMEDOUT
    assert 0.4 < time.monotonic() - start < 1.5


@pytest.fixture
def slow_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowNames]:
    slow = SlowNames()
    monkeypatch.setattr(_resolving, "look_up", slow.look_up)
    yield slow
    slow.answer.set()


class SlowNames:
    """Name servers that answer when the test says so."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer = threading.Event()
        self.address: tuple[str, int] = ("127.0.0.1", 0)
        self.error: OSError | None = None

    def look_up(self, address: Address, flags: int = 0) -> list[Resolved]:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "not numeric")
        self.asked += 1
        assert self.answer.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        return [Resolved(socket.AF_INET, self.address)]


def test_many_look_ups_of_a_name_share_one_thread(
    slow_names: SlowNames, echo_server: Server
) -> None:
    slow_names.address = echo_server.address
    threads = threading.active_count()

    async def dial_100_times() -> list[socket.socket]:
        dialer = Dialer(PATIENCE)
        dials = [asyncio.ensure_future(dialer.dial(Address("slow", 80))) for _ in range(100)]
        await asyncio.sleep(0)
        assert threading.active_count() == threads + 1
        slow_names.answer.set()
        connected = await asyncio.gather(*dials)
        assert slow_names.asked == 1
        connected.append(await dialer.dial(Address("slow", 80)))
        assert slow_names.asked == 2  # the next one asks anew
        return connected

    for connected in asyncio.run(dial_100_times()):
        connected.close()


def test_look_ups_of_many_names_take_turns(
    slow_names: SlowNames, echo_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients choose the names: they must not have as many threads as they like."""
    monkeypatch.setattr(_resolving, "MOST_LOOK_UPS", 3)
    slow_names.address = echo_server.address

    async def dial_10_names() -> None:
        dialer = Dialer(PATIENCE)
        dials = [asyncio.ensure_future(dialer.dial(Address(f"name{n}", 80))) for n in range(10)]
        while slow_names.asked < 3:
            await asyncio.sleep(0.001)
        assert len(_look_ups()) == 3
        for gone in dials[3:6]:  # they wait for their turn, and give up
            gone.cancel()
        await asyncio.wait(dials[3:6])
        slow_names.answer.set()
        for connected in await asyncio.gather(*dials[:3], *dials[6:]):
            connected.close()
        assert slow_names.asked == 7
        assert not dialer._resolver._fair_executor._pending

    asyncio.run(dial_10_names())


def test_no_thread_for_a_look_up_is_a_shortage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may give it back: the server waits, and tries again."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(OSError) as caught:
        asyncio.run(Dialer(PATIENCE).dial(Address("some.name", 80)))
    assert caught.value.errno in SHORTAGES


def test_a_look_up_that_lacks_memory_is_a_shortage(slow_names: SlowNames) -> None:
    """The resolver has numbers of its own for that."""
    slow_names.error = socket.gaierror(socket.EAI_MEMORY, "Memory allocation failure")
    slow_names.answer.set()
    with pytest.raises(OSError) as caught:
        asyncio.run(Dialer(PATIENCE).dial(Address("some.name", 80)))
    assert caught.value.errno in SHORTAGES
    assert not isinstance(caught.value, TargetError)


@pytest.mark.parametrize(
    "error",
    [
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        OSError(errno.EBUSY, "Device or resource busy"),  # glibc's, at times
    ],
    ids=lambda error: error.strerror,
)
def test_a_name_unknown_for_lack_of_descriptors_is_a_shortage(
    error: OSError, slow_names: SlowNames
) -> None:
    """The C library can't read its files then, and says that there is no such name."""
    slow_names.error = error
    slow_names.answer.set()

    async def dial() -> None:
        dialer = Dialer(PATIENCE)
        with pytest.raises(TargetError):
            await dialer.dial(Address("some.name", 80))
        with descriptors_left(12), pytest.raises(OSError) as caught:
            await dialer.dial(Address("other.name", 80))
        assert caught.value.errno == errno.EMFILE
        assert not isinstance(caught.value, TargetError)

    asyncio.run(dial())


@cell(
    "the name server is dead or slow",
    "processes",
    "any",
    sees="one client's look-ups leave threads to the others'",
    others=True,
)
def test_one_client_leaves_threads_to_the_others(
    slow_names: SlowNames, echo_server: Server
) -> None:
    """As many as one client may have are at work for it: another's name is looked up at once."""
    assert (_resolving.MOST_LOOK_UPS, _resolving.MOST_OF_ONE_CLIENT) == (64, 8)
    slow_names.address = echo_server.address

    async def dial() -> None:
        dialer = Dialer(PATIENCE)

        def dial_name(name: str, client: str) -> asyncio.Future[socket.socket]:
            return asyncio.ensure_future(dialer.dial(Address(name, 80), client=client))

        greedy = [dial_name(f"name{n}", "greedy") for n in range(100)]
        modest = dial_name("other", "modest")
        await asyncio.sleep(0)
        assert len(_look_ups()) == 8 + 1
        slow_names.answer.set()
        for connected in await asyncio.gather(modest, *greedy):
            connected.close()

    asyncio.run(dial())


def test_without_a_thread_everybody_hears_and_nothing_is_left(
    slow_names: SlowNames, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many wait: each failure once called the next."""
    monkeypatch.setattr(_resolving, "MOST_LOOK_UPS", 1)
    start_thread = threading.Thread.start
    without_threads = False

    def start(thread: threading.Thread) -> None:
        if without_threads:
            raise RuntimeError("can't start new thread")
        start_thread(thread)

    async def dial() -> list[Any]:
        nonlocal without_threads
        dialer = Dialer(PATIENCE)
        dials = [
            asyncio.ensure_future(dialer.dial(Address(f"name{n}", 80), client=f"client{n}"))
            for n in range(2000)
        ]
        await asyncio.sleep(0)
        without_threads = True
        slow_names.answer.set()
        failures = await asyncio.gather(*dials, return_exceptions=True)
        turns = dialer._resolver._fair_executor
        assert not any((turns._pending, turns._queues, turns._running))
        return failures

    monkeypatch.setattr(threading.Thread, "start", start)
    slow_names.error = socket.gaierror(socket.EAI_NONAME, "unknown")
    first, *others = asyncio.run(dial())
    assert isinstance(first, TargetError)
    assert {error.errno for error in others} == {errno.ENOMEM}


@cell(
    "the name server is dead or slow",
    "processes",
    "dialling",
    sees="EHOSTUNREACH after the connect timeout; the look-up's thread is not waited for",
)
def test_a_silent_name_server_is_given_up_after_the_timeout(
    slow_names: SlowNames,
) -> None:
    with pytest.raises(TargetError, match="cannot look up slow: no answer in time"):
        asyncio.run(Dialer(0.1).dial(Address("slow", 80)))
    slow_names.answer.set()  # too late, and nobody minds
    until(lambda: not _look_ups())


def test_the_next_attempt_hears_the_firsts_late_answer(
    slow_names: SlowNames, echo_server: Server
) -> None:
    slow_names.address = echo_server.address

    async def dial_twice() -> None:
        dialer = Dialer(0.1)
        with pytest.raises(TargetError):
            await dialer.dial(Address("slow", 80))
        slow_names.answer.set()
        with closing(await dialer.dial(Address("slow", 80))):
            assert slow_names.asked == 1

    asyncio.run(dial_twice())


def test_a_failure_that_comes_too_late_is_no_news(
    slow_names: SlowNames, caplog: pytest.LogCaptureFixture
) -> None:
    slow_names.error = socket.gaierror(socket.EAI_NONAME, "unknown")

    async def dial_and_give_up() -> None:
        dialer = Dialer(0.1)
        with pytest.raises(TargetError, match="no answer in time"):
            await dialer.dial(Address("slow", 80))
        slow_names.answer.set()
        while dialer._resolver._fair_executor._pending:
            await asyncio.sleep(0.01)

    asyncio.run(dial_and_give_up())
    gc.collect()  # asyncio complains of an error that nobody has asked for when it is forgotten
    assert not caplog.records


def test_of_many_addresses_a_few_are_tried_and_fewer_named(
    names: dict[str, list[Resolved]], refusing: socket.socket
) -> None:
    """Whoever owns a name chooses how many it has."""
    names["many"] = 100 * [Resolved(socket.AF_INET, refusing.getsockname())]
    asked: list[Resolved] = []

    def refusal(resolved: Resolved) -> str | None:
        asked.append(resolved)
        return None

    with pytest.raises(TargetError) as caught:
        asyncio.run(Dialer(PATIENCE).dial(Address("many", 80), refusal=refusal))
    assert len(asked) == 16
    assert str(caught.value).count("127.0.0.1") == 3
    assert str(caught.value).endswith("; and 13 more)")


def test_of_many_refused_addresses_a_few_are_named(names: dict[str, list[Resolved]]) -> None:
    names["many"] = [Resolved(socket.AF_INET, (f"10.0.0.{n}", 80)) for n in range(1, 101)]
    with pytest.raises(TargetError) as caught:
        asyncio.run(Dialer(PATIENCE).dial(Address("many", 80), refusal=str))
    assert str(caught.value) == (
        "many:80 is refused: 10.0.0.1:80; 10.0.0.2:80; 10.0.0.3:80; and 13 more"
    )


@pytest.mark.parametrize("no_way", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
@pytest.mark.parametrize("told", [errno.ECONNREFUSED, errno.ETIMEDOUT, None])
def test_an_addresss_answer_outweighs_no_way_to_another(
    told: int | None,
    no_way: int,
    names: dict[str, list[Resolved]],
    refusing: socket.socket,
    silent: socket.socket,
) -> None:
    """Whether a target is dead depends on it."""
    telling = silent if told == errno.ETIMEDOUT else refusing
    names["several"] = [
        Resolved(socket.AF_INET, telling.getsockname()),
        Resolved(socket.AF_INET, ("127.0.0.1", 1)),
    ]

    def prepare(sock: socket.socket, resolved: Resolved) -> None:
        if told is None or resolved == names["several"][1]:
            raise OSError(no_way, os.strerror(no_way))

    with pytest.raises(TargetError) as caught:
        asyncio.run(Dialer(0.4).dial(Address("several", 80), prepare=prepare))
    assert caught.value.errno == (told or no_way)


def test_options_of_a_connection_that_is_gone_are_no_failure() -> None:
    """FreeBSD refuses them once a client has reset; here a closed socket stands for it."""
    gone = socket.socket()
    gone.close()
    tune(gone, True)


def test_too_few_descriptors_are_no_fault_of_the_target(echo_server: Server) -> None:
    async def dial() -> None:
        with descriptors_left(0):
            await Dialer(PATIENCE).dial(Address(*echo_server.address))

    with pytest.raises(OSError) as caught:
        asyncio.run(dial())
    assert caught.value.errno == errno.EMFILE
    assert not isinstance(caught.value, TargetError)


def test_spare_descriptors_are_there_when_they_are_needed() -> None:
    spare = ReservedDescriptors(2, 0)
    with descriptors_left(0):
        with pytest.raises(OSError):
            os.dup(0)
        spare.keep(1)
        os.close(os.dup(0))
        spare.keep(0)


def test_spare_descriptors_are_taken_all_or_none() -> None:
    with descriptors_left(5):
        ReservedDescriptors(2, 3).keep(0)
        with pytest.raises(OSError) as caught:
            ReservedDescriptors(2, 4)
        assert caught.value.errno == errno.EMFILE
        ReservedDescriptors(2, 3).keep(0)


def _look_ups() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("look up")]


@pytest.mark.parametrize("error", [errno.ENOENT, errno.EACCES])
def test_without_a_null_device_descriptors_are_spared_too(
    error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chroot has none, and waiting wouldn't help."""

    def no_device(path: str, flags: int) -> int:
        raise OSError(error, os.strerror(error), path)

    monkeypatch.setattr(os, "open", no_device)
    with descriptors_left(5):
        ReservedDescriptors(2, 3).keep(0)
        with pytest.raises(OSError) as caught:
            ReservedDescriptors(2, 4)
        assert caught.value.errno == errno.EMFILE


def test_a_null_device_that_cannot_be_opened_is_a_shortage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def short_of_files(path: str, flags: int) -> int:
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE), path)

    monkeypatch.setattr(os, "open", short_of_files)
    with pytest.raises(OSError) as caught:
        ReservedDescriptors(2, 3)
    assert caught.value.errno == errno.ENFILE


def test_a_connection_to_itself_is_none(opened: ExitStack) -> None:
    """It comes about where nobody listens and the system chooses that very port; here we do."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = sock.getsockname()

    def prepare(sock: socket.socket, resolved: Resolved) -> None:
        sock.bind(resolved.address)

    with pytest.raises(TargetError) as caught:
        asyncio.run(Dialer(PATIENCE).dial(Address(*address), prepare=prepare))
    assert caught.value.errno == errno.ECONNREFUSED
    assert os.strerror(errno.ECONNREFUSED) in str(caught.value)
    # The server that belongs there can start at once.
    server = opened.enter_context(socket.socket())
    server.bind(address)
    server.listen()
    with asyncio.run(Dialer(PATIENCE).dial(Address(*address))) as connected:
        assert connected.getpeername() == address


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a loopback may take a moment")
def test_a_target_on_this_machine_takes_no_round_of_the_loop(
    echo_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "add_writer", lambda *_: pytest.fail("it was waited for"))
        with await Dialer(PATIENCE).dial(Address(*echo_server.address)) as sock:
            assert sock.getpeername() == echo_server.address

    asyncio.run(main())


def test_a_mapped_address_is_connected_to_over_ipv4(echo_server: Server) -> None:
    host, port = echo_server.address
    with asyncio.run(Dialer(PATIENCE).dial(Address(f"::ffff:{host}", port))) as connected:
        assert connected.family == socket.AF_INET
        assert connected.getpeername() == (host, port)


def test_a_mapped_address_is_listened_on_over_ipv4() -> None:
    (listener,) = listen_on(Address("::ffff:127.0.0.1", 0), 5)
    with listener:
        assert listener.family == socket.AF_INET
        assert listener.getsockname()[0] == "127.0.0.1"


def test_buffers_that_cannot_be_had_are_named(
    echo_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on FreeBSD, past kern.ipc.maxsockbuf."""

    def setsockopt(sock: socket.socket, level: int, option: int, *value: Any) -> None:
        if option == socket.SO_SNDBUF:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        super(socket.socket, sock).setsockopt(level, option, *value)

    monkeypatch.setattr(socket.socket, "setsockopt", setsockopt, raising=False)
    reason = f"no buffers of 9 bytes: {os.strerror(errno.ENOBUFS)}"
    with pytest.raises(ListenError, match=reason):
        listen_on(Address("127.0.0.1", 0), 5, buffers=9)
    dialer = Dialer(PATIENCE)
    address = Address(*echo_server.address)
    with pytest.raises(TargetError, match=reason):
        asyncio.run(dialer.dial(address, prepare=lambda sock, _: set_buffers(sock, 9)))
