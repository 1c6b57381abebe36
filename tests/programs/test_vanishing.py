"""A proxy's client or target vanishes: nothing of it arrives any more (Linux, root)."""

from __future__ import annotations

import socket
import sys
from contextlib import ExitStack, closing

import pytest

from faults.bystanders import PIECE
from faults.cells import cell
from programs.clients import name_of, no_accidents
from programs.processes import PATIENCE, Proxy, Server, echo, exchange, receive, where
from support.namespaces import Network, two_networks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.skipif(sys.platform != "linux", reason="networks of one's own are Linux's"),
]

FOUND = "SO_KEEPALIVE finds it, or, with bytes on the way, the system's limit of retransmissions: "
FOUND += "`error (client: Connection timed out)`, or `target`, in the log; the other side is reset"


@pytest.mark.parametrize(
    ("who", "phase"),
    [
        pytest.param("client", "moving", marks=cell(
            "the peer vanishes", "forward", "moving", sees=FOUND, counted="all that was moved",
            others=True,
        )),
        pytest.param("target", "moving"),
        pytest.param("target", "half-closed", marks=cell(
            "the peer vanishes", "forward", "half-closed", sees=FOUND,
            counted="all that was moved", others=True,
        )),
    ],
)  # fmt: skip
def test_who_vanishes_is_found_by_keepalive(who: str, phase: str, opened: ExitStack) -> None:
    ours, theirs = opened.enter_context(two_networks())
    for name, value in (("time", 1), ("intvl", 1), ("probes", 2)):
        ours.set(f"tcp_keepalive_{name}", value)
    ours.set("tcp_retries2", 3)  # for what isn't acknowledged: seconds, not a quarter of an hour
    of_target, of_client = (ours, theirs) if who == "client" else (theirs, ours)
    listener = opened.enter_context(of_target.run(lambda: listen(of_target)))
    listener.settimeout(PATIENCE)
    echo_server = opened.enter_context(
        closing(Server(echo, listener=ours.run(lambda: listen(ours))))
    )
    targets = [where(echo_server), "{}:{}".format(*listener.getsockname())]  # in turn
    command = ["forward", "--idle-timeout", "1000", f"{ours.address}:0", *targets]
    front = opened.enter_context(closing(ours.run(lambda: Proxy(*command))))

    def connect() -> socket.socket:
        return socket.create_connection((ours.address, front.port), PATIENCE)

    bystander = opened.enter_context(ours.run(connect))
    assert exchange(bystander, PIECE) == PIECE
    with of_client.run(connect) as client, listener.accept()[0] as target:
        client.sendall(PIECE)
        assert receive(target, len(PIECE)) == PIECE
        still_there = target if who == "client" else client
        if phase == "half-closed":
            client.shutdown(socket.SHUT_WR)
            assert target.recv(1) == b""
        ours.lose(theirs)
        still_there.settimeout(PATIENCE)
        with pytest.raises(ConnectionResetError):
            receive(still_there, 1)
        assert exchange(bystander, PIECE) == PIECE
        line = f"INFO {name_of(client)} -> .*: {len(PIECE)} bytes up, 0 bytes down"
        front.expect(rf"{line}, \w+ error \({who}: Connection timed out\)")
    no_accidents(front)


def listen(network: Network) -> socket.socket:
    return socket.create_server((network.address, 0))


@cell(
    "the peer vanishes",
    "connect",
    "handshake",
    sees="it is closed after `--handshake-timeout`, which the log says",
)
def test_who_vanishes_in_the_handshake_is_let_go(opened: ExitStack) -> None:
    pytest.importorskip("h11", reason="it is what the proxy parses requests with")
    ours, theirs = opened.enter_context(two_networks())
    front = opened.enter_context(
        closing(ours.run(lambda: Proxy("connect", "--handshake-timeout", "1", f"{ours.address}:0")))
    )
    with theirs.run(
        lambda: socket.create_connection((ours.address, front.port), PATIENCE)
    ) as client:
        client.sendall(b"CONNECT ")
        ours.lose(theirs)
        front.expect(f"WARNING {name_of(client)}: client did not complete the handshake in 1 s")
    no_accidents(front)
