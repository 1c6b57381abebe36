"""Answers of name servers: how long they are used, and what happens when no more come."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
from collections.abc import Awaitable, Callable

import pytest

from freebsd_splice.proxies import _kept_answers
from freebsd_splice.proxies._connecting import PlainError
from freebsd_splice.proxies._kept_answers import KEPT_FOR, RETRY_AFTER, KeptAnswers

LONG = 60.0


class Registry:
    """Name servers whose answers, and whose clock, are the test's affair."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.asked: list[str] = []
        self.answer: tuple[str, float] | Exception = ("first", 10.0)
        #: Where it is set, the name servers wait for it.
        self.answers: asyncio.Event | None = None
        self.kept = KeptAnswers(self.ask)
        monkeypatch.setattr(_kept_answers, "_now", lambda: self.now)

    async def ask(self, key: str) -> tuple[str, float]:
        self.asked.append(key)
        if self.answers is not None:
            await self.answers.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def get(self, seconds: float = LONG) -> str:
        return await self.kept.get("name", seconds)

    async def settled(self) -> None:
        """Wait until no look-up is under way."""
        while self.kept._asking:
            await asyncio.sleep(0)


FAILURE = PlainError(errno.EHOSTUNREACH, "the servers are ill")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    return Registry(monkeypatch)


def play(script: Callable[[], Awaitable[object]]) -> None:
    async def main() -> None:
        await script()

    asyncio.run(main())


def test_an_answer_is_used_for_its_time(registry: Registry) -> None:
    async def script() -> None:
        for passed in (0, 5, 4.9):
            registry.now += passed
            assert await registry.get() == "first"
        assert len(registry.asked) == 1
        registry.now += 0.1
        registry.answer = ("second", 10.0)
        assert await registry.get() == "second"

    play(script)


@pytest.mark.parametrize(("ttl", "used"), [(0.0, 1.0), (1e9, 86_400.0)])
def test_a_time_has_bounds(ttl: float, used: float, registry: Registry) -> None:
    async def script() -> None:
        registry.answer = ("first", ttl)
        await registry.get()
        registry.now += used - 0.1
        await registry.get()
        assert len(registry.asked) == 1
        registry.now += 0.1
        await registry.get()
        assert len(registry.asked) == 2

    play(script)


def test_all_who_want_it_at_a_time_ask_once(registry: Registry) -> None:
    async def script() -> None:
        registry.answers = asyncio.Event()
        waiting = [asyncio.ensure_future(registry.get()) for _ in range(10)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # the others get it all the same
        await asyncio.sleep(0)
        registry.answers.set()
        assert await asyncio.gather(*waiting[1:]) == 9 * ["first"]
        assert registry.asked == ["name"]

    play(script)


def test_a_failure_is_everybodys_where_there_is_no_answer(registry: Registry) -> None:
    async def script() -> None:
        registry.answer = FAILURE
        for count in (1, 2):
            with pytest.raises(PlainError, match="the servers are ill"):
                await registry.get()
            assert len(registry.asked) == count

    play(script)


def test_a_wait_has_its_end(registry: Registry) -> None:
    """The look-up goes on: the next client has its answer."""

    async def script() -> None:
        registry.answers = asyncio.Event()
        with pytest.raises(asyncio.TimeoutError):
            await registry.get(0.01)
        registry.answers.set()
        assert await registry.get() == "first"
        assert len(registry.asked) == 1

    play(script)


def test_an_old_answer_is_used_while_look_ups_fail(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked again after a while, not for each client, and the log has one line.

    Nobody waits for that look-up, as it may take its time.
    """
    caplog.set_level(logging.INFO)

    async def script() -> None:
        await registry.get()
        registry.now += 10
        registry.answer = FAILURE
        for _ in range(3):
            assert [await registry.get() for _ in range(5)] == 5 * ["first"]
            await registry.settled()
            registry.now += RETRY_AFTER
        assert len(registry.asked) == 1 + 3
        registry.answer = ("second", 10.0)
        assert await registry.get() == "first"
        await registry.settled()
        assert await registry.get() == "second"

    play(script)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "WARNING",
            "cannot look up name: the servers are ill; its last answer is used for up to 3600 s",
        ),
        ("INFO", "name can be looked up again"),
    ]


def test_a_defect_is_said_where_an_old_answer_hides_it(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    async def script() -> None:
        await registry.get()
        registry.now += 10
        registry.answer = ZeroDivisionError("a defect")
        for _ in range(3):
            assert await registry.get() == "first"
            await registry.settled()
        assert len(registry.asked) == 2

    play(script)
    (line,) = caplog.messages
    assert line.startswith("cannot look up name: ZeroDivisionError('a defect'); its last answer")


def test_an_old_answer_has_its_end(registry: Registry) -> None:
    async def script() -> None:
        await registry.get()
        registry.answer = FAILURE
        registry.now += 10 + KEPT_FOR - 0.1
        assert await registry.get() == "first"
        registry.now += 0.1
        with pytest.raises(PlainError):
            await registry.get()

    play(script)


def test_silent_servers_cost_one_client_a_little(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """RFC 8767, 5: the client response timer. An answer that comes late is used all the same."""
    monkeypatch.setattr(_kept_answers, "WAIT_FOR_NEWER", 0.01)

    async def script() -> None:
        await registry.get()
        registry.now += 10
        registry.answers = asyncio.Event()
        registry.answer = ("second", 10.0)
        assert await registry.get() == "first"
        monkeypatch.setattr(_kept_answers, "WAIT_FOR_NEWER", 1000.0)
        registry.now += 100
        assert [await registry.get() for _ in range(3)] == 3 * ["first"]
        assert len(registry.asked) == 2
        registry.answers.set()
        await registry.settled()
        assert await registry.get() == "second"

    play(script)
    (line,) = caplog.messages
    assert line.startswith("cannot look up name: no answer in time; its last answer is used")


def test_an_answer_of_nothing_replaces_an_old_one(registry: Registry) -> None:
    """That a service has no members is an answer (RFC 8767), and no failure."""

    async def script() -> None:
        await registry.get()
        registry.now += 10
        registry.answer = ("", 0.0)
        assert await registry.get() == ""

    play(script)


def test_the_oldest_answers_are_forgotten(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who answer choose the names of members, which can be others each time."""
    monkeypatch.setattr(_kept_answers, "MOST_KEPT", 3)

    async def script() -> None:
        for number in range(10):
            await registry.kept.get(f"name{number}", LONG)
        assert list(registry.kept._kept) == ["name7", "name8", "name9"]
        assert not registry.kept._asking

    play(script)


def test_a_failure_that_nobody_waits_for_is_no_news(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    async def script() -> None:
        registry.answers = asyncio.Event()
        registry.answer = FAILURE
        with pytest.raises(asyncio.TimeoutError):
            await registry.get(0.01)
        registry.answers.set()
        await registry.settled()

    play(script)
    gc.collect()  # asyncio complains of an error that nobody has asked for when it is forgotten
    assert not caplog.records
