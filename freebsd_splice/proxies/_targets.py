"""Several targets for one purpose: each in turn, a dead one skipped and later tried again."""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import cached_property, partial
from typing import NamedTuple, TypeVar

from .._errors import SHORTAGES
from ._addresses import Address, Resolved
from ._client import Client
from ._connecting import (
    NO_WAY_FROM_HERE,
    LookUp,
    Prepare,
    StarvedError,
    TargetError,
    reason_of,
)
from ._log import fields, logger
from ._name_servers import NameServers
from ._resolving import numeric
from ._services import Member, Service, Target, in_order

#: Seconds for which a target that could not be connected to is skipped.
RETRY_AFTER = 10.0

#: How many members of a service are tried for one client.
MOST_MEMBERS = 16

Tried = TypeVar("Tried")
Result = TypeVar("Result")


class Targets:
    """Connects each client to the next target that can be connected to."""

    def __init__(
        self,
        targets: Iterable[Target],
        retry_after: float = RETRY_AFTER,
        resolver: NameServers | None = None,
    ) -> None:
        """Connect to these; where one is a service, ``resolver`` looks it up."""
        look_up = resolver.look_up if resolver is not None and resolver.are_for_names else None
        self._targets: list[_Target | _Service] = []
        for target in targets:
            if not isinstance(target, Service):
                self._targets.append(_Target(target, look_up))
            elif resolver is not None:
                self._targets.append(_Service(target, resolver))
            else:
                raise TypeError(f"{target} needs name servers to be looked up at")
        self._retry_after = retry_after
        self._turn = 0

    def next_known(self) -> Known | None:
        """Return the next target, if it is an address in numbers and not known to be dead.

        Its turn is the caller's once it calls ``take``.
        """
        known = self._known[self._turn]
        is_dead = known is not None and self._targets[self._turn].dead_until is not None
        return None if is_dead else known

    @cached_property
    def _known(self) -> list[Known | None]:
        """None where it takes more than one step to find what is to be connected to."""
        return [_known(*each) for each in enumerate(self._targets)]

    def take(self) -> None:
        """Have the next one be next."""
        self._turn = (self._turn + 1) % len(self._targets)

    def is_there(self, number: int) -> None:
        """Note that a connection to that target has been made."""
        _lives(self._targets[number])

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
        dial = partial(self._dial_any, client, prepare)
        if after is None:
            return await _first_success(self._in_turn(self._next()), dial)
        number, failure = after
        failed = self._targets[number]
        was_dead = failed.dead_until is not None
        self._failed(failed, failure, was_dead=was_dead, has_others=len(self._targets) > 1)
        others = [target for target in self._in_turn(number) if target is not failed]
        return await _first_success(others, dial, failure)

    def _next(self) -> int:
        number = self._turn
        self.take()
        return number

    def _in_turn(self, start: int) -> list[_Target | _Service]:
        """Return all targets from ``start`` on; dead ones come last, in case all are dead."""
        if len(self._targets) == 1:
            return self._targets
        ordered = self._targets[start:] + self._targets[:start]
        now = _now()
        return sorted(ordered, key=lambda target: target.is_skipped(now))

    async def _dial_any(
        self, client: Client, prepare: Prepare, target: _Target | _Service
    ) -> socket.socket:
        has_others = len(self._targets) > 1
        if isinstance(target, _Target):
            return await self._dial(client, prepare, has_others, target)
        members = await self._watched(target, target.members(client), has_others)
        has_others = has_others or len(members) > 1
        dial = partial(self._dial, client, prepare, has_others)
        return await _first_success(members, dial)

    async def _dial(
        self, client: Client, prepare: Prepare, has_others: bool, target: _Target
    ) -> socket.socket:
        dialling = client.dial(target.name, prepare=prepare, look_up=target.look_up)
        return await self._watched(target, dialling, has_others)

    async def _watched(
        self, target: _Target | _Service, doing: Awaitable[Result], has_others: bool
    ) -> Result:
        """Return the result; meanwhile and afterwards it is known whether the target is dead."""
        was_dead = target.dead_until is not None
        if was_dead:  # this client tries whether the target is back, the others go elsewhere
            target.dead_until = self._next_try()
        try:
            result = await doing
        except TargetError as error:
            self._failed(target, error, was_dead=was_dead, has_others=has_others)
            raise
        _lives(target)
        return result

    def _failed(
        self, target: _Target | _Service, error: TargetError, *, was_dead: bool, has_others: bool
    ) -> None:
        if error.errno in NO_WAY_FROM_HERE or isinstance(error, StarvedError):
            return
        if not was_dead and has_others:
            dead = fields("target down", target=str(target.name), error=str(error))
            logger.warning("%s: skipped for now", error, extra=dead)
        target.dead_until = self._next_try()

    def _next_try(self) -> float:
        return _now() + self._retry_after


