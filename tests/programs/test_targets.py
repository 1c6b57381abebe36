"""Several targets: each in turn, a dead one skipped and tried again."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from freebsd_splice.proxies import Address, Service, TargetError, _targets
from freebsd_splice.proxies._connecting import StarvedError
from freebsd_splice.proxies._observing import Observer
from freebsd_splice.proxies._services import Member
from freebsd_splice.proxies._targets import Targets
from programs.processes import MAIN, Program, Proxy, Server, exchange, until

StartProxy = Callable[..., Proxy]
StartServer = Callable[..., Server]

A, B, C = (Address(f"{name}.example", 80) for name in "abc")


class Somebody:
    """A client whose dialling is the test's affair, and the loop's clock."""

    handshake = SimpleNamespace(suspended=nullcontext, during=nullcontext)
    observer = Observer()

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.dead: set[Address] = set()
        self.failure = errno.ECONNREFUSED
        self.tried: list[Address] = []
        self.prepared: list[object] = []
        self.looked_up_by: list[object] = []
        #: Where it is set, those that dial wait for it.
        self.answers: asyncio.Event | None = None
        clock = SimpleNamespace(time=lambda: self.now)
        monkeypatch.setattr(_targets, "asyncio", SimpleNamespace(get_running_loop=lambda: clock))

    async def dial(self, address: Address, *, prepare: object, look_up: object) -> Address:
        self.tried.append(address)
        self.prepared.append(prepare)
        self.looked_up_by.append(look_up)
        if self.answers is not None:
            await self.answers.wait()
        if address in self.dead:
            raise TargetError(self.failure, f"cannot connect to {address}")
        return address

    def ask(self, targets: Targets) -> list[Address]:
        """Dial once; gives what was tried."""
        self.tried.clear()
        run(targets.dial(self))  # type: ignore[arg-type]
        return list(self.tried)


def run(call: Coroutine[Any, Any, object]) -> object:
    return asyncio.run(call)


@pytest.fixture
def somebody(monkeypatch: pytest.MonkeyPatch) -> Somebody:
    return Somebody(monkeypatch)


def test_each_client_gets_the_next_target(somebody: Somebody) -> None:
    targets = Targets([A, B, C])
    assert [somebody.ask(targets) for _ in range(5)] == [[A], [B], [C], [A], [B]]


def test_how_a_socket_is_made_ready_is_passed_on(somebody: Somebody) -> None:
    def prepare(*_: object) -> None: ...

    run(Targets([A]).dial(somebody, prepare=prepare))  # type: ignore[arg-type]
    assert somebody.prepared == [prepare]


@pytest.mark.parametrize("for_names", [True, False])
def test_who_looks_names_up(for_names: bool, somebody: Somebody) -> None:
    """Name servers that were named are for all names, those of the system for services alone."""
    servers = SimpleNamespace(look_up="by them", are_for_names=for_names)
    run(Targets([A], resolver=servers).dial(somebody))  # type: ignore[arg-type]
    assert somebody.looked_up_by == ["by them" if for_names else None]


class Registry:
    """Name servers that know one service."""

    are_for_names = True

    def __init__(self, *priorities: tuple[Address, int]) -> None:
        self.priorities = priorities

    async def look_up(self, *_: object) -> None: ...

    async def members(self, service: Service) -> tuple[Member, ...]:
        return tuple(Member(address, priority, 0) for address, priority in self.priorities)


WEB = Service("web")


def targets_of(registry: Registry, *others: Address) -> Targets:
    return Targets([WEB, *others], retry_after=10, resolver=registry)  # type: ignore[arg-type]


def test_members_are_tried_by_priority_and_the_dead_skipped(somebody: Somebody) -> None:
    targets = targets_of(Registry((C, 3), (A, 1), (B, 2)))
    somebody.dead = {A, B}
    assert [somebody.ask(targets) for _ in range(2)] == [[A, B, C], [C]]
    somebody.now += 11
    somebody.dead = {A}
    assert [somebody.ask(targets) for _ in range(2)] == [[A, B], [B]]


def test_dead_members_are_tried_where_there_are_no_others(somebody: Somebody) -> None:
    targets = targets_of(Registry((A, 1), (B, 2)))
    somebody.dead = {A, B}
    for _ in range(2):
        somebody.tried.clear()
        with pytest.raises(TargetError, match=f"cannot connect to {B}"):
            run(targets.dial(somebody))  # type: ignore[arg-type]
        assert somebody.tried == [A, B]


def test_of_many_dead_members_sixteen_are_tried(somebody: Somebody) -> None:
    many = [Address(f"{number}.example", 80) for number in range(30)]
    targets = targets_of(Registry(*((each, 1) for each in many)))
    somebody.dead = set(many)
    with pytest.raises(TargetError):
        run(targets.dial(somebody))  # type: ignore[arg-type]
    assert len(set(somebody.tried)) == 16


def test_a_service_is_skipped_while_all_its_members_are(somebody: Somebody) -> None:
    targets = targets_of(Registry((A, 1)), B)
    somebody.dead = {A}
    assert [somebody.ask(targets) for _ in range(3)] == [[A, B], [B], [B]]


def test_a_service_without_members_is_skipped(
    somebody: Somebody, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    registry = Registry()
    targets = targets_of(registry, B)
    assert [somebody.ask(targets) for _ in range(4)] == 4 * [[B]]
    registry.priorities = ((A, 1),)
    assert [somebody.ask(targets) for _ in range(2)] == 2 * [[B]]
    somebody.now += 11
    assert [somebody.ask(targets) for _ in range(2)] == [[A], [B]]
    assert caplog.messages == [
        "srv:web has no members: skipped for now",
        "srv:web can be connected to again",
    ]


def test_members_that_have_left_are_forgotten(somebody: Somebody) -> None:
    """The registry chooses their names, which can be others each time."""
    registry = Registry()
    targets = targets_of(registry)
    for number in range(10):
        registry.priorities = ((Address(f"{number}.example", 80), 1),)
        somebody.ask(targets)
    assert len(targets._targets[0]._members) == 1  # type: ignore[union-attr]


def test_a_service_needs_name_servers() -> None:
    with pytest.raises(TypeError, match="srv:web needs name servers"):
        Targets([Service("web")])


def test_a_dead_one_is_skipped_for_its_time_and_then_tried_again(somebody: Somebody) -> None:
    targets = Targets([A, B], retry_after=10)
    somebody.dead = {A}
    assert somebody.ask(targets) == [A, B]
    for passed in (0.0, 5.0, 4.9):
        somebody.now += passed
        assert [somebody.ask(targets) for _ in range(2)] == [[B], [B]]
    somebody.now += 0.2
    assert [somebody.ask(targets) for _ in range(4)] == [[B], [A, B], [B], [B]]


def test_one_that_is_alive_again_is_used_again(
    somebody: Somebody, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    targets = Targets([A, B], retry_after=10)
    somebody.dead = {A}
    somebody.ask(targets)
    somebody.dead = set()
    somebody.now += 11
    assert [somebody.ask(targets) for _ in range(4)] == [[B], [A], [B], [A]]
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", f"cannot connect to {A}: skipped for now"),
        ("INFO", f"{A} can be connected to again"),
    ]


def test_one_client_at_a_time_finds_out_whether_it_lives_again(
    somebody: Somebody,
) -> None:
    """It can take as long as the connect timeout: the others go elsewhere meanwhile."""
    targets = Targets([A, B], retry_after=10)
    somebody.dead = {A}
    somebody.ask(targets)
    somebody.now += 11
    somebody.tried.clear()

    async def all_at_once() -> None:
        somebody.answers = asyncio.Event()
        asking = [
            asyncio.ensure_future(targets.dial(somebody))  # type: ignore[arg-type]
            for _ in range(10)
        ]
        while len(somebody.tried) < 10:
            await asyncio.sleep(0)
        somebody.answers.set()
        await asyncio.gather(*asking)

    asyncio.run(all_at_once())
    assert Counter(somebody.tried) == {A: 1, B: 10}


def test_a_death_is_reported_once(somebody: Somebody, caplog: pytest.LogCaptureFixture) -> None:
    targets = Targets([A, B], retry_after=10)
    somebody.dead = {A}
    for _ in range(5):
        somebody.now += 11
        somebody.ask(targets)
        somebody.ask(targets)
    assert somebody.tried == [A, B] or somebody.tried == [B]
    assert caplog.text.count("skipped for now") == 1


def test_where_all_are_dead_the_last_ones_error_is_everybodys(
    somebody: Somebody,
) -> None:
    targets = Targets([A, B, C], retry_after=10)
    somebody.dead = {A, B, C}
    for order in ([A, B, C], [B, C, A], [C, A, B]):
        somebody.tried.clear()
        with pytest.raises(TargetError, match=re.escape(str(order[-1]))):
            run(targets.dial(somebody))  # type: ignore[arg-type]
        assert somebody.tried == order
    somebody.dead = {A, C}
    assert somebody.ask(targets)[-1] == B


def test_who_fails_at_a_dead_target_too_blames_no_other(
    somebody: Somebody, caplog: pytest.LogCaptureFixture
) -> None:
    """Several clients can wait for the same target when it is found dead."""
    targets = Targets([A, B])
    somebody.dead = {A}
    error = TargetError(errno.ETIMEDOUT, f"cannot connect to {A}")
    for _ in range(3):
        assert run(targets.dial(somebody, after=(0, error))) == B  # type: ignore[arg-type]
    assert somebody.tried == [B, B, B]
    assert caplog.text.count("skipped for now") == 1
    assert [somebody.ask(targets) for _ in range(2)] == [[B], [B]]
    somebody.dead = {B}
    with pytest.raises(TargetError, match=re.escape(str(B))):
        run(targets.dial(somebody, after=(0, error)))  # type: ignore[arg-type]


def test_of_one_target_alone_nobody_says_that_it_is_skipped(
    somebody: Somebody, caplog: pytest.LogCaptureFixture
) -> None:
    targets = Targets([A])
    somebody.dead = {A}
    for _ in range(2):
        with pytest.raises(TargetError):
            run(targets.dial(somebody))  # type: ignore[arg-type]
    assert somebody.tried == [A, A]
    assert not caplog.records


def test_too_few_descriptors_are_no_fault_of_the_target(somebody: Somebody) -> None:
    targets = Targets([A, B])

    class Starved(Somebody):
        async def dial(self, address: Address, *, prepare: object, look_up: object) -> Address:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="open files"):
        run(targets.dial(Starved(patch)))  # type: ignore[arg-type]
    assert [somebody.ask(targets) for _ in range(2)] == [[B], [A]]


def test_no_way_from_a_clients_address_is_no_targets_fault(somebody: Somebody) -> None:
    targets = Targets([A, B])
    somebody.dead, somebody.failure = {A}, errno.EAFNOSUPPORT
    assert [somebody.ask(targets) for _ in range(3)] == [[A, B], [B], [A, B]]


def test_a_long_shortage_is_no_targets_fault(
    somebody: Somebody,
) -> None:
    targets = Targets([A, B])

    class Starved(Somebody):
        async def dial(self, address: Address, *, prepare: object, look_up: object) -> Address:
            self.tried.append(address)
            raise StarvedError(address, os.strerror(errno.EMFILE))

    with pytest.MonkeyPatch.context() as patch:
        starved = Starved(patch)
        with pytest.raises(StarvedError, match="for too long: Too many open files"):
            run(targets.dial(starved))  # type: ignore[arg-type]
        assert starved.tried == [A]
    assert [somebody.ask(targets) for _ in range(2)] == [[B], [A]]


def test_a_look_up_that_lacked_descriptors_says_so(somebody: Somebody) -> None:
    """It has taken its time, and no other target is tried."""

    class Starved(Registry):
        async def members(self, service: Service) -> tuple[Member, ...]:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with pytest.raises(StarvedError, match="srv:web, for too long: Too many open files; raise"):
        run(targets_of(Starved(), A).dial(somebody))  # type: ignore[arg-type]
    assert somebody.tried == []


def forward_to(*targets: tuple[str, int], options: tuple[str, ...] = ()) -> list[str]:
    return ["forward", *options, "127.0.0.1:0", *("{}:{}".format(*target) for target in targets)]


def greeting(text: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(text)


def ask(front: Proxy) -> bytes:
    with front.connect() as client:
        return client.recv(100)


def test_connections_are_spread_over_the_targets(server: StartServer, proxy: StartProxy) -> None:
    first, second = server(greeting(b"first")), server(greeting(b"second"))
    front = proxy(*forward_to(first.address, second.address))
    assert [ask(front) for _ in range(4)] == [b"first", b"second"] * 2


def test_a_dead_target_costs_nobody_anything(
    refusing: socket.socket, server: StartServer, proxy: StartProxy
) -> None:
    alive = server(greeting(b"alive"))
    options = ("--retry-after", "1000")
    front = proxy(*forward_to(refusing.getsockname(), alive.address, options=options))
    assert [ask(front) for _ in range(6)] == [b"alive"] * 6
    where = "{}:{}".format(*refusing.getsockname())
    refused = rf"cannot connect to {where} \({where}: Connection refused\)"
    front.expect(f"WARNING {refused}: skipped for now$")
    front.expect("bytes up", 6)
    assert len(front.find("WARNING")) == 1


def test_a_silent_one_delays_nobody_but_who_finds_it_out(
    silent: socket.socket, server: StartServer, proxy: StartProxy
) -> None:
    alive = server(greeting(b"alive"))
    options = ("--retry-after", "1000", "--connect-timeout", "1")
    front = proxy(*forward_to(silent.getsockname(), alive.address, options=options))
    start = time.monotonic()
    assert ask(front) == b"alive"
    assert time.monotonic() - start > 0.9
    start = time.monotonic()
    assert [ask(front) for _ in range(6)] == [b"alive"] * 6
    assert time.monotonic() - start < 3  # once more for each second of them would be 3


def test_a_target_that_comes_back_gets_clients_again(
    refusing: socket.socket, echo_server: Server, proxy: StartProxy
) -> None:
    options = ("--retry-after", "0.2")
    front = proxy(*forward_to(refusing.getsockname(), echo_server.address, options=options))
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"
    front.expect("skipped for now")
    refusing.listen(100)

    def found() -> bool:
        with front.connect():
            return bool(front.find("INFO {}:{} can be connected to again$".format(*where)))

    where = refusing.getsockname()
    until(found)


def test_with_all_targets_dead_the_log_says_why_it_is_closed(
    refusing: socket.socket, proxy: StartProxy
) -> None:
    with socket.socket() as another:
        another.bind(("127.0.0.1", 0))
        front = proxy(*forward_to(refusing.getsockname(), another.getsockname()))
        for number in (1, 2):
            assert ask(front) == b""
            front.expect(r"WARNING 127\.0\.0\.1:\d+: cannot connect to ", number)
        assert len(front.find("skipped for now")) == 2
        refusing.listen()
        with front.connect(), refusing.accept()[0]:
            front.expect("can be connected to again")


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_a_time_that_is_none_is_wrong_usage(seconds: str, program: Callable[..., Program]) -> None:
    run = program(*MAIN, *forward_to(("127.0.0.1", 1), options=("--retry-after", seconds)))
    assert run.end() == 2
    assert "argument --retry-after: " in run.lines[-1]
