"""The forwarders among the examples, run as the programs that they are.

``test_reverse_proxy.py`` and ``test_router.py`` run the other two.
"""

from __future__ import annotations

import random
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from programs.processes import PATIENCE, Program, Server, digest_to_eof, exchange, reset

EXAMPLES = Path(__file__).parents[2] / "examples"
BANNER = b"the server speaks first"


@dataclass(frozen=True)
class Example:
    """One way to run one of the examples."""

    #: What has to be installed.
    modules: tuple[str, ...]
    file: str
    options: tuple[str, ...] = ()
    #: What a program does before anything else.
    first: str = ""


WAYS = {
    "trio": Example(("trio",), "trio_relay.py"),
    "anyio on asyncio": Example(("anyio",), "anyio_relay.py"),
    "anyio on uvloop": Example(("anyio", "uvloop"), "anyio_relay.py", ("uvloop",)),
    "anyio on trio": Example(("anyio", "trio"), "anyio_relay.py", ("trio",)),
    "gevent": Example(("gevent",), "gevent_relay.py"),
    "threads": Example((), "threaded_relay.py"),
    "gevent, patched": Example(
        ("gevent",),
        "gevent_relay.py",
        first=(
            "from gevent import monkey\nmonkey.patch_all(thread=False, select=False, queue=False)"
        ),
    ),
}

_RUN_AFTER = """{}
import runpy, sys
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(params=WAYS)
def example(request: pytest.FixtureRequest) -> Example:
    chosen = WAYS[request.param]
    for module in chosen.modules:
        pytest.importorskip(module, reason=f"{module} isn't installed")
    return chosen


@pytest.fixture
def forwarding(
    example: Example, program: Callable[..., Program]
) -> Callable[[tuple[str, int]], Program]:
    """Starts the example, to forward to an address."""
    before = ["-c", _RUN_AFTER.format(example.first)] if example.first else []
    path = str(EXAMPLES / example.file)
    return lambda target: program(*before, path, "0", f"{target[0]}:{target[1]}", *example.options)


def connect(forwarder: Program) -> socket.socket:
    port = int(forwarder.expect(r"listening on .*:(\d+)$")[0][1])
    return socket.create_connection(("127.0.0.1", port), PATIENCE)


def greet_and_echo(connection: socket.socket) -> None:
    connection.sendall(BANNER)
    while data := connection.recv(1 << 16):
        connection.sendall(data)


def test_every_byte_arrives_both_ways(
    forwarding: Callable[..., Program], server: Callable[..., Server]
) -> None:
    forwarder = forwarding(server(greet_and_echo).address)
    clients = [random.Random(seed).randbytes(2_000_000 + seed) for seed in range(4)]
    failures: list[BaseException] = []

    def talk(data: bytes) -> None:
        try:
            send_and_compare(forwarder, data)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=talk, args=(data,)) for data in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert failures == []
    for data in clients:
        forwarder.expect(
            f"(?<![0-9]){len(data)} bytes there, {len(BANNER) + len(data)} back: eof, "
        )


def send_and_compare(forwarder: Program, data: bytes) -> None:
    """The first bytes are sent at once, before anybody has connected to the target."""
    with connect(forwarder) as client:

        def send() -> None:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)

        sending = threading.Thread(target=send)
        sending.start()
        received = bytearray()
        while part := client.recv(1 << 16):
            received += part
        sending.join(PATIENCE)
    assert received == BANNER + data


def test_a_reset_is_no_clean_end_for_the_other_side(
    forwarding: Callable[..., Program], server: Callable[..., Server]
) -> None:
    def answer_and_break(connection: socket.socket) -> None:
        connection.sendall(connection.recv(1))
        connection.recv(1)
        reset(connection)

    with connect(forwarding(server(answer_and_break).address)) as client:
        assert exchange(client, b"x") == b"x"
        client.sendall(b"y")
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_target_that_refuses_costs_that_client_alone(
    forwarding: Callable[..., Program], refusing: socket.socket
) -> None:
    forwarder = forwarding(refusing.getsockname())
    for count in (1, 2):
        with connect(forwarder) as client:
            assert digest_to_eof(client)[0] == 0
        forwarder.expect("^failed: |can't connect to 127.0.0.1:", count)
    assert "Traceback" not in forwarder.text


REVERSE_PROXY = Example(("h11",), "reverse_proxy.py")


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "router.py",
        *(example.file for example in (*WAYS.values(), REVERSE_PROXY)),
    }


@pytest.mark.parametrize("arguments", [[], ["0"], ["0", "localhost"], ["x", "localhost:80"]])
@pytest.mark.parametrize("example", [*WAYS, "reverse proxy"])
def test_a_wrong_command_line_is_told_the_right_one(
    program: Callable[..., Program], arguments: list[str], example: str
) -> None:
    chosen = WAYS.get(example, REVERSE_PROXY)
    for module in chosen.modules:
        pytest.importorskip(module, reason=f"{module} isn't installed")
    running = program(str(EXAMPLES / chosen.file), *arguments)
    assert running.end() == 2
    assert running.lines[0].startswith(f"usage: {chosen.file} [-h] LISTEN_PORT HOST:PORT")
    first = (EXAMPLES / chosen.file).read_text().partition("\n")[0]
    assert f": python examples/{chosen.file} LISTEN_PORT HOST:PORT" in first


def test_sigterm_cuts_what_is_under_way(
    forwarding: Callable[..., Program], echo_server: Server
) -> None:
    forwarder = forwarding(echo_server.address)
    with connect(forwarder) as client:
        assert exchange(client, b"x") == b"x"
        forwarder.signal(signal.SIGTERM)
        assert forwarder.end() == 0, forwarder.text
        assert client.recv(1) == b""
    assert "Traceback" not in forwarder.text


#: What the scripts below have in common.  Its last line says what must not be: a relay that is
#: still live, and one that was ended by a call that held up the loop.
_WATCH = """
import signal, socket, sys, threading
from freebsd_splice import Relay, _runtime
sys.path.insert(0, {examples!r})
signal.alarm({patience})  # a relay that can't be ended ends this process

def pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        return near, listener.accept()[0]

ends = []
cancel = Relay.cancel
def watched(self):
    if not self.done:
        ends.append(threading.current_thread() is threading.main_thread())
    return cancel(self)
Relay.cancel = watched

def report():
    print("live", len(_runtime.current()._live), "ended in the loop", ends)
"""

_TRIO = """
import trio
from trio_relay import relay

def stream(sock):
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))

async def until_cancelled(left, right):
    try:
        await relay(left, right)
    except trio.Cancelled:
        print("cancelled")
        raise

async def main():
    (client, left), (right, target) = pair(), pair()
    left, right = stream(left), stream(right)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(until_cancelled, left, right)
        client.sendall(b"x")
        assert await trio.to_thread.run_sync(target.recv, 1) == b"x"
        nursery.cancel_scope.cancel()
    report()
    await left.send_all(b"y")  # the streams are the caller's again
    assert client.recv(1) == b"y"
    print("usable")

trio.run(main)
"""

_ANYIO = """
import anyio
from anyio_relay import relay

async def until_cancelled(left, right):
    try:
        await relay(left, right)
    except anyio.get_cancelled_exc_class():
        print("cancelled")
        raise

async def main():
    (client, left), (right, target) = pair(), pair()
    async with anyio.create_task_group() as group:
        group.start_soon(until_cancelled, left, right)
        client.sendall(b"x")
        assert await anyio.to_thread.run_sync(target.recv, 1) == b"x"
        group.cancel_scope.cancel()
    report()
    assert client.recv(1) == b"" and left.fileno() == -1
    print("closed")

anyio.run(main, {arguments})
"""

_GEVENT = """
import gevent
from gevent import socket as cooperative
from gevent_relay import relay

def until_killed(left, right):
    try:
        relay(left, right)
    except gevent.GreenletExit:
        print("cancelled")
        raise

(client, left), (right, target) = pair(), pair()
greenlet = gevent.spawn(until_killed, left, right)
client.sendall(b"x")
cooperative.wait_read(target.fileno())
assert target.recv(1) == b"x"
greenlet.kill()
report()
left.sendall(b"y")  # the sockets are the caller's again
assert client.recv(1) == b"y"
print("usable")
"""

CANCELLED = {
    "trio": (("trio",), _TRIO, "usable"),
    "anyio on asyncio": (("anyio",), _ANYIO.format(arguments=""), "closed"),
    "anyio on uvloop": (
        ("anyio", "uvloop"),
        _ANYIO.format(arguments="backend_options={'use_uvloop': True}"),
        "closed",
    ),
    "anyio on trio": (("anyio", "trio"), _ANYIO.format(arguments="backend='trio'"), "closed"),
    "gevent": (("gevent",), _GEVENT, "usable"),
}


@pytest.mark.parametrize("way", CANCELLED)
def test_cancelling_ends_the_relay_in_a_thread(program: Callable[..., Program], way: str) -> None:
    modules, script, afterwards = CANCELLED[way]
    for module in modules:
        pytest.importorskip(module, reason=f"{module} isn't installed")
    watch = _WATCH.format(examples=str(EXAMPLES), patience=int(PATIENCE))
    run = program("-c", watch + script)
    assert run.end() == 0, run.text
    assert run.lines == ["cancelled", "live 0 ended in the loop [False]", afterwards]
