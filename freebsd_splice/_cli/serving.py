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
from .._errors import ThreadRefusedError
from .._runtime import current, shutdown
from ..proxies import Address, ListenError, OpenTarget, ProxyServer
from ..proxies._addresses import UnixAddress, parse_listen, show
from ..proxies._event_loop import run
from ..proxies._listening import listen_on, say_listening
from ..proxies._log import JsonFormatter, TextFormatter, logger
from . import service_manager
from .heartbeats import Heartbeats, run_with_heartbeat
from .inherited import inherited_listeners
from .inspection import Inspection, check_installed
from .listeners import Find, Served, close, close_all, deal_out, sets_of
from .options import CannotStartError, UsageError, limits_of
from .plan import Plan, Planned, Read, complaint, make_all, nothing
from .pledging import Limit
from .reloading import InForce, Reloading, reload_ends, reload_now
from .replacing import Servers
from .signals import RELOADING, SHOWING, STOPPING, WITHOUT_EFFECT, say_without_effect
from .stderr import StderrHandler, stderr_lines
from .stopping import Stopping
from .takeover import Takeover, shared_out


def serve_alone(options: argparse.Namespace) -> int:
    """Serve the one proxy of a command line until SIGINT or SIGTERM; return the exit status."""
    planned = Planned(options, options.make)
    if not is_check(options):
        return serve(lambda: Plan(options, [planned]))
    check(Plan(options, [planned]))
    return 0


def is_check(options: argparse.Namespace) -> bool:
    """Return whether nothing is to be served, and only what is wrong to be found (``--check``)."""
    return hasattr(options, "check")


def check(plan: Plan) -> None:
    """Raise the error that ``serve`` would raise for a plan, as far as that takes no start."""
    _start_log(plan.options)
    try:
        _needed_by(plan.options)
        check_installed(plan.options)
        make_all(plan)
    except (OSError, ValueError) as error:
        raise CannotStartError(complaint(error)) from error


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
        give_up, limit = _needed_by(plan.options)
        current()  # made now, so that errors of its environment variables end the program
        inherited = [each for several in inherited_listeners(None) for each in several]
        takeover = Takeover(plan.options.takeover, _number_of(plan.options.user))
        served = _open_all(plan, deal_out(inherited, plan, partial(_take_over, takeover)))
        takeover.listen(sets_of(served))
        inspection = Inspection(plan.options)
        give_up()
        inspection.start()
        if plan.options.workers == 1:
            limit.begin(served)
    except (OSError, ValueError) as error:
        raise CannotStartError(complaint(error)) from error

    def open_again(plan: Plan, find: Find) -> list[Served]:
        opened = _open_all(plan, find)
        try:
            limit.check(opened)
        except UsageError:
            close_all(opened)
            raise
        return opened

    in_force = InForce(
        read,
        open_again,
        _set_log,
        plan,
        served,
        changed=lambda now: takeover.replace(sets_of(now)),
    )
    if plan.options.workers == 1:
        try:
            _serve_here(in_force, inspection, takeover)
        finally:
            takeover.close()
    elif sys.platform != "win32":
        from .workers import supervise

        heartbeats = Heartbeats(plan.options.workers)
        supervise(
            plan.options.workers,
            partial(_work, in_force, inspection, limit, takeover, heartbeats),
            ready=lambda: _say_listening(in_force.served),
            stopping=lambda: _stop_parent(in_force, takeover),
            before_fork=lambda: [each.made.before_fork() for each in in_force.served],
            reload=partial(reload_now, in_force),
            fork=inspection.fork,
            heartbeats=heartbeats,
            serving=partial(_say_ready, in_force, inspection, takeover),
            reloaded=partial(reload_ends, None),
        )
    inspection.close()
    return 0


def _needed_by(options: argparse.Namespace) -> tuple[Callable[[], object], Limit]:
    """Return what gives privileges up, and then the rest; both are to be had on this system."""
    give_up = nothing if options.user is None else _giving_up(options.user)
    limit = Limit(options)
    backend()
    return give_up, limit


