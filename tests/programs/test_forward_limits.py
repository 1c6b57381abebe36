"""Too few descriptors, and what idle connections cost."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import pytest

from programs.processes import Forwarder, Server, closing_all, exchange, until
from support.slowness import SLOWNESS

StartForwarder = Callable[..., Forwarder]


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("descriptors", [40, 41, 42, 43, 120])
def test_with_few_descriptors_all_clients_are_served_in_the_end(
    descriptors: int, name: str, echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(f"{name}:{echo_server.address[1]}", descriptors=descriptors)
    with closing_all() as clients:
        for number in range(60):
            clients.append(front.connect())
            clients[-1].sendall(f"{number:02}".encode())
        front.expect("accepting pauses")
        # The first of them first, as each that ends makes room for one that waits.
        for number, client in enumerate(clients):
            assert client.recv(2) == f"{number:02}".encode()
            client.close()
    front.expect(r"2 bytes up, 2 bytes down, eof", 60)
    # A look-up can begin another shortage behind the first.
    assert len(front.find("WARNING")) == len(front.find("accepting pauses")), front.text
    assert not front.find("ERROR")


def test_it_says_so_again_in_the_next_shortage(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, descriptors=120)
    for episode in (1, 2):
        with closing_all() as clients:
            clients += [front.connect() for _ in range(60)]
            front.expect(
                r"WARNING accepting pauses at \d+ connections: Too many open files; "
                r"raise ulimit -n \(systemd: LimitNOFILE\)$",
                episode,
            )
        front.expect(r"bytes down", 60 * episode)
        front.expect("accepting has resumed", episode)


def test_waiting_for_descriptors_is_no_busy_loop(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, descriptors=40)
    with closing_all() as clients:
        clients += [front.connect() for _ in range(60)]
        front.expect("accepting pauses")
        assert _rest(front, 2.0) < (0.2, 30)


def test_a_thread_is_nobodys_own(echo_server: Server, forwarder: StartForwarder) -> None:
    front = forwarder(echo_server.address)
    with closing_all() as clients:

        def add(count: int) -> int:
            for _ in range(count):
                clients.append(front.connect())
                assert exchange(clients[-1], b"hello") == b"hello"
            return front.threads()

        if sys.platform != "linux":
            pytest.skip("only /proc tells how many threads there are")
        few = add(20)
        assert add(180) == few


@pytest.mark.parametrize(
    "seconds", [3.0, pytest.param(10.0, marks=[pytest.mark.slow, pytest.mark.timeout(120)])]
)
def test_200_idle_connections_cost_no_cpu(
    seconds: float, echo_server: Server, forwarder: StartForwarder
) -> None:
    """Two looks a second for closed sockets, and nothing else."""
    front = forwarder(echo_server.address)
    with closing_all() as clients:
        for _ in range(200):
            clients.append(front.connect())
            assert exchange(clients[-1], b"hello") == b"hello"
        cpu, switches = _rest(front, seconds)
        assert cpu <= 0.01 * seconds * SLOWNESS
        assert switches <= 3 * seconds + 5
        assert exchange(clients[0], b"hello") == b"hello"


def test_the_soft_limit_of_descriptors_is_raised(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, patch=_SOFT_LIMIT_OF_64)
    with closing_all() as clients:
        for _ in range(60):
            clients.append(front.connect())
            assert exchange(clients[-1], b"hello") == b"hello"


_SOFT_LIMIT_OF_64 = """
import resource
limit = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, limit[1]))
"""


def test_clients_that_give_up_while_they_wait_harm_nobody(
    echo_server: Server, forwarder: StartForwarder
) -> None:
    front = forwarder(echo_server.address, descriptors=120)
    with closing_all() as clients:
        clients += [front.connect() for _ in range(60)]
        front.expect("accepting pauses")
        for client in clients[:-1]:
            client.close()
        assert exchange(clients[-1], b"hello") == b"hello"


def _rest(front: Forwarder, seconds: float) -> tuple[float, int]:
    """CPU seconds and voluntary context switches of a program while nothing happens to it."""
    if sys.platform != "linux":
        pytest.skip("only /proc tells of a running program's CPU time and context switches")
    _settle(front)
    cpu, switches = front.cpu_seconds(), front.voluntary_switches()
    time.sleep(seconds)  # what is measured is this time itself
    return front.cpu_seconds() - cpu, front.voluntary_switches() - switches


def _settle(front: Forwarder) -> None:
    """Wait until what came before has been dealt with."""
    seen = -1.0

    def quiet() -> bool:
        nonlocal seen
        before, seen = seen, front.cpu_seconds()
        time.sleep(0.2)
        return before == seen

    until(quiet)
