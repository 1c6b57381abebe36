"""Running a proxy as a program: log, sockets, user, workers and signals."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from .._backend import backend
from .._runtime import current, shutdown
from ..proxies import Address, ListenError, OpenTarget, ProxyServer
from ..proxies._addresses import parse_listen, show
from ..proxies._listening import listen_on, say_listening
from ..proxies._log import JsonFormatter, TextFormatter, logger
from .inherited import inherited_listeners
from .inspection import Inspection
from .listeners import Find, Served, close, close_all, deal_out
from .options import CannotStartError, UsageError, limits_of
from .plan import Plan, Planned, Read, complaint, make_all
from .pledging import limiting
from .reloading import InForce, Reloading, reload_now
from .replacing import Servers
from .signals import RELOADING, SHOWING, STOPPING, WITHOUT_EFFECT, say_without_effect
from .stderr import StderrHandler, stderr_lines


def serve_alone(options: argparse.Namespace) -> int:
    """Serve the one proxy of a command line until SIGINT or SIGTERM; return the exit status."""
    planned = Planned(options, options.make)
    return serve(lambda: Plan(options, [planned]))


def serve(read: Read) -> int:
    """Serve until SIGINT or SIGTERM, and return the exit status.

    Args:
        read: returns what is to be served, at the start and at each SIGHUP.

    Raises:
        CannotStartError: a proxy can't start, or a listening socket listens no more.
        UsageError: the command line is wrong.
        MistakesError: the configuration file is wrong.
    """
    plan = read()
    _start_log(plan.options)
    _raise_descriptor_limit()
    try:
        give_up = None if plan.options.user is None else _giving_up(plan.options.user)
        limit = limiting(plan.options)
        backend()
        current()  # made now, so that errors of its environment variables end the program
        inherited = [each for several in inherited_listeners(None) for each in several]
        served = _open_all(plan, deal_out(inherited, plan))
        inspection = Inspection(plan.options)
        if give_up is not None:
            give_up()
        inspection.start()
        if plan.options.workers == 1:
            limit()
    except (OSError, ValueError) as error:
        raise CannotStartError(complaint(error)) from error
    in_force = InForce(read, _open_all, _set_log, plan, served)
    if plan.options.workers == 1:
        try:
            asyncio.run(_run(served, inspection, in_force, None))
        except ListenError as error:  # a listening socket that listens no more
            raise CannotStartError(complaint(error)) from error
    elif sys.platform != "win32":
        from .workers import supervise

        supervise(
            plan.options.workers,
            partial(_work, in_force, inspection, limit),
            ready=lambda: _say_listening(in_force.served),
            stopping=lambda: close_all(in_force.served),
            before_fork=lambda: [each.made.before_fork() for each in in_force.served],
            reload=partial(reload_now, in_force),
            fork=inspection.fork,
        )
    inspection.close()
    return 0


def _open_all(plan: Plan, find: Find) -> list[Served]:
    """Make the proxies of a plan, with the sockets that ``find`` has for them or new ones."""
    served: list[Served] = []
    try:
        for planned, made in zip(plan.proxies, make_all(plan), strict=True):
            server = _make_server(planned.options, made.open_target)
            listeners = find(planned) or _listen(planned.options, planned.options.listen)
            served.append(Served(planned, made, server, listeners))
    except BaseException:
        close_all(served)
        raise
    for each in served:
        each.made.listening(each.listeners[0])
    return served


def _work(
    in_force: InForce,
    inspection: Inspection,
    limit: Callable[[], object],
    number: int,
    parent: int,
) -> None:
    served = [each.for_worker(number) for each in in_force.served]
    limit()
    try:
        asyncio.run(_run(served, inspection, None, parent))
    finally:
        inspection.finish()
    shutdown()  # a worker ends without the interpreter's own end


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
        close([listen_on(address, None)])
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
    raise UsageError("--user: not on Windows")


def _share_option() -> int | None:
    if sys.platform != "win32":
        from .workers import share_option

        return share_option()
    raise UsageError("--workers: not on Windows")


async def _run(
    served: list[Served], inspection: Inspection, in_force: InForce | None, parent: int | None
) -> None:
    """Serve until a signal, or until the pipe ``parent`` says to stop or is closed."""
    servers = Servers(inspection.observe)
    inspection.answer()
    show = inspection.log_connections
    if in_force is not None:
        _obey_signals(servers.stop, Reloading(in_force, servers.replace).begin, show)
        _say_listening(served)  # after the handlers: somebody may answer this with a signal
    elif sys.platform != "win32":
        from .workers import obey

        assert parent is not None
        obey(parent, servers.stop, servers.retire, show)
    servers.replace(served)
    await servers.run()


def _say_listening(served: list[Served]) -> None:
    for each in served:
        say_listening(each.listeners[0])


def _obey_signals(
    stop: Callable[[], object], reload: Callable[[], object], show: Callable[[], object]
) -> None:
    loop = asyncio.get_running_loop()
    calls: dict[int, Callable[[], object]] = dict.fromkeys(STOPPING, stop)
    calls |= dict.fromkeys(RELOADING, reload)
    calls |= dict.fromkeys(SHOWING, show)
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
    logging.basicConfig(handlers=[handler])
    _set_log(options)
    # Log what Python itself would print in the middle of the loop's work.
    logging.captureWarnings(True)
    sys.unraisablehook = _log_unraisable


def _set_log(options: argparse.Namespace) -> None:
    """Have the log follow the options, also at a reload."""
    formatter: logging.Formatter = JsonFormatter()
    if options.log_format == "text":
        worker = " [%(process)d]" if options.workers > 1 else ""
        formatter = TextFormatter(f"%(asctime)s{worker} %(levelname)s %(message)s")
    for handler in logging.getLogger().handlers:
        handler.setFormatter(formatter)
    logging.getLogger("freebsd_splice").setLevel(options.log_level.upper())


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
