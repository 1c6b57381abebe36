"""Which of several addresses is tried when, and what becomes of the connections that lose."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import socket
from collections.abc import Awaitable, Callable

import pytest

from freebsd_splice.proxies import _attempts
from freebsd_splice.proxies._addresses import Resolved
from freebsd_splice.proxies._attempts import first_connected, interleaved

SIX = [Resolved(socket.AF_INET6, (f"2001:db8::{number}", 80, 0, 0)) for number in range(4)]
FOUR = [Resolved(socket.AF_INET, (f"192.0.2.{number}", 80)) for number in range(20)]

#: Seconds in which whatever should happen has happened.
LONG = 60.0


class Network:
    """Addresses that answer when the test says so; each connection is one end of a real pair."""

    def __init__(self) -> None:
        self.tried: list[Resolved] = []
        self.seconds: list[float] = []
        self.made: list[socket.socket] = []
        self.most_open = 0
        self._answers: dict[Resolved, asyncio.Future[Exception | None]] = {}
        self._news = asyncio.Event()

    async def connect(self, candidate: Resolved, seconds: float) -> socket.socket:
        self.tried.append(candidate)
        self.seconds.append(seconds)
        self._news.set()
        sock = socket.socket()
        self.made.append(sock)
        self.most_open = max(self.most_open, self.open())
        try:
            error = await self._answer(candidate)
            if error is not None:
                raise error
        except BaseException:
            sock.close()
            raise
        return sock

    def answers(self, candidate: Resolved, error: Exception | None = None) -> None:
        self._answer(candidate).set_result(error)

    def refuses(self, candidate: Resolved) -> None:
        self.answers(candidate, OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)))

    async def until_tried(self, count: int) -> None:
        while len(self.tried) < count:
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), LONG)

    def open(self) -> int:
        return sum(sock.fileno() >= 0 for sock in self.made)

    def _answer(self, candidate: Resolved) -> asyncio.Future[Exception | None]:
        new = asyncio.get_running_loop().create_future
        return self._answers.setdefault(candidate, new())


@pytest.fixture
def delay(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the seconds between two attempts; they never pass unless they are set."""
    monkeypatch.setattr(_attempts, "ATTEMPT_DELAY", 1000.0)
    return lambda seconds: monkeypatch.setattr(_attempts, "ATTEMPT_DELAY", seconds)


def play(
    candidates: list[Resolved],
    script: Callable[[Network], Awaitable[object]],
    seconds: float = 1000.0,
) -> tuple[socket.socket | None, list[Resolved], Network]:
    """Connect while the script says what the network does."""
    network = Network()

    async def main() -> tuple[socket.socket | None, list[Resolved], Network]:
        connecting = asyncio.ensure_future(
            first_connected(candidates, seconds, network.connect, {errno.EMFILE})
        )
        await script(network)
        made, failures = await asyncio.wait_for(connecting, LONG)
        await asyncio.sleep(0)  # those that were given up close their sockets
        return made, [failure.candidate for failure in failures], network

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("found", "ordered"),
    [
        (SIX[:2] + FOUR[:3], [SIX[0], FOUR[0], SIX[1], FOUR[1], FOUR[2]]),
        (FOUR[:1] + SIX[:2], [FOUR[0], SIX[0], SIX[1]]),
        (FOUR[:3], FOUR[:3]),
    ],
)
def test_the_families_take_turns(found: list[Resolved], ordered: list[Resolved]) -> None:
    """RFC 8305, 4: where one of them leads nowhere, the second attempt is one of the other."""
    assert interleaved(found) == ordered


def test_the_next_is_tried_at_once_when_one_fails(delay: Callable[[float], None]) -> None:
    async def script(network: Network) -> None:
        network.refuses(FOUR[0])
        network.refuses(FOUR[1])
        network.answers(FOUR[2])

    made, failed, network = play(FOUR[:3], script)
    assert network.tried == FOUR[:3]
    assert failed == FOUR[:2]
    assert made is network.made[2]
    assert network.open() == 1
    made.close()


