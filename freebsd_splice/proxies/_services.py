"""Services: targets that SRV records name (RFC 2782), with priorities and weights.

Nothing in this module does I/O.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from ._addresses import Address, parse_target

_PREFIX = "srv:"

#: A label of a name. Names of services begin with an underscore (RFC 2782), but registries know
#: others as well: Consul answers for ``web.service.consul``.
_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", re.I)
_LONGEST_NAME = 253


class Service(NamedTuple):
    """The name of a service, whose SRV records say where it is.

    ``str(service)`` is ``srv:_http._tcp.example.org``.

    Attributes:
        name (str): the name that the SRV records have, ``_http._tcp.example.org``.

    Example::

        Service("_http._tcp.example.org")
    """

    name: str

    def __str__(self) -> str:
        return _PREFIX + self.name


#: Where a client can be sent: an address, or a service.
Target = Address | Service


class Member(NamedTuple):
    """One SRV record: where a service can be had.

    Attributes:
        address (Address): the host and port.
        priority (int): members of the lowest number are used as long as one of them can be
            connected to.
        weight (int): the share of the clients among members of the same priority.
    """

    address: Address
    priority: int
    weight: int


def parse_target_or_service(text: str) -> Target:
    """Return what is written as ``srv:name``, or as ``parse_target`` takes it.

    Raises:
        ValueError: the message says what is wrong.
    """
    if not text.lower().startswith(_PREFIX):
        return parse_target(text)
    name = text[len(_PREFIX) :].removesuffix(".")
    if ":" in name:
        raise ValueError(f"{text!r}: the SRV records of a service have its ports: leave them out")
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        raise ValueError(f"{text!r} is not a service: write srv:_http._tcp.example.org")
    return Service(name)


def in_order(members: Collection[Member]) -> Iterator[Member]:
    """Yield the members in an order of RFC 2782: by priority, and by chance as the weights say.

    A member of weight 0 has a very small chance beside others. Only what is asked for is computed:
    most clients go to the first.
    """
    for priority in sorted({member.priority for member in members}):
        left = [member for member in members if member.priority == priority]
        while left:
            yield left.pop(_chosen(left))


def _chosen(members: list[Member]) -> int:
    """Return the index of the next one among members of the same priority."""
    weightless = [index for index, member in enumerate(members) if not member.weight]
    number = random.randint(0 if weightless else 1, sum(member.weight for member in members))
    if not number:
        return random.choice(weightless)
    for index, member in enumerate(members):
        number -= member.weight
        if number <= 0:
            return index
    raise AssertionError("the number is within the sum of the weights")
