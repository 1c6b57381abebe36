"""Several targets for one purpose: each in turn, a dead one skipped and later tried again."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Iterable

from ._addresses import Address
from ._client import Client
from ._connecting import NO_WAY_FROM_HERE, Prepare, StarvedError, TargetError
from ._log import fields, logger

#: Seconds for which a target that could not be connected to is skipped.
RETRY_AFTER = 10.0


class Targets:
    """Connects each client to the next target that can be connected to."""

    def __init__(self, addresses: Iterable[Address], retry_after: float = RETRY_AFTER) -> None:
        self._targets = [_Target(address) for address in addresses]
        self._retry_after = retry_after
        self._turn = itertools.count()

    async def dial(
        self, client: Client, *, prepare: Prepare = lambda sock, resolved: None
    ) -> socket.socket:
        """Connect to one of the targets.

        Raises:
            TargetError: all targets are dead; the error is that of the last one.
            StarvedError: descriptors or the like are short; no further target is tried.
        """
        failure: TargetError | None = None
        for target in self._in_turn():
            try:
                return await self._dial(client, target, prepare)
            except StarvedError:
                raise  # another target would need the same
            except TargetError as error:
                failure = error
        assert failure is not None, "there is no target"
        raise failure

    def _in_turn(self) -> list[_Target]:
        """Return all targets from the next one on; dead ones come last, in case all are dead."""
        if len(self._targets) == 1:
            return self._targets
        start = next(self._turn) % len(self._targets)
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
            if error.errno in NO_WAY_FROM_HERE or isinstance(error, StarvedError):
                raise
            if not was_dead and len(self._targets) > 1:
                dead = fields("target down", target=str(target.address), error=str(error))
                logger.warning("%s: skipped for now", error, extra=dead)
            target.dead_until = self._next_try()
            raise
        if target.dead_until is not None:
            alive = fields("target up", target=str(target.address))
            logger.info("%s can be connected to again", target.address, extra=alive)
            target.dead_until = None
        return made

    def _next_try(self) -> float:
        return asyncio.get_running_loop().time() + self._retry_after


class _Target:
    def __init__(self, address: Address) -> None:
        self.address = address
        #: The loop's time until which the target is skipped; None: it isn't known to be dead.
        self.dead_until: float | None = None

    def is_skipped(self, now: float) -> bool:
        return self.dead_until is not None and now < self.dead_until
