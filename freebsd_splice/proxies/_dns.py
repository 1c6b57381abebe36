"""Questions to name servers, by dnspython: ``pip install "freebsd-splice[dns]"``.

All calls block until there is an answer: they are for threads.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

import dns.exception
import dns.name
import dns.nameserver
import dns.resolver
from dns.rdtypes.IN.A import A
from dns.rdtypes.IN.AAAA import AAAA
from dns.rdtypes.IN.SRV import SRV

from .._errors import SHORTAGES
from ._addresses import Address
from ._connecting import PlainError
from ._resolving import check_descriptors
from ._services import Member

#: Seconds for the second kind of addresses where there are some of the first: servers that never
#: answer for one of the two are not rare.
_FOR_THE_OTHER = 2.0


class Questions:
    """Asks name servers, each question within ``timeout`` seconds."""

    def __init__(self, servers: Sequence[Address], timeout: float) -> None:
        """Ask these servers; without any, those of the system.

        Raises:
            ValueError: the system has none.
        """
        try:
            self._resolver = dns.resolver.Resolver(configure=not servers)
        except dns.exception.DNSException as error:
            raise ValueError(f"there are no name servers: {error}") from error
        if servers:
            self._resolver.nameservers = [dns.nameserver.Do53Nameserver(*each) for each in servers]
        self._timeout = timeout

    def members(self, name: str) -> tuple[tuple[Member, ...], float]:
        """Return what the SRV records of a name say, and for how many seconds that holds.

        Raises:
            OSError: there is no answer; the text says why.
        """
        records, ttl = self._ask(name, "SRV", self._timeout)
        members = [_member(record) for record in records if isinstance(record, SRV)]
        # The root as a target says that the service is not to be had (RFC 2782).
        return tuple(each for each in members if each.address.host and each.address.port), ttl

    def addresses(self, host: str) -> tuple[tuple[str, ...], float]:
        """Return a name's addresses, IPv6 first, and for how many seconds they hold.

        Raises:
            OSError: there is no answer; the text says why.
        """
        found: dict[str, list[str]] = {"A": [], "AAAA": []}
        times: list[float] = []
        failure: OSError | None = None
        for kind in found:
            seconds = self._timeout / len(found)
            try:
                records, ttl = self._ask(
                    host, kind, min(seconds, _FOR_THE_OTHER) if times else seconds
                )
            except OSError as error:
                if error.errno in SHORTAGES:
                    raise
                failure = error
                continue
            found[kind] = [each.address for each in records if isinstance(each, (A, AAAA))]
            if found[kind]:
                times.append(ttl)
        if failure is not None:
            if not times:
                raise failure
            times.append(0.0)  # the other kind may be there soon
        return (*found["AAAA"], *found["A"]), min(times, default=0.0)

    def _ask(self, name: str, kind: str, seconds: float) -> tuple[list[object], float]:
        """Return the records, and their TTL; a name that is not there has none, and TTL 0."""
        try:
            whole = dns.name.from_text(name)
            answer = self._resolver.resolve(whole, kind, lifetime=seconds)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return [], 0.0
        except (dns.exception.DNSException, OSError) as error:
            check_descriptors()
            raise _error(error) from error
        return list(answer), float(answer.chaining_result.minimum_ttl)


def _member(record: SRV) -> Member:
    host = record.target.to_text(omit_final_dot=True)
    return Member(Address("" if host == "." else host, record.port), record.priority, record.weight)


def _error(error: Exception) -> OSError:
    if isinstance(error, dns.exception.Timeout):
        return PlainError(errno.EHOSTUNREACH, "the name servers did not answer in time")
    return PlainError(errno.EHOSTUNREACH, str(error) or type(error).__name__)
