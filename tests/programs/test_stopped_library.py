"""A program that uses the library is stopped past its idle timeouts, and goes on."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from faults.bystanders import PIECE
from faults.cells import cell
from programs.processes import PATIENCE, Program, receive
from support.slowness import SLOWNESS

pytestmark = pytest.mark.slow

#: Joins the first two who connect by a splice, the next two by a relay, then two by aio's, and the
#: last by the thin functions.
PROGRAM = """
import asyncio, socket, sys, time
from freebsd_splice import Relay, Splice, aio, splice, spliced_bytes

async def main():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print("port", listener.getsockname()[1], flush=True)
        sockets = [listener.accept()[0] for _ in range(8)]
    for each in sockets:
        each.setblocking(False)
    idle = float(sys.argv[1])
    splice(*sockets[6:])
    joined = Splice(*sockets[:2], idle_timeout=idle)
    relay = Relay(*sockets[2:4], idle_timeout=idle)
    pair = await aio.relay(*sockets[4:6], idle_timeout=idle)
    print(joined.wait(20), relay.wait(20), pair, sep="\\n", flush=True)
    while spliced_bytes(sockets[6]) < int(sys.argv[2]):
        time.sleep(0.001)
    for each in sockets:
        each.close()

asyncio.run(main())
"""

GOES_ON = "bytes that came while it was stopped count as traffic: `idle_timeout` ends nothing"
THIN_GOES_ON = (
    "nothing: what came while it was stopped is moved afterwards, or by the kernel meanwhile"
)


@cell("SIGSTOP and SIGCONT", "thin", "moving", sees=THIN_GOES_ON, counted="all")
@cell("suspend", "thin", "moving", sees=f"as after SIGSTOP: {THIN_GOES_ON}", counted="all")
@cell("SIGSTOP and SIGCONT", "Splice", "moving", sees=GOES_ON, counted="all")
@cell("SIGSTOP and SIGCONT", "Relay", "moving", sees=GOES_ON, counted="all")
@cell("SIGSTOP and SIGCONT", "aio", "moving", sees=GOES_ON, counted="all")
@cell("suspend", "Splice", "moving", sees=f"as after SIGSTOP: {GOES_ON}", counted="all")
@cell("suspend", "Relay", "moving", sees=f"as after SIGSTOP: {GOES_ON}", counted="all")
@cell("suspend", "aio", "moving", sees=f"as after SIGSTOP: {GOES_ON}", counted="all")
def test_what_came_while_it_was_stopped_is_traffic(program: Callable[..., Program]) -> None:
    running = program("-c", PROGRAM, str(2 * SLOWNESS), str(2 * len(PIECE)))
    address = ("127.0.0.1", int(running.expect(r"port (\d+)")[0][1]))
    with ExitStack() as connected:
        ends = [
            connected.enter_context(socket.create_connection(address, PATIENCE)) for _ in range(8)
        ]
        pairs = list(zip(ends[::2], ends[1::2], strict=True))
        for sender, receiver in pairs:
            sender.sendall(PIECE)
            assert receive(receiver, len(PIECE)) == PIECE
        running.signal(signal.SIGSTOP)
        for sender, receiver in pairs:
            sender.sendall(PIECE)
            sender.shutdown(socket.SHUT_WR)
            receiver.shutdown(socket.SHUT_WR)
        threading.Event().wait(3 * SLOWNESS)  # more than the idle timeout
        running.signal(signal.SIGCONT)
        for _, receiver in pairs:
            assert receive(receiver, len(PIECE)) == PIECE
            assert receiver.recv(1) == b""  # the thin functions pass no EOF on, but closing does
        assert running.end() == 0
    assert len(running.find(f"{2 * len(PIECE)} bytes, eof|{2 * len(PIECE)} bytes .*eof")) == 3
