"""Which cells of docs/reliability.md are left empty, and why each of them can't be, or needn't.

``tools/fault_table.py`` finds the empty cells by itself, and takes the reason from here. It refuses
an empty cell without a reason, and a reason that no empty cell has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from conformance.backends import MODELS
from freebsd_splice._backend import COPY, OS_SPLICE

from .cells import LAYERS, OF_PEERS, PHASES, faults_at

#: By what a layer can be served, the real kernels apart: those are played where there is one.
BACKENDS_AT = {
    "thin": (COPY, *MODELS),
    "Splice": (OS_SPLICE, COPY, *MODELS),
    "Relay": (OS_SPLICE, COPY, *MODELS),
    "aio": (OS_SPLICE, *MODELS),
}

_FLOWING = ("initial", "moving", "half-closed")

#: The phases that a layer has. Below the proxies connections are there already, and who uses the
#: thin functions or a ``Splice`` closes them.
PHASES_AT = {
    "thin": _FLOWING,
    "Splice": _FLOWING,
    "Relay": (*_FLOWING, "closing"),
    "aio": (*_FLOWING, "closing"),
    "forward": PHASES[:-1],
    "connect": PHASES[:-1],
    "socks5": PHASES[:-1],
    "sni": PHASES[:-1],
}


class Place(NamedTuple):
    """One cell on one backend."""

    layer: str
    fault: str
    #: "any": that of a fault which doesn't come from a peer.
    phase: str
    backend: str


class Gap(NamedTuple):
    """Cells that are left empty, and why; where nothing is said, all of them are meant."""

    because: str
    layers: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    phases: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()

    def has(self, place: Place) -> bool:
        named = zip((self.layers, self.faults, self.phases, self.backends), place, strict=True)
        return all(not chosen or value in chosen for chosen, value in named)


_MODELS = tuple(MODELS)
_ASKED = ("connect", "socks5", "sni")
_PROXIES = ("forward", *_ASKED)

#: The first that has a cell says why it is empty.
GAPS: tuple[Gap, ...] = (
    Gap(
        "a model is a part of the test's process, so that it would happen to the test",
        faults=("fork", "exec", "a signal", "SIGSTOP and SIGCONT", "suspend"),
        backends=_MODELS,
    ),
    Gap(
        "the test reads the package's text, which is the same on every backend",
        layers=("thin", "aio"),
        faults=("the clock is set",),
        backends=_MODELS,
    ),
    Gap(
        "a thread waits in both movers alike, and only the call that moves the bytes differs",
        layers=("Splice", "Relay"),
        faults=("SIGSTOP and SIGCONT", "suspend"),
        backends=(COPY,),
    ),
    Gap(
        "a copy is what serves where a pipe is refused; `test_whatever_waits_and_moves` has a copy "
        "with each poller",
        layers=("Splice", "Relay"),
        faults=("no descriptor", "no memory", "no buffer space", "no thread"),
        backends=(COPY,),
    ),
    Gap(
        "the calls on a kernel make no descriptor and start no thread",
        layers=("thin",),
        faults=("no descriptor", "no thread"),
        backends=_MODELS,
    ),
    Gap(
        "`aio` adds asyncio's own calls to a Relay's, and a model has no calls of asyncio's",
        layers=("aio",),
        faults=("no descriptor", "no memory", "no buffer space", "no thread"),
        backends=_MODELS,
    ),
    Gap(
        "what a kernel refuses stands in the facts, by which the models are checked",
        layers=("thin",),
        faults=("the peer resets",),
        phases=("initial",),
        backends=_MODELS,
    ),
    Gap(
        "the drain is full before the call: as of a peer that stands still",
        layers=("thin",),
        faults=("the peer stops reading for ever",),
        phases=("initial",),
    ),
    Gap(
        "nobody knows yet that it has vanished: as while bytes move",
        layers=("thin",),
        faults=("the peer vanishes",),
        phases=("initial",),
    ),
    Gap(
        "both have ended: nothing is left to be said by closing",
        faults=("the peer closes",),
        phases=("closing",),
    ),
    Gap(
        "to the network it is a peer that stands still",
        layers=("aio",),
        faults=("the peer stops reading for ever",),
    ),
    Gap(
        "how a pair is closed is the Relay's, and is played there",
        layers=("aio", "forward"),
        phases=("closing",),
    ),
    Gap(
        "the same code closes as for `forward`",
        layers=_ASKED,
        phases=("closing",),
    ),
    Gap(
        "a handshake is a PROXY header alone, with the time limit of the others' handshakes",
        layers=("forward",),
        phases=("handshake",),
    ),
    Gap(
        "the answer in the handshake is so short that it fits any buffer",
        layers=("socks5", "sni"),
        faults=("the peer stops reading for ever",),
        phases=("handshake",),
    ),
    Gap(
        "the same code limits the time of a handshake as for `connect`",
        layers=("socks5", "sni"),
        faults=("the peer vanishes",),
        phases=("handshake",),
    ),
    Gap(
        "the same code dials as for `connect` and `socks5`",
        layers=("forward", "sni"),
        faults=("the peer closes",),
        phases=("dialling",),
    ),
    Gap(
        "there is nothing to read yet",
        layers=_PROXIES,
        faults=("the peer stops reading for ever",),
        phases=("dialling",),
    ),
    Gap(
        "its system accepts for it, and the same code goes on as for `forward`",
        layers=_ASKED,
        faults=("the peer stands still",),
        phases=("dialling",),
    ),
    Gap(
        "what was sent ahead is the `initial` of a Relay, and is played there",
        layers=_PROXIES,
        phases=("initial",),
    ),
    Gap(
        "the same code sets SO_KEEPALIVE as for `forward`",
        layers=_ASKED,
        faults=("the peer vanishes",),
        phases=("moving", "half-closed"),
    ),
)


def places() -> Iterator[Place]:
    """Each cell that there could be."""
    for layer in LAYERS:
        phases = PHASES_AT.get(layer, ("any",))
        for fault in faults_at(layer):
            for phase in phases if fault in OF_PEERS else ("any",):
                for backend in BACKENDS_AT.get(layer, (OS_SPLICE,)):
                    yield Place(layer, fault, phase, backend)


def empty(played: Iterable[Place]) -> list[Place]:
    """Those that no test has played; in which phase doesn't matter where no peer is at fault."""
    known = {
        place._replace(phase=place.phase if place.fault in OF_PEERS else "any") for place in played
    }
    return [
        place
        for place in places()
        if place not in known and place._replace(phase="any") not in known
    ]


def gap_of(place: Place) -> Gap | None:
    """Why the cell is empty; None if nobody has said."""
    return next((gap for gap in GAPS if gap.has(place)), None)
