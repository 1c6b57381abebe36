"""What signals do to a proxy, however it was started."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from faults.cells import cell
from freebsd_splice._cli.signals import WITHOUT_EFFECT
from programs.processes import Forwarder, Server, exchange

StartForwarder = Callable[..., Forwarder]

#: What a program inherits from whoever starts it.
BLOCKED = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())"
IGNORED = """
import signal
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
    signal.signal(number, signal.SIG_IGN)
"""

OWN_GROUP = "import os; os.setpgid(0, 0)"


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("start", [BLOCKED, IGNORED], ids=["blocked", "ignored"])
@cell(
    "a signal",
    "processes",
    "any",
    sees="SIGTERM and SIGINT stop it, also where it was started with them blocked or ignored",
)
def test_it_can_be_stopped_however_it_was_started(
    start: str,
    number: signal.Signals,
    workers: str,
    echo_server: Server,
    forwarder: StartForwarder,
) -> None:
    front = forwarder(echo_server.address, "--workers", workers, patch=start)
    with front.connect() as client:
        assert exchange(client, b"hello") == b"hello"
    front.expect("bytes up")
    front.signal(number)
    assert front.end() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("number", WITHOUT_EFFECT, ids=lambda number: number.name)
@pytest.mark.parametrize("start", ["", BLOCKED], ids=["as usual", "blocked"])
@cell(
    "a signal",
    "processes",
    "moving",
    sees="SIGHUP and its like: `SIGHUP does nothing` in the log, and all go on",
    counted="all",
    others=True,
)
def test_what_others_reload_by_ends_no_connection(
    start: str,
    number: signal.Signals,
    workers: str,
    echo_server: Server,
    forwarder: StartForwarder,
) -> None:
    """A terminal that is closed sends SIGHUP to all processes of the command."""
    patch = f"{OWN_GROUP}\n{start}"
    front = forwarder(echo_server.address, "--workers", workers, patch=patch)
    with front.connect() as client:
        assert exchange(client, b"before") == b"before"
        os.killpg(front.pid, number)
        front.expect(f"WARNING {number.name} does nothing")
        assert exchange(client, b"after") == b"after"
        with front.connect() as another:
            assert exchange(another, b"another") == b"another"
    assert front.stop() == 0
    assert len(front.find(f"{number.name} does nothing")) == 1
    assert not front.find("has died|cutting")
