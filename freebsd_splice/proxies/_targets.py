"""Several targets for one purpose: each in turn, a dead one skipped and later tried again."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from typing import NamedTuple

from ._addresses import Address, Resolved
from ._client import Client
from ._connecting import NO_WAY_FROM_HERE, Prepare, StarvedError, TargetError
from ._log import fields, logger
from ._resolving import numeric

#: Seconds for which a target that could not be connected to is skipped.
RETRY_AFTER = 10.0


class Targets:
    """Connects each client to the next target that can be connected to."""

    def __init__(self, addresses: Iterable[Address], retry_after: float = RETRY_AFTER) -> None:
        self._targets = [_Target(*each) for each in enumerate(addresses)]
        self._retry_after = retry_after
        self._turn = 0

    def next_known(self) -> Known | None:
        """Return the next target, if it is an address in numbers and not known to be dead.

        Its turn is the caller's once it calls ``take``.
        """
        target = self._targets[self._turn]
        return target.known if target.dead_until is None else None

    def take(self) -> None:
        """Have the next one be next."""
        self._turn = (self._turn + 1) % len(self._targets)

    def is_there(self, number: int) -> None:
        """Note that a connection to that target has been made."""
        self._targets[number].is_there()

    async def dial(
        self,
        client: Client,
        *,
        prepare: Prepare = lambda sock, resolved: None,
        after: tuple[int, TargetError] | None = None,
    ) -> socket.socket:
        """Connect to one of the targets.

        Args:
            client: who is connected.
            prepare: as for ``Client.dial``.
            after: the number of the target whose turn it was, and how connecting to it failed.

        Raises:
            TargetError: all targets are dead; the error is that of the last one.
            StarvedError: descriptors or the like are short; no further target is tried.
        """
        failure: TargetError | None = None
        in_turn = self._in_turn(self._next() if after is None else after[0])
        if after is not None:
            number, failure = after
            failed = self._targets[number]
            self._failed(failed, failure, was_dead=failed.dead_until is not None)
            in_turn = [target for target in in_turn if target is not failed]
        for target in in_turn:
            try:
                return await self._dial(client, target, prepare)
            except StarvedError:
                raise  # another target would need the same
            except TargetError as error:
                failure = error
        assert failure is not None, "there is no target"
        raise failure

    def _next(self) -> int:
        number = self._turn
        self.take()
        return number

    def _in_turn(self, start: int) -> list[_Target]:
        """Return all targets from ``start`` on; dead ones come last, in case all are dead."""
        if len(self._targets) == 1:
            return self._targets
        ordered = self._targets[start:] + self._targets[:start]
        now = asyncio.get_running_loop().time()
        return sorted(ordered, key=lambda target: target.is_skipped(now))

    async def _dial(self, client: Client, target: _Target, prepare: Prepare) -> socket.socket:
        was_dead = target.dead_until is not None
        if was_dead:  # this client tries whether the target is back, the others go elsewhere
            target.dead_until = self._next_try()
        try:
            made = await client.dial(target.address, prepare=prepare)
        except TargetError as error:
            self._failed(target, error, was_dead=was_dead)
            raise
        target.is_there()
        return made

    def _failed(self, target: _Target, error: TargetError, *, was_dead: bool) -> None:
        if error.errno in NO_WAY_FROM_HERE or isinstance(error, StarvedError):
            return
        if not was_dead and len(self._targets) > 1:
            dead = fields("target down", target=str(target.address), error=str(error))
            logger.warning("%s: skipped for now", error, extra=dead)
        target.dead_until = self._next_try()

    def _next_try(self) -> float:
        return asyncio.get_running_loop().time() + self._retry_after


class Known(NamedTuple):
    """A target that is one address in numbers."""

    address: Address
    resolved: Resolved
    #: Its place among the targets.
    number: int


class _Target:
    def __init__(self, number: int, address: Address) -> None:
        self.address = address
        found = numeric(address)
        #: None for a name.
        self.known = Known(address, found[0], number) if len(found) == 1 else None
        #: The loop's time until which the target is skipped; None: it isn't known to be dead.
        self.dead_until: float | None = None

    def is_skipped(self, now: float) -> bool:
        return self.dead_until is not None and now < self.dead_until

    def is_there(self) -> None:
        if self.dead_until is not None:
            alive = fields("target up", target=str(self.address))
            logger.info("%s can be connected to again", self.address, extra=alive)
            self.dead_until = None