def _serve_here(in_force: InForce, inspection: Inspection, takeover: Takeover) -> None:
    """Serve in this process, until it has stopped.

    Raises:
        CannotStartError: something was short at the start, or a listening socket listens no more.
            Any other error is a defect, and is not to look like one of these.
    """
    servers = Servers(inspection.observe)

    def stop() -> None:
        service_manager.stopping()
        takeover.close()
        servers.stop()

    def begin() -> None:
        inspection.answer()
        reloading = Reloading(in_force, servers.replace)
        _obey_signals(
            stopping.signalled,
            lambda: None if servers.is_stopping else reloading.begin(),
            inspection.log_connections,
        )
        _say_listening(in_force.served)  # after the handlers: somebody may answer with a signal

    def begun() -> None:
        loop = asyncio.get_running_loop()
        stop_soon = partial(_call_soon, loop, stopping.handed_over)
        _say_ready(in_force, inspection, takeover, stop_soon)

    stopping = Stopping(stop)
    serving = _run(servers, in_force.served, begin, begun)
    beat = service_manager.alive if service_manager.watchdog_seconds() else nothing
    try:
        run(run_with_heartbeat(serving, beat))
    except (OSError, ThreadRefusedError) as error:
        if servers.have_served and not isinstance(error, ListenError):
            raise
        raise CannotStartError(complaint(error)) from error


def _say_ready(
    in_force: InForce, inspection: Inspection, takeover: Takeover, stop: Callable[[], object]
) -> None:
    """Say that clients are served; ``stop`` is called once another process has taken over."""

    def handed_over() -> None:
        inspection.close()  # scrapers are the other process's from now on
        stop()

    takeover.serve(sets_of(in_force.served), handed_over)
    service_manager.ready()


def _stop_parent(in_force: InForce, takeover: Takeover) -> None:
    service_manager.stopping()
    takeover.close()
    close_all(in_force.served)


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: everything has ended
        loop.call_soon_threadsafe(call)


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
    limit: Limit,
    takeover: Takeover,
    heartbeats: Heartbeats,
    number: int,
    parent: int,
    say_serving: Callable[[], None],
) -> None:
    takeover.leave()
    served = [each.for_worker(number) for each in in_force.served]
    servers = Servers(inspection.observe)

    def retire() -> None:
        heartbeats.retire()
        servers.retire()

    def begin() -> None:
        inspection.answer()
        if sys.platform != "win32":
            from .workers import obey

            obey(parent, servers.stop, retire, inspection.log_connections)

    def begun() -> None:
        say_serving()
        limit.begin(served)  # not before: without "proc" no other process may be sent a signal

    beat = partial(heartbeats.beat, number)
    try:
        run(run_with_heartbeat(_run(servers, served, begin, begun), beat))
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
    if isinstance(address, UnixAddress):
        mode = options.socket_mode
        return [listen_on(address, options.backlog, buffers=options.buffer_size, mode=mode)]
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


def _take_over(takeover: Takeover, planned: Planned) -> list[list[socket.socket]]:
    """Return the sockets of the process before this one, for each worker; empty: it has none."""
    options = planned.options
    sets = takeover.take(options.listen, backlog=options.backlog, buffers=options.buffer_size)
    return shared_out(sets, options.workers)


def _giving_up(user: str) -> Callable[[], None]:
    if sys.platform != "win32":
        from .privileges import User

        return User.parse(user).become
    raise UsageError("--user: not on Windows")


def _number_of(user: str | None) -> int | None:
    """Return the user's number; None where there is no ``--user``."""
    if user is not None and sys.platform != "win32":
        from .privileges import User

        return User.parse(user).number
    return None


def _share_option() -> int | None:
    if sys.platform != "win32":
        from .workers import share_option

        return share_option()
    raise UsageError("--workers: not on Windows")


async def _run(
    servers: Servers,
    served: list[Served],
    begin: Callable[[], object],
    begun: Callable[[], object],
) -> None:
    """Serve until what ``begin`` has set up in the loop stops the servers.

    ``begun`` is called when all is there for the first client, and nobody has been accepted yet.
    """
    begin()
    servers.replace(served)
    begun()
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
