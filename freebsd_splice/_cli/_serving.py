"""Running a proxy as a program: its log, its sockets, its user, its workers, its signals."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Sequence

from .._backend import backend
from .._runtime import current
from ..proxies import Address, OpenTarget, ProxyServer
from ..proxies._addresses import parse_listen, show
from ..proxies._listening import listen_on
from ..proxies._log import JsonFormatter, fields, logger
from ._inherited import inherited_listeners
from ._options import CannotStartError, limits_of

#: The function that opens targets, made of the options; OSError and ValueError end the program.
Make = Callable[[argparse.Namespace], OpenTarget]


def serve(options: argparse.Namespace, make: Make) -> int:
    """Serve until SIGINT or SIGTERM; gives the exit status.  Raises CannotStartError."""
    _start_log(options)
    _raise_descriptor_limit()
    try:
        listen = parse_listen(options.listen)
        give_up = None if options.user is None else _giving_up(options.user)
        server = _make_server(options, make(options))
        backend()
        current()  # made here and now, for the errors of its environment variables
        listeners = inherited_listeners() or _listen(options, listen)
        if give_up is not None:
            give_up()
    except (OSError, ValueError) as error:
        raise CannotStartError(getattr(error, "strerror", None) or error) from error
    if options.workers == 1:
        asyncio.run(_run(server, listeners[0], None))
    elif sys.platform != "win32":
        from ._workers import supervise

        supervise(
            options.workers,
            lambda number, parent: asyncio.run(
                _run(server, listeners[number % len(listeners)], parent)
            ),
            lambda: _announce(listeners[0]),
        )
    return 0


def _make_server(options: argparse.Namespace, open_target: OpenTarget) -> ProxyServer:
    return ProxyServer(
        open_target,
        connect_timeout=options.connect_timeout,
        idle_timeout=options.idle_timeout or None,
        grace=options.grace,
        keepalive=options.keepalive,
        buffer_size=options.buffer_size,
        limits=limits_of(options),
    )


def _listen(options: argparse.Namespace, address: Address) -> list[list[socket.socket]]:
    """The listening sockets of each worker, or one set for all where the system can't share."""
    share = _share_option() if options.workers > 1 else None
    made = [listen_on(address, options.backlog, share=share, buffers=options.buffer_size)]
    for _ in range(options.workers - 1 if share is not None else 0):
        made.append(
            [
                listener
                for first in made[0]
                for listener in listen_on(
                    Address(*first.getsockname()[:2]),
                    options.backlog,
                    share=share,
                    buffers=options.buffer_size,
                )
            ]
        )
    return made


def _giving_up(user: str) -> Callable[[], None]:
    if sys.platform != "win32":
        from ._privileges import User

        return User.parse(user).become
    raise ValueError("--user: not on Windows")


def _share_option() -> int | None:
    if sys.platform != "win32":
        from ._workers import share_option

        return share_option()
    raise ValueError("--workers: not on Windows")


async def _run(server: ProxyServer, listeners: Sequence[socket.socket], parent: int | None) -> None:
    """Serve until a signal, or until ``parent`` can be read: that is the parent's end."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, server.stop)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(server.stop))
    if parent is not None and sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))

        def orphaned() -> None:
            loop.remove_reader(parent)
            server.stop()

        loop.add_reader(parent, orphaned)
    else:
        _announce(listeners)  # only now: a signal that comes in answer finds its handler
    server.use(listeners)
    await server.run()


def _announce(listeners: Sequence[socket.socket]) -> None:
    for listener in listeners:
        where = show(listener.getsockname())
        logger.info("listening on %s", where, extra=fields("listening", address=where))


def _start_log(options: argparse.Namespace) -> None:
    handler = logging.StreamHandler()
    if options.log_format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        worker = " [%(process)d]" if options.workers > 1 else ""
        handler.setFormatter(logging.Formatter(f"%(asctime)s{worker} %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("freebsd_splice").setLevel(options.log_level.upper())


def _raise_descriptor_limit() -> None:
    """As many descriptors as we may have: the usual limits are made for programs with a few."""
    if sys.platform == "win32":
        return
    import resource

    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        most = max(limit, 10240)  # what macOS means by it (setrlimit(2), OPEN_MAX)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
