"""Running a proxy as a program: its log, its sockets, its user, its workers, its signals."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from .._backend import backend
from .._runtime import current, shutdown
from ..proxies import Address, ListenError, OpenTarget, ProxyServer
from ..proxies._addresses import parse_listen, show
from ..proxies._listening import listen_on
from ..proxies._log import JsonFormatter, TextFormatter, logger
from ..proxies._server import say_listening
from .inherited import inherited_listeners
from .options import CannotStartError, limits_of
from .signals import STOPPING, WITHOUT_EFFECT, say_without_effect
from .stderr import StderrHandler, stderr_lines

#: The function that opens targets, made of the options; OSError and ValueError end the program.
Make = Callable[[argparse.Namespace], OpenTarget]

Listeners = Sequence[socket.socket]


def serve(
    options: argparse.Namespace,
    make: Make,
    listening: Callable[[Listeners], object] = lambda listeners: None,
    before_fork: Callable[[], object] = lambda: None,
) -> int:
    """Serve until SIGINT or SIGTERM; gives the exit status.  Raises CannotStartError.

    ``listening`` is told what is listened on, before anybody is served.  ``before_fork`` is called
    before each start of a worker, of one that replaces another as well.
    """
    _start_log(options)
    _raise_descriptor_limit()
    try:
        listen = parse_listen(options.listen)
        give_up = None if options.user is None else _giving_up(options.user)
        server = _make_server(options, make(options))
        backend()
        current()  # made here and now, for the errors of its environment variables
        listeners = inherited_listeners(options.buffer_size) or _listen(options, listen)
        listening(listeners[0])
        if give_up is not None:
            give_up()
    except (OSError, ValueError) as error:
        raise CannotStartError(_complaint(error)) from error
    if options.workers == 1:
        try:
            asyncio.run(_run(server, listeners[0], None))
        except ListenError as error:  # a listening socket that listens no more
            raise CannotStartError(_complaint(error)) from error
    elif sys.platform != "win32":
        from .workers import supervise

        supervise(
            options.workers,
            partial(_work, server, listeners),
            ready=lambda: say_listening(listeners[0]),
            stopping=lambda: _close(listeners),
            before_fork=before_fork,
        )
    return 0


def _complaint(error: OSError | ValueError) -> str:
    """In one line, with the name of the file that it is about, if there is one."""
    reason = getattr(error, "strerror", None) or str(error)
    file = getattr(error, "filename", None)
    return reason if file is None else f"{file}: {reason}"


def _work(server: ProxyServer, listeners: Sequence[Listeners], number: int, parent: int) -> None:
    own = listeners[number % len(listeners)]
    # A port is listened on until nobody holds a socket of it: a worker has its own alone, and the
    # parent, which holds all for the workers to come, lets go of them when it is told to stop.
    _close(others for others in listeners if others is not own)
    asyncio.run(_run(server, own, parent))
    shutdown()  # a worker ends without what an interpreter does at its end


def _close(listeners: Iterable[Listeners]) -> None:
    for listener in (listener for several in listeners for listener in several):
        listener.close()


def _make_server(options: argparse.Namespace, open_target: OpenTarget) -> ProxyServer:
    return ProxyServer(
        open_target,
        connect_timeout=options.connect_timeout,
        idle_timeout=options.idle_timeout or None,
        grace=options.grace,
        keepalive=options.keepalive,
        buffer_size=options.buffer_size,
        limits=limits_of(options),
        accept_proxy=options.accept_proxy,
        send_proxy=options.send_proxy,
    )


def _listen(options: argparse.Namespace, address: Address) -> list[list[socket.socket]]:
    """The listening sockets of each worker, or one set for all where the system can't share."""
    share = _share_option() if options.workers > 1 else None
    if share is not None and address.port:
        # Another program's sockets of that port would share it as well, and get half the clients.
        # Bound alone: a client that came just now would be reset.
        _close([listen_on(address, None)])
    made = [listen_on(address, options.backlog, share=share, buffers=options.buffer_size)]
    for _ in range(options.workers - 1 if share is not None else 0):
        made.append(
            [
                listener
                for first in made[0]
                for listener in listen_on(
                    parse_listen(show(first.getsockname())),
                    options.backlog,
                    share=share,
                    buffers=options.buffer_size,
                )
            ]
        )
    return made


def _giving_up(user: str) -> Callable[[], None]:
    if sys.platform != "win32":
        from .privileges import User

        return User.parse(user).become
    raise ValueError("--user: not on Windows")


def _share_option() -> int | None:
    if sys.platform != "win32":
        from .workers import share_option

        return share_option()
    raise ValueError("--workers: not on Windows")


async def _run(server: ProxyServer, listeners: Listeners, parent: int | None) -> None:
    """Serve until a signal, or until ``parent`` can be read: that is the parent's end."""
    if parent is None:
        _obey_signals(server)
        say_listening(listeners)  # only now: a signal that comes in answer finds its handler
    elif sys.platform != "win32":
        from .workers import obey

        obey(parent, server.stop)
    server.use(listeners)
    await server.run()


def _obey_signals(server: ProxyServer) -> None:
    loop = asyncio.get_running_loop()
    calls: dict[int, Callable[[], object]] = dict.fromkeys(STOPPING, server.stop)
    calls |= {number: partial(say_without_effect, number) for number in WITHOUT_EFFECT}
    for number, call in calls.items():
        try:
            loop.add_signal_handler(number, call)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_, call=call: loop.call_soon_threadsafe(call))
    if sys.platform != "win32":
        # Whoever has started it may have had them blocked, and that is inherited.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, calls)


def _start_log(options: argparse.Namespace) -> None:
    lines = stderr_lines()
    handler = logging.NullHandler() if lines is None else StderrHandler(lines)
    if options.log_format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        worker = " [%(process)d]" if options.workers > 1 else ""
        handler.setFormatter(TextFormatter(f"%(asctime)s{worker} %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("freebsd_splice").setLevel(options.log_level.upper())
    # What Python itself prints, in the middle of the loop's work, is logged in place of that.
    logging.captureWarnings(True)
    sys.unraisablehook = _log_unraisable


def _log_unraisable(unraisable: Any) -> None:
    logger.error(
        "%s: %r",
        unraisable.err_msg or "Exception ignored in",
        unraisable.object,
        exc_info=(unraisable.exc_type, unraisable.exc_value, unraisable.exc_traceback),
    )


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
