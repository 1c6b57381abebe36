"""docs/load_balancing.md: the configurations of HAProxy and nginx that it prints, as they are."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from programs.clients import no_accidents, read_to_eof
from programs.processes import (
    PATIENCE,
    Forwarder,
    Server,
    exchange,
    free_port,
    needs_address,
    until,
)
from programs.test_proxy_neighbours import Neighbours

PAGE = Path(__file__).parents[2] / "docs" / "load_balancing.md"
IN_FRONT, BEHIND = 0, 1

Run = Callable[..., tuple[str, int]]


@pytest.fixture
def printed(tmp_path: Path, opened: ExitStack) -> Run:
    """Runs a configuration of the page, with addresses of this machine, and gives its own."""

    def run(program: str, number: int, own: str, **others: str) -> tuple[str, int]:
        blocks = re.findall(rf"^```{program}\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
        address = ("127.0.0.1", free_port())
        text = blocks[number]
        replaced = {own: "{}:{}".format(*address), **others}
        for old, new in replaced.items():
            assert old in text, f"the page has no {old} any more"
            text = text.replace(old, new)
        neighbours = Neighbours(tmp_path, opened)
        start = neighbours.run_haproxy if program == "haproxy" else neighbours.run_nginx
        return start(text, address)

    return run


@pytest.mark.parametrize("program", ["haproxy", "nginx"])
def test_two_proxies_behind_it(
    program: str, printed: Run, echo_server: Server, forwarder: Callable[..., Forwarder]
) -> None:
    """Both get clients, and know who they are."""
    fronts = [forwarder(echo_server.address, "--accept-proxy", "127.0.0.1") for _ in range(2)]
    names = dict(zip(["10.0.0.11:443", "10.0.0.12:443"], fronts, strict=True))
    replaced = {name: f"127.0.0.1:{front.port}" for name, front in names.items()}
    address = printed(program, IN_FRONT, "192.0.2.10:443", **replaced)
    clients = []

    def both_have_one() -> bool:
        with socket.create_connection(address, PATIENCE) as client:
            assert exchange(client, b"hello") == b"hello"
            clients.append("{}:{}".format(*client.getsockname()))
        return all(front.find("5 bytes up") for front in fronts)

    until(both_have_one)
    for front in fronts:
        (name,) = {found[1] for found in front.find(r"INFO (\S+) via \S+ -> .*: 5 bytes up")[:1]}
        assert name in clients
        no_accidents(front)


@pytest.mark.parametrize("program", ["haproxy", "nginx"])
def test_a_proxy_in_front_of_it(
    program: str, printed: Run, forwarder: Callable[..., Forwarder]
) -> None:
    """It says the address of the client, and not the proxy's."""
    needs_address("127.0.0.2")
    replaced = {"10.0.0.11": "127.0.0.1"} if program == "nginx" else {}
    address = printed(program, BEHIND, "10.0.0.5:8000", **replaced)
    front = forwarder(address, "--send-proxy", "v2")
    own = ("127.0.0.2", 0)
    with socket.create_connection(("127.0.0.1", front.port), PATIENCE, own) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert read_to_eof(client).endswith(b"\r\n\r\n127.0.0.2\n")
    no_accidents(front)