class Known(NamedTuple):
    """A target that is one address in numbers."""

    address: Address
    resolved: Resolved
    #: Its place among the targets.
    number: int


class _Target:
    def __init__(self, name: Address, look_up: LookUp | None) -> None:
        self.name = name
        self.look_up = look_up
        #: The loop's time until which the target is skipped; None: it isn't known to be dead.
        self.dead_until: float | None = None

    def is_skipped(self, now: float) -> bool:
        return self.dead_until is not None and now < self.dead_until


class _Service:
    """A target that is one of those which its SRV records name at the time."""

    def __init__(self, name: Service, resolver: NameServers) -> None:
        self.name = name
        #: As for a target: it is dead while it can't be looked up, or has no members.
        self.dead_until: float | None = None
        self._resolver = resolver
        self._members: dict[Address, _Target] = {}

    def is_skipped(self, now: float) -> bool:
        if self.dead_until is not None and now < self.dead_until:
            return True
        members = self._members.values()
        return bool(members) and all(member.is_skipped(now) for member in members)

    async def members(self, client: Client) -> list[_Target]:
        """Return those to be tried for a client: the living in their order, then the dead.

        Raises:
            TargetError: there are none; the text says why.
            StarvedError: descriptors or the like were short for the whole look-up.
        """
        began = time.monotonic()
        try:
            found = await self._look_up(client)
        except OSError as error:
            client.observer.dialled(client, time.monotonic() - began, error)
            raise
        client.observer.looked_up(client, time.monotonic() - began)
        known = self._members
        self._members = {
            each.address: known.get(each.address) or _Target(each.address, self._resolver.look_up)
            for each in found
        }
        now = _now()
        dead = {each for each in found if self._members[each.address].is_skipped(now)}
        order = itertools.chain(
            in_order([each for each in found if each not in dead]), in_order(dead)
        )
        return [self._members[each.address] for each in itertools.islice(order, MOST_MEMBERS)]

    async def _look_up(self, client: Client) -> tuple[Member, ...]:
        handshake = client.handshake
        with handshake.suspended(), handshake.during(f"while looking up {self.name}"):
            try:
                found = await self._resolver.members(self.name)
            except OSError as error:
                if error.errno in SHORTAGES:
                    raise StarvedError(self.name, reason_of(error)) from error
                reason = f"cannot look up {self.name}: {reason_of(error)}"
                raise TargetError(errno.EHOSTUNREACH, reason) from error
        if not found:
            raise TargetError(errno.EHOSTUNREACH, f"{self.name} has no members")
        return found


async def _first_success(
    several: Iterable[Tried],
    attempt: Callable[[Tried], Awaitable[Result]],
    failure: TargetError | None = None,
) -> Result:
    """Return the first result; where there is none, raise the last failure."""
    for each in several:
        try:
            return await attempt(each)
        except StarvedError:
            raise  # another target would need the same
        except TargetError as error:
            failure = error
    assert failure is not None, "there is no target"
    raise failure


def _known(number: int, target: _Target | _Service) -> Known | None:
    if isinstance(target, _Service):
        return None
    found = numeric(target.name)
    return Known(target.name, found[0], number) if len(found) == 1 else None


def _lives(target: _Target | _Service) -> None:
    if target.dead_until is not None:
        alive = fields("target up", target=str(target.name))
        logger.info("%s can be connected to again", target.name, extra=alive)
        target.dead_until = None


def _now() -> float:
    return asyncio.get_running_loop().time()
