"""Answers of name servers, kept for their time, and longer while no newer one can be had.

RFC 8767 says how: an answer whose time is over is better than none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from ._connecting import reason_of
from ._log import MOST_OF_A_REASON, cut, fields, logger

Key = TypeVar("Key", bound=Hashable)
Answer = TypeVar("Answer")

#: Seconds for which an answer is used at least: registries give answers a TTL of 0 (Consul), and
#: however many clients come, the name servers are asked once a second at most.
SHORTEST_TTL = 1.0
LONGEST_TTL = 86_400.0

#: Seconds for which an answer is used beyond its TTL while all look-ups fail.
KEPT_FOR = 3_600.0

#: Seconds that clients wait for a newer answer where there is an older one (RFC 8767, 5: "client
#: response timer"). Once the name servers were late or have failed, nobody waits.
WAIT_FOR_NEWER = 1.8

#: Seconds from a look-up that failed to the next one where there is an older answer.
RETRY_AFTER = 5.0

#: How many answers are kept.
MOST_KEPT = 1_024


class KeptAnswers(Generic[Key, Answer]):
    """Asks for each key once for all who want it, for one event loop."""

    def __init__(self, ask: Callable[[Key], Awaitable[tuple[Answer, float]]]) -> None:
        """Have ``ask`` return the answer and its TTL, or raise OSError or asyncio.TimeoutError."""
        self._ask = ask
        self._kept: dict[Key, _Kept[Answer]] = {}
        self._asking: dict[Key, asyncio.Task[Answer]] = {}

    async def get(self, key: Key, seconds: float) -> Answer:
        """Return the answer for a key.

        Raises:
            asyncio.TimeoutError: there is none within ``seconds``.
            OSError: there is none; the error of the look-up.
        """
        kept = self._usable(key)
        if kept is not None and _now() < kept.next_look_up:
            return kept.answer
        asking = self._asking.get(key) or self._begin(key)
        if kept is None:
            await asyncio.wait([asking], timeout=seconds)
            if not asking.done():
                raise asyncio.TimeoutError
            return asking.result()
        if not kept.is_outdated:  # else nobody waits until it is known that there is a newer one
            await asyncio.wait([asking], timeout=min(seconds, WAIT_FOR_NEWER))
            if not asking.done():
                self._failed(key, asyncio.TimeoutError())
            elif asking.exception() is None:
                return asking.result()
        return kept.answer

    def _usable(self, key: Key) -> _Kept[Answer] | None:
        kept = self._kept.get(key)
        return kept if kept is not None and _now() < kept.useless_from else None

    def _begin(self, key: Key) -> asyncio.Task[Answer]:
        asking = self._asking[key] = asyncio.get_running_loop().create_task(self._renew(key))
        # Retrieve the error: those who asked may have given up, and asyncio would log it.
        asking.add_done_callback(lambda done: done.cancelled() or done.exception())
        return asking

    async def _renew(self, key: Key) -> Answer:
        try:
            answer, ttl = await self._ask(key)
        except Exception as error:
            self._failed(key, error)
            raise
        finally:
            del self._asking[key]
        self._keep(key, answer, min(max(ttl, SHORTEST_TTL), LONGEST_TTL))
        return answer

    def _keep(self, key: Key, answer: Answer, ttl: float) -> None:
        before = self._kept.pop(key, None)  # so that the new one comes last
        if before is not None and before.is_outdated:
            logger.info(
                "%s can be looked up again", key, extra=fields("answer renewed", name=str(key))
            )
        self._kept[key] = _Kept(answer, _now() + ttl)
        while len(self._kept) > MOST_KEPT:
            del self._kept[next(iter(self._kept))]

    def _failed(self, key: Key, error: Exception) -> None:
        """Use the older answer for now, if there is one, and log that once.

        A look-up that is only late goes on, and its answer is used.
        """
        kept = self._usable(key)
        if kept is None:
            return
        kept.next_look_up = _now() + RETRY_AFTER
        if kept.is_outdated:
            return
        kept.is_outdated = True
        reason = repr(error)  # a defect
        if isinstance(error, asyncio.TimeoutError):
            reason = "no answer in time"
        elif isinstance(error, OSError):
            reason = reason_of(error)
        left = kept.useless_from - _now()
        logger.warning(
            "cannot look up %s: %s; its last answer is used for up to %.0f s",
            key,
            cut(reason, MOST_OF_A_REASON),
            left,
            extra=fields("answer outdated", name=str(key), error=reason, seconds=round(left)),
        )


class _Kept(Generic[Answer]):
    def __init__(self, answer: Answer, next_look_up: float) -> None:
        self.answer = answer
        #: The loop's time from which on there should be a newer one, and none but a newer one.
        self.next_look_up = next_look_up
        self.useless_from = next_look_up + KEPT_FOR
        #: Whether the log says that no newer one can be had.
        self.is_outdated = False


def _now() -> float:
    return asyncio.get_running_loop().time()
