"""The cells of docs/reliability.md: which test plays which fault, and what is seen of it.

A test states its cells by a mark, on itself or on one of its parameters::

    @cell("the peer resets", "Splice", "moving", sees="SOURCE_ERROR, ECONNRESET", counted="…")

``tools/fault_table.py`` plays the tests that have one and makes the page of what came of them.
Layer and phase may be parameters of the test: ``"{layer}"``. Any test of the tree can declare
cells; it need not be in this folder.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from conformance.backends import KERNEL, MODELS, MOVERS

#: Rows, in this order.
FAULTS = (
    "the peer resets",
    "the peer closes",
    "the peer stops reading for ever",
    "the peer stands still",
    "the peer vanishes",
    "no descriptor",
    "no memory",
    "no buffer space",
    "no thread",
    "the name server is dead or slow",
    "fork",
    "exec",
    "a signal",
    "SIGSTOP and SIGCONT",
    "the clock is set",
    "suspend",
    "the log cannot be written",
    "a worker is killed",
    "the first process is killed",
)

#: Tables, in this order, and their headings.
LAYERS = {
    "thin": "The thin functions",
    "Splice": "`Splice`",
    "Relay": "`Relay`",
    "aio": "`aio`",
    "forward": "`freebsd-splice forward`",
    "connect": "`freebsd-splice connect`",
    "socks5": "`freebsd-splice socks5`",
    "sni": "`freebsd-splice sni`",
    "processes": "What all proxies share: workers, the first process, the log",
}

PHASES = ("dialling", "handshake", "initial", "moving", "half-closed", "closing", "any")

#: What a peer does: each phase is a cell of its own. All else comes at any time.
OF_PEERS = FAULTS[: FAULTS.index("no descriptor")]
_OF_PROXIES = (
    "the name server is dead or slow",
    "the log cannot be written",
    "a worker is killed",
    "the first process is killed",
)

#: Columns of backends that a test can be played on, as the page calls them.
BACKENDS = ("os.splice", "copy", *MODELS, "kernel")

#: The fixture that has somebody else served by the same process, and checks that they are unharmed.
BYSTANDER = "bystander"


class Cell(NamedTuple):
    fault: str
    layer: str
    phase: str
    sees: str
    counted: str
    others: bool

    @property
    def place(self) -> tuple[int, int, int]:
        """Where it stands on the page."""
        layer = list(LAYERS).index(self.layer)
        return layer, FAULTS.index(self.fault), PHASES.index(self.phase)


def cell(
    fault: str, layer: str, phase: str, *, sees: str, counted: str = "", others: bool = False
) -> pytest.MarkDecorator:
    """The test plays this fault at this layer in this phase.

    Args:
        fault: one of FAULTS.
        layer: one of LAYERS, or "{name}" for a parameter of the test.
        phase: one of PHASES, or "{name}".
        sees: what the caller sees, in a sentence: the exception, the outcome, the line of the log.
        counted: which bytes are accounted for, where there are any.
        others: the test itself has somebody else served meanwhile (the fixture of that name says so
            without this).
    """
    assert fault in FAULTS, fault
    assert layer in LAYERS or layer.startswith("{"), layer
    assert phase in PHASES or phase.startswith("{"), phase
    assert sees
    assert not sees.endswith("."), sees
    return pytest.mark.fault_cell(Cell(fault, layer, phase, sees, counted, others))


def faults_at(layer: str) -> tuple[str, ...]:
    """Those that can be at a layer: what all proxies share has a table of its own."""
    if layer in ("thin", "Splice", "Relay", "aio"):
        return tuple(fault for fault in FAULTS if fault not in _OF_PROXIES)
    if layer == "processes":
        return tuple(fault for fault in FAULTS[len(OF_PEERS) :] if fault not in ("fork", "suspend"))
    return OF_PEERS


def cells_of(item: pytest.Function) -> list[Cell]:
    """What a test, with these parameters, is said to play."""
    parameters: dict[str, Any] = _parameters(item)
    found = []
    for mark in item.iter_markers("fault_cell"):
        made = mark.args[0]
        others = made.others or BYSTANDER in item.fixturenames
        layer, phase = made.layer.format(**parameters), made.phase.format(**parameters)
        found.append(made._replace(layer=layer, phase=phase, others=others))
        assert found[-1].place, f"{item.nodeid}: {layer}, {phase}"
    return found


def backend_of(item: pytest.Function, layer: str) -> str:
    """By what the test was served, as far as its parameters and fixtures say it."""
    for value in _parameters(item).values():
        name = value.rpartition("/")[2].replace("SO_SPLICE", "kernel")
        if name in BACKENDS:
            return name
    emulated = _parameters(item).get("thin") == "userspace"
    if KERNEL and not emulated and "userspace" not in item.fixturenames:
        return "kernel"
    return "copy" if layer == "thin" else MOVERS[0]  # the emulation copies


def _parameters(item: pytest.Function) -> dict[str, str]:
    callspec = getattr(item, "callspec", None)
    given = callspec.params if callspec is not None else {}
    return {name: value for name, value in given.items() if isinstance(value, str)}
