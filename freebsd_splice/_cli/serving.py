"""Running a proxy as a program: log, sockets, user, workers and signals."""

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
from ..proxies._connecting import advice_for
from ..proxies._event_loop import run
from ..proxies._listening import listen_on, say_listening
from ..proxies._log import JsonFormatter, TextFormatter, logger
from .inherited import inherited_listeners
from .options import CannotStartError, UsageError, limits_of
from .signals import STOPPING, WITHOUT_EFFECT, say_without_effect
from .stderr import StderrHandler, stderr_lines

#: Makes the function that opens targets from the options; OSError and ValueError end the program.
Make = Callable[[argparse.Namespace], OpenTarget]

Listeners = Sequence[socket.socket]


def serve(
    options: argparse.Namespace,
    make: Make,
    listening: Callable[[Listeners], object] = lambda listeners: None,
    before_fork: Callable[[], object] = lambda: None,
) -> int:
    """Serve until SIGINT or SIGTERM, and return the exit status.

    Args:
        options: the command line's.
        make: makes the function that opens targets.
        listening: is given the listening sockets before anybody is served.
        before_fork: is called before each start of a worker, also of one that replaces another.

    Raises:
        CannotStartError: the proxy can't start, or a listening socket listens no more.
        UsageError: the command line is wrong.
    """
    _start_log(options)
    _raise_descriptor_limit()
    try:
        give_up = None if options.user is None else _giving_up(options.user)
        server = _make_server(options, make(options))
        backend()
        current()  # made now, so that errors of its environment variables end the program
        listeners = inherited_listeners(options.buffer_size) or _listen(options, options.listen)
        listening(listeners[0])
        if give_up is not None:
            give_up()
    except (OSError, ValueError) as error:
        raise CannotStartError(_complaint(error)) from error
    if options.workers == 1:
        try:
            run(_run(server, listeners[0], None))
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
    """Return the error in one line, with the name of the file that it is about, if any."""
    reason = getattr(error, "strerror", None) or str(error)
    file = getattr(error, "filename", None)
    advice = advice_for(error) if isinstance(error, OSError) else ""
    return reason + advice if file is None else f"{file}: {reason}{advice}"


def _work(server: ProxyServer, listeners: Sequence[Listeners], number: int, parent: int) -> None:
    own = listeners[number % len(listeners)]
    # A port is listened on until all its sockets are closed. A worker keeps its own alone; the
    # parent keeps all, for workers to come, and closes them when it is told to stop.
    _close(others for others in listeners if others is not own)
    run(_run(server, own, parent))
    shutdown()  # a worker ends without the interpreter's own end


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
    """Return the listening sockets of each worker, or one set for all of them.

    One set serves where the system doesn't deal a port's clients out among several sockets.
    """
    share = _share_option() if options.workers > 1 else None
    if share is not None and address.port:
        # Sockets of another program would share the port as well, and get half the clients: bind
        # it without sharing first. It doesn't listen, as a client that came now would be reset.
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

        try:
            return User.parse(user).become
        except ValueError as error:
            raise UsageError(error) from None
    raise UsageError("--user: not on Windows")


def _share_option() -> int | None:
    if sys.platform != "win32":
        from .workers import share_option

        return share_option()
    raise UsageError("--workers: not on Windows")


async def _run(server: ProxyServer, listeners: Listeners, parent: int | None) -> None:
    """Serve until a signal, or until the pipe ``parent`` says to stop or is closed."""
    if parent is None:
        _obey_signals(server)
        say_listening(listeners)  # after the handlers: somebody may answer this with a signal
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
        # A supervisor may have started the program with these blocked, which is inherited.
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
    # Log what Python itself would print in the middle of the loop's work.
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
    """Raise the soft limit of descriptors to the hard one; usual limits are too low for proxies."""
    if sys.platform == "win32":
        return
    import resource

    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        most = max(limit, 10240)  # the most that macOS allows then (setrlimit(2), OPEN_MAX)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
