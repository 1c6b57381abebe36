"""Work that clients take turns at."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from freebsd_splice.proxies._fair_executor import FairExecutor


class Work:
    """Done when the test says so, in this thread; what has begun, in order."""

    def __init__(self, most: int, share: int) -> None:
        self.begun: list[str] = []
        self._runs: list[Callable[[], None]] = []
        self.turns: FairExecutor[str, str] = FairExecutor(most, share, self._runs.append)

    def ask(self, name: str, client: str) -> asyncio.Task[str]:
        return asyncio.ensure_future(self.turns.do(name, client, lambda: self._do(name)))

    async def finish(self, count: int) -> None:
        """So many, one after another."""
        for _ in range(count):
            await until_idle()
            self._runs.pop(0)()
        await until_idle()

    @property
    def running(self) -> int:
        return len(self._runs)

    def _do(self, name: str) -> str:
        self.begun.append(name)
        return name.upper()


async def until_idle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def test_each_clients_next_comes_after_the_others() -> None:
    async def main() -> None:
        work = Work(1, 1)
        asked = [work.ask(name, name[0]) for name in ("a1", "a2", "a3", "a4", "b1", "b2", "c1")]
        await work.finish(7)
        assert work.begun == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]
        assert await asyncio.gather(*asked) == ["A1", "A2", "A3", "A4", "B1", "B2", "C1"]

    run(main())


def test_a_client_has_no_more_than_its_share() -> None:
    async def main() -> None:
        work = Work(5, 2)
        asked = [work.ask(f"{client}{n}", client) for client in "ab" for n in range(4)]
        await until_idle()
        assert work.running == 4
        asked.append(work.ask("c", "c"))
        await until_idle()
        assert work.running == 5
        await work.finish(9)
        assert sorted(work.begun) == sorted(
            [f"{client}{n}" for client in "ab" for n in "0123"] + ["c"]
        )
        await asyncio.gather(*asked)

    run(main())


def test_one_who_wants_what_another_waits_for_need_not_wait() -> None:
    async def main() -> None:
        work = Work(1, 1)
        asked = [work.ask(name, "a") for name in ("1", "2", "3", "4", "wanted")]
        asked.append(work.ask("wanted", "b"))
        await work.finish(3)
        assert work.begun == ["1", "2", "wanted"]
        await work.finish(2)
        assert work.begun == ["1", "2", "wanted", "3", "4"]
        assert (await asyncio.gather(*asked))[-2:] == ["WANTED", "WANTED"]

    run(main())


def test_what_everybody_has_given_up_is_forgotten_at_once() -> None:
    async def main() -> None:
        work = Work(1, 1)
        first = work.ask("first", "a")
        both = [work.ask("both", client) for client in "ab"]
        await until_idle()
        for gone, left in ((both[0], True), (both[1], False)):
            gone.cancel()
            await asyncio.wait([gone])
            assert ("both" in work.turns._pending) is left
        assert not work.turns._queues
        await work.finish(1)
        assert await first == "FIRST"
        assert work.begun == ["first"]
        assert not any((work.turns._pending, work.turns._running))

    run(main())


def test_closing_begins_nothing_more() -> None:
    async def main() -> None:
        work = Work(1, 1)
        first, second = work.ask("first", "a"), work.ask("second", "b")
        await until_idle()
        work.turns.close()
        with pytest.raises(asyncio.CancelledError):
            await second
        await work.finish(1)
        assert await first == "FIRST"
        assert work.begun == ["first"]

    run(main())