def test_the_next_is_tried_after_the_delay(delay: Callable[[float], None]) -> None:
    delay(0.01)

    async def script(network: Network) -> None:
        await network.until_tried(2)
        network.answers(FOUR[1])

    made, failed, network = play(FOUR[:2], script)
    assert made is network.made[1]
    assert failed == []
    assert network.open() == 1, "the attempt that lost is still there"
    made.close()


def test_nothing_is_tried_before_the_delay_is_over(delay: Callable[[float], None]) -> None:
    async def script(network: Network) -> None:
        await network.until_tried(1)
        for _ in range(10):
            await asyncio.sleep(0)
        network.answers(FOUR[0])

    made, _, network = play(FOUR[:3], script)
    assert made is not None
    assert network.tried == FOUR[:1]
    made.close()


def test_the_first_wins_though_it_was_overtaken(delay: Callable[[float], None]) -> None:
    delay(0.01)

    async def script(network: Network) -> None:
        await network.until_tried(3)
        network.answers(FOUR[0])

    made, _, network = play(FOUR[:3], script)
    assert made is network.made[0]
    assert network.open() == 1
    made.close()


def test_of_two_that_connect_in_a_moment_one_is_closed(delay: Callable[[float], None]) -> None:
    delay(0.01)

    async def script(network: Network) -> None:
        await network.until_tried(3)
        for candidate in FOUR[:3]:
            network.answers(candidate)

    made, _, network = play(FOUR[:3], script)
    assert made is network.made[0]
    assert network.open() == 1, "the losers are still connected"
    made.close()


def test_a_few_are_tried_at_a_time(delay: Callable[[float], None]) -> None:
    delay(0.001)

    async def script(network: Network) -> None:
        for number in range(9):
            await network.until_tried(number + 1)
            if number >= 2:
                network.refuses(FOUR[number - 2])
        network.answers(FOUR[9])

    made, failed, network = play(FOUR[:10], script)
    assert made is network.made[9]
    assert failed == FOUR[:7]
    assert network.most_open == 3
    assert network.open() == 1
    made.close()


def test_the_oldest_makes_room_for_those_that_wait(
    delay: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else three addresses that don't answer would keep the fourth from being tried at all."""
    delay(0.001)
    monkeypatch.setattr(_attempts, "MAKES_ROOM_AFTER", 0.01)

    async def script(network: Network) -> None:
        await network.until_tried(4)
        network.answers(FOUR[3])

    made, failed, network = play(FOUR[:4], script)
    assert made is network.made[3]
    assert failed[0] == FOUR[0]
    assert network.open() == 1
    made.close()


@pytest.mark.parametrize(
    ("count", "seconds", "makes_room_after"), [(16, 1.6, 0.3), (4, 1.6, 1.2), (4, 1000.0, 2.0)]
)
def test_many_silent_addresses_share_a_short_time(
    count: int, seconds: float, makes_room_after: float
) -> None:
    """So that each of them is tried."""

    async def main() -> None:
        race = _attempts._Race(FOUR[:count], seconds, Network().connect, set())
        assert race._makes_room_after == pytest.approx(makes_room_after)

    asyncio.run(main())


def test_all_failures_are_told_in_the_order_of_the_addresses(
    delay: Callable[[float], None],
) -> None:
    delay(0.001)

    async def script(network: Network) -> None:
        await network.until_tried(3)
        for candidate in (FOUR[2], FOUR[0], FOUR[1]):
            network.refuses(candidate)
            await asyncio.sleep(0)

    made, failed, network = play(FOUR[:3], script)
    assert made is None
    assert failed == FOUR[:3]
    assert network.open() == 0


def test_each_attempt_has_what_is_left_of_the_time(delay: Callable[[float], None]) -> None:
    async def script(network: Network) -> None:
        network.refuses(FOUR[0])
        network.answers(FOUR[1])

    made, _, network = play(FOUR[:2], script, seconds=50.0)
    assert made is not None
    assert 49 < network.seconds[1] <= network.seconds[0] <= 50
    made.close()


def test_without_time_the_first_is_tried_and_no_other(delay: Callable[[float], None]) -> None:
    async def script(network: Network) -> None:
        network.answers(FOUR[0], asyncio.TimeoutError())

    made, failed, network = play(FOUR[:2], script, seconds=-1.0)
    assert made is None
    assert failed == FOUR[:1] == network.tried


@pytest.mark.parametrize("seconds", range(12))
def test_the_time_may_be_over_at_any_step(seconds: int, delay: Callable[[float], None]) -> None:
    """Each look at this clock takes a second."""

    async def main() -> None:
        network = Network()
        for candidate in FOUR[:3]:
            network.refuses(candidate)
        ticks = itertools.count()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio.get_running_loop(), "time", lambda: float(next(ticks)))
            made, failures = await first_connected(FOUR[:3], seconds, network.connect, set())
        assert made is None
        assert [failure.candidate for failure in failures] == network.tried

    asyncio.run(main())


