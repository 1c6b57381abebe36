"""Fixtures that start programs and servers, and end them with the test."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from conformance.harness import silent_listener
from programs.processes import Forwarder, Program, Proxy, Served, Server, echo

if TYPE_CHECKING:
    from programs.fronts import Front


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """What is closed at the end of the test, last first."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def program(opened: ExitStack) -> Callable[..., Program]:
    """Starts a Python program."""
    return lambda *args, **options: opened.enter_context(closing(Program(*args, **options)))


@pytest.fixture
def proxy(opened: ExitStack) -> Callable[..., Proxy]:
    """Starts a command of freebsd-splice that serves clients."""
    return lambda *args, **options: opened.enter_context(closing(Proxy(*args, **options)))


@pytest.fixture
def forwarder(opened: ExitStack) -> Callable[..., Forwarder]:
    """Starts a forwarder to a target."""
    return lambda *args, **options: opened.enter_context(closing(Forwarder(*args, **options)))


@pytest.fixture
def served(tmp_path: Path, opened: ExitStack) -> Callable[..., Served]:
    """Starts the proxies of a file, given its text and options."""

    def start(*args: str, **options: str) -> Served:
        return opened.enter_context(closing(Served(tmp_path / "proxies.toml", *args, **options)))

    return start


@pytest.fixture
def server(opened: ExitStack) -> Callable[..., Server]:
    """Starts a server that runs a function for each connection."""
    return lambda *args, **options: opened.enter_context(closing(Server(*args, **options)))


@pytest.fixture
def echo_server(server: Callable[..., Server]) -> Server:
    return server(echo)


@pytest.fixture
def front(
    proxy: Callable[..., Proxy], echo_server: Server, tmp_path: Path
) -> Iterator[Callable[..., Front]]:
    """Starts a proxy with a bystander, whom it serves until the end of the test."""
    from programs.fronts import Front  # which has to do with test modules

    with ExitStack() as started:

        def start(command: str, target: tuple[str, int], *options: str) -> Front:
            made = Front(command, proxy, echo_server, target, tmp_path, *options)
            return started.enter_context(closing(made))

        yield start


@pytest.fixture
def refusing(opened: ExitStack) -> socket.socket:
    """Bound, so that nobody else takes its port, and not listening: connections are refused."""
    bound = opened.enter_context(socket.socket())
    bound.bind(("127.0.0.1", 0))
    return bound


@pytest.fixture
def silent(opened: ExitStack) -> socket.socket:
    """Connections to it are neither made nor refused."""
    return silent_listener(opened.enter_context)
