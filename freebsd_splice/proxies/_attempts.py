"""Connecting to the first of several addresses that answers: happy eyeballs (RFC 8305).

An attempt that fails, or has not succeeded after ATTEMPT_DELAY, is followed by one to the next
address. The first connection that is made is taken, and all others are closed. So an address that
doesn't answer costs the delay, and no share of the time.

asyncio's own happy eyeballs is a part of ``create_connection``: it makes a transport, looks names
up itself, and leaves no place for rules, for options of the socket, or for a limit.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Container, Coroutine, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from ._addresses import Resolved

#: Seconds after which the next address is tried while the last has not answered (RFC 8305, 5:
#: "Connection Attempt Delay").
ATTEMPT_DELAY = 0.25

#: How many attempts are under way at a time. Each takes a descriptor: with the client's own these
#: are the four that the connection takes later on.
MOST_AT_A_TIME = 3

#: Seconds after which an attempt makes room for the next address where MOST_AT_A_TIME are under
#: way. Systems send a second SYN after one second: this is enough for an answer to it.
MAKES_ROOM_AFTER = 2.0

#: Connects to an address within so many seconds; raises OSError or asyncio.TimeoutError.
Connect = Callable[[Resolved, float], Coroutine[Any, Any, socket.socket]]


class Failure(NamedTuple):
    """An address that was tried, and why there is no connection to it."""

    candidate: Resolved
    #: asyncio.TimeoutError where the address did not answer in time.
    error: Exception


def interleaved(found: Sequence[Resolved]) -> list[Resolved]:
    """Return the addresses with the two families by turns, that of the first one first.

    Where one family leads nowhere, the second attempt is one of the other (RFC 8305, 4).
    """
    first = [each for each in found if each.family == found[0].family]
    second = [each for each in found if each.family != found[0].family]
    return [each for pair in zip_longest(first, second) for each in pair if each is not None]


async def first_connected(
    candidates: Sequence[Resolved], seconds: float, connect: Connect, shortages: Container[int]
) -> tuple[socket.socket | None, list[Failure]]:
    """Connect to the first of the addresses that answers, within ``seconds`` in all.

    Args:
        candidates: the addresses, the best first.
        seconds: the time for all of them together.
        connect: makes one attempt; the socket is its own until it returns it.
        shortages: the errnos that say nothing about an address.

    Returns:
        The connection, and the failures before it in the order of ``candidates``. None: all that
        were tried have failed. Addresses for which no time was left were not tried.

    Raises:
        OSError: something is short, while no other attempt was under way that could give it back.
    """
    if len(candidates) == 1:
        try:
            return await connect(candidates[0], seconds), []
        except (OSError, asyncio.TimeoutError) as error:
            if isinstance(error, OSError) and error.errno in shortages:
                raise
            return None, [Failure(candidates[0], error)]
    race = _Race(candidates, seconds, connect, shortages)
    made = await race.run()
    return made, sorted(race.failures, key=lambda failure: candidates.index(failure.candidate))


class _Race:
    def __init__(
        self,
        candidates: Sequence[Resolved],
        seconds: float,
        connect: Connect,
        shortages: Container[int],
    ) -> None:
        self.failures: list[Failure] = []
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + seconds
        self._makes_room_after = min(MAKES_ROOM_AFTER, seconds * MOST_AT_A_TIME / len(candidates))
        self._connect = connect
        self._shortages = shortages
        self._waiting = deque(candidates)
        #: What is under way, the oldest first, with the address and the time it began.
        self._attempts: dict[asyncio.Task[socket.socket], tuple[Resolved, float]] = {}
        #: Whether a further attempt would lack something that those under way may give back.
        self._is_short = False

    async def run(self) -> socket.socket | None:
        try:
            while True:
                if self._may_begin():
                    self._begin()
                if not self._attempts:
                    return None
                await asyncio.wait(
                    self._attempts,
                    timeout=self._seconds_to_next(),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                made = self._collect()
                if made is not None:
                    return made
                self._make_room()
        finally:
            for attempt in self._attempts:
                _give_up(attempt)

    def _may_begin(self) -> bool:
        if not self._waiting or self._is_short or len(self._attempts) >= MOST_AT_A_TIME:
            return False
        # The first one is tried in any case, so that there is a failure to report.
        return self._loop.time() < self._deadline or not (self._attempts or self.failures)

    def _begin(self) -> None:
        candidate = self._waiting.popleft()
        now = self._loop.time()
        attempt = self._loop.create_task(self._connect(candidate, self._deadline - now))
        self._attempts[attempt] = candidate, now

    def _seconds_to_next(self) -> float | None:
        """Return how long to wait for those under way alone; None: until one of them ends.

        Each of them ends by itself, by the deadline at the latest.
        """
        if not self._waiting or self._is_short:
            return None
        if len(self._attempts) < MOST_AT_A_TIME:
            return ATTEMPT_DELAY
        return max(0.0, self._oldest_began() + self._makes_room_after - self._loop.time())

    def _oldest_began(self) -> float:
        return next(iter(self._attempts.values()))[1]

    def _collect(self) -> socket.socket | None:
        """Return the first connection of those that have ended, and close all others."""
        made: list[socket.socket] = []
        short: list[tuple[Resolved, OSError]] = []
        unexpected: BaseException | None = None
        ended = [attempt for attempt in self._attempts if attempt.done()]
        for attempt in ended:
            candidate, _ = self._attempts.pop(attempt)
            error = attempt.exception()
            if error is None:
                made.append(attempt.result())
            elif isinstance(error, OSError) and error.errno in self._shortages:
                short.append((candidate, error))
            elif isinstance(error, (OSError, asyncio.TimeoutError)):
                self.failures.append(Failure(candidate, error))
            else:
                unexpected = error
        for other in made[0 if unexpected else 1 :]:
            other.close()
        if unexpected is not None:
            raise unexpected
        if made:
            return made[0]
        if ended:
            self._try_again(short, has_room=len(ended) > len(short))
        return None

    def _try_again(self, short: list[tuple[Resolved, OSError]], has_room: bool) -> None:
        """Have attempts that lacked something wait for what the others give back."""
        if short and not self._attempts and not has_room:
            raise short[0][1]
        self._waiting.extendleft(candidate for candidate, _ in reversed(short))
        self._is_short = bool(short) and not has_room

    def _make_room(self) -> None:
        """Give the oldest attempt up where it has had its time and others wait."""
        if not self._waiting or len(self._attempts) < MOST_AT_A_TIME:
            return
        if self._loop.time() >= self._oldest_began() + self._makes_room_after:
            oldest = next(iter(self._attempts))
            candidate, _ = self._attempts.pop(oldest)
            _give_up(oldest)
            self.failures.append(Failure(candidate, asyncio.TimeoutError()))


def _give_up(attempt: asyncio.Task[socket.socket]) -> None:
    """Have the attempt close its socket, or close the connection that it has made already."""
    attempt.cancel()
    if attempt.done():
        _close(attempt)
    else:
        attempt.add_done_callback(_close)


def _close(attempt: asyncio.Task[socket.socket]) -> None:
    # Asking for the exception keeps asyncio from logging that nobody has.
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()