def test_a_shortage_waits_for_an_attempt_that_is_under_way(
    delay: Callable[[float], None],
) -> None:
    """A descriptor that one more attempt lacks is no reason to give the others up."""
    delay(0.001)

    async def script(network: Network) -> None:
        network.answers(FOUR[1], OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
        await network.until_tried(2)
        for _ in range(10):
            await asyncio.sleep(0)
        assert network.tried == FOUR[:2], "it is tried again and again"
        network._answers.pop(FOUR[1])
        network.answers(FOUR[1])
        network.refuses(FOUR[0])

    made, failed, network = play(FOUR[:3], script)
    assert made is not None
    assert failed == FOUR[:1]
    assert network.tried == [FOUR[0], FOUR[1], FOUR[1]]
    made.close()


@pytest.mark.parametrize("count", [1, 2])
def test_a_shortage_with_nothing_under_way_is_raised(
    count: int, delay: Callable[[float], None]
) -> None:
    async def script(network: Network) -> None:
        network.answers(FOUR[0], OSError(errno.EMFILE, os.strerror(errno.EMFILE)))

    with pytest.raises(OSError) as caught:
        play(FOUR[:count], script)
    assert caught.value.errno == errno.EMFILE


def test_what_is_no_failure_of_a_connection_is_raised(delay: Callable[[float], None]) -> None:
    """The function that makes a socket ready can be the program's own."""
    networks: list[Network] = []

    async def script(network: Network) -> None:
        networks.append(network)
        delay(0.001)
        await network.until_tried(2)
        network.answers(FOUR[0])
        network.answers(FOUR[1], ZeroDivisionError())

    delay(0.001)
    with pytest.raises(ZeroDivisionError):
        play(FOUR[:2], script)
    assert networks[0].open() == 0


@pytest.mark.parametrize("rounds", [None, 0, 1, 2, 3])
def test_a_cancelled_race_leaves_nothing(
    rounds: int | None, delay: Callable[[float], None]
) -> None:
    """As when the client has left, also if that comes some rounds of the loop after a connection.

    After enough rounds the connection has been returned.
    """
    delay(0.001)
    network = Network()

    async def main() -> None:
        connecting = asyncio.ensure_future(
            first_connected(FOUR[:3], 1000.0, network.connect, {errno.EMFILE})
        )
        await network.until_tried(3)
        assert network.open() == 3
        if rounds is not None:
            network.answers(FOUR[1])
            for _ in range(rounds):
                await asyncio.sleep(0)
        connecting.cancel()
        (ended,) = await asyncio.gather(connecting, return_exceptions=True)
        if isinstance(ended, tuple) and ended[0] is not None:
            ended[0].close()
        await asyncio.sleep(0)
        assert network.open() == 0

    asyncio.run(main())
