"""What is wrong with an argument is said by its name, before anything is touched."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from freebsd_splice import InvalidArgument, Relay, Splice, aio
from freebsd_splice.proxies import Address, ProxyServer, forwarder

NO_PAIR = (
    "initial must be a pair of bytes, what was read from the left and what was read from the "
    "right, not bytes"
)
POSITIVE = "must be a positive number of seconds or None, not"


@contextlib.contextmanager
def ends() -> Iterator[tuple[Any, Any]]:
    """Two sockets that could be spliced, with a byte waiting at the first."""
    with contextlib.ExitStack() as opened:
        pairs = [tuple(map(opened.enter_context, socket.socketpair())) for _ in range(2)]
        for sock in (*pairs[0], *pairs[1]):
            sock.setblocking(False)
        pairs[0][1].sendall(b"x")
        yield pairs[0][0], pairs[1][0]


def refused(kind: type[Exception], message: str, call: Callable[[Any, Any], object]) -> None:
    """``call`` fails so, and the waiting byte is where it was."""
    with ends() as (left, right):
        with pytest.raises(kind, match=f"{re.escape(message)}") as caught:
            call(left, right)
        assert type(caught.value) is kind
        assert left.recv(2) == b"x"


TIMES = [
    ("5", TypeError, "'5'"),
    (0, ValueError, "0"),
    (float("nan"), ValueError, "nan"),
    (10**400, ValueError, "one of more than 300 digits"),
]


@pytest.mark.parametrize("name", ["idle_timeout", "timeout", "linger"])
@pytest.mark.parametrize(("value", "kind", "shown"), TIMES, ids=["text", "zero", "nan", "huge"])
def test_a_time_that_is_none(name: str, value: Any, kind: type[Exception], shown: str) -> None:
    if name == "linger" and value == 0:
        return  # nobody is waited for
    message, option = f"{name} {POSITIVE} {shown}", {name: value}
    refused(kind, message, lambda left, right: Relay(left, right, **option))
    in_loop(kind, message, lambda left, right: aio.relay(left, right, **option))
    if name != "linger":
        refused(kind, message, lambda left, right: Splice(left, right, **option))
        in_loop(kind, message, lambda left, right: aio.splice(left, right, **option))


def in_loop(kind: type[Exception], message: str, call: Callable[[Any, Any], Any]) -> None:
    refused(kind, message, lambda left, right: asyncio.run(call(left, right)))


def test_a_connection_that_is_both_sides() -> None:
    message = "left and right must be two connections, not <socket.socket "
    refused(InvalidArgument, message, lambda left, _: Relay(left, left))
    in_loop(InvalidArgument, message, lambda left, _: aio.relay(left, left))


def test_a_stream_that_is_both_sides() -> None:
    async def echo(left: socket.socket, _: object) -> None:
        stream = await asyncio.open_connection(sock=left.dup())
        try:
            await aio.relay(stream, stream)
        finally:
            assert await stream[0].read(2) == b"x"
            left.setblocking(False)
            stream[1].close()

    with ends() as (left, right), pytest.raises(InvalidArgument, match="two connections, not"):
        asyncio.run(echo(left, right))


@pytest.mark.parametrize("data", [b"abc", b"ab", b""])
def test_the_bytes_of_one_side_for_a_pair(data: Any) -> None:
    """Two bytes are two ints, and ``bytes(97)`` would be 97 zeros."""
    refused(TypeError, NO_PAIR, lambda left, right: Relay(left, right, initial=data))
    in_loop(TypeError, NO_PAIR, lambda left, right: aio.relay(left, right, initial=data))


@pytest.mark.parametrize("data", ["abc", 3, None])
def test_initial_that_is_not_bytes(data: Any) -> None:
    kind = type(data).__name__
    for name, initial in (("initial[0]", (data, b"")), ("initial[1]", (b"", data))):
        message = f"{name} must be bytes, not {kind}"
        refused(TypeError, message, lambda a, b, i=initial: Relay(a, b, initial=i))  # type: ignore[misc]
        in_loop(TypeError, message, lambda a, b, i=initial: aio.relay(a, b, initial=i))  # type: ignore[misc]
    message = f"initial must be bytes, not {kind}"
    refused(TypeError, message, lambda left, right: Splice(left, right, initial=data))
    in_loop(TypeError, message, lambda left, right: aio.splice(left, right, initial=data))


@pytest.mark.parametrize("name", ["count", "max_bytes"])
@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (-1, InvalidArgument, "must be from 0 to 2**63 - 1, not -1"),
        (1 << 63, InvalidArgument, "must be from 0 to 2**63 - 1, not 9223372036854775808"),
        ("5", TypeError, "must be an int or None, not '5'"),
    ],
)
def test_a_number_of_bytes_that_is_none(
    name: str, value: Any, kind: type[Exception], message: str
) -> None:
    if name == "count":
        message = message.replace(" or None", "")
        in_loop(kind, f"count {message}", lambda left, right: aio.transfer(left, right, value))
        return
    message = f"max_bytes {message}"
    refused(kind, message, lambda left, right: Splice(left, right, max_bytes=value))
    in_loop(kind, message, lambda left, right: aio.splice(left, right, max_bytes=value))


def test_a_transfer_of_everything() -> None:
    call: Callable[[Any, Any], Any] = lambda a, b: aio.transfer(a, b, None)  # type: ignore[arg-type]  # noqa: E731
    in_loop(TypeError, "count must be an int, not None", call)


@pytest.mark.parametrize("name", ["connect_timeout", "idle_timeout"])
def test_the_times_of_a_proxy(name: str) -> None:
    """Each of its clients would meet it, and nobody before."""
    option: dict[str, Any] = {name: "5"}
    with pytest.raises(TypeError, match=f"^{name} {POSITIVE} '5'"):
        forwarder(Address("127.0.0.1", 80), **option)
    with pytest.raises(TypeError, match=f"^{name} {POSITIVE} '5'"):
        ProxyServer(lambda client: pytest.fail("nobody connects"), **option)


@pytest.mark.parametrize("target", ["localhost:80", [], [("localhost", 80)]])
def test_the_target_of_a_forwarder(target: Any) -> None:
    message = f"target must be an Address, a Service or a list of them, not {target!r}"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        forwarder(target)
