"""The command line: ``python -m freebsd_splice``, also installed as ``freebsd-splice``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import math
import random
import signal
import sys
from collections.abc import Sequence

from . import __version__
from ._backend import backend
from ._info import report
from ._runtime import current
from ._selftest import selftest
from .proxies._addresses import Address, parse_listen, parse_target
from .proxies._server import ProxyServer
from .proxies.forward import forwarder

_FORWARD = """\
Accept TCP connections on LISTEN and join each one to TARGET.

LISTEN is host:port, [v6]:port, or :port for every address of this machine; all addresses of a
name are listened on, and port 0 takes a free one.  TARGET is host:port or [v6]:port; the addresses
of a name are tried in turn, anew for each connection.
"""

_FORWARD_EXAMPLE = """\
example:
  %(prog)s --idle-timeout 300 127.0.0.1:8080 backend.example:80

SIGINT or SIGTERM ends it: live connections have the grace time to end; a second signal cuts them.
"""

_SELFTEST = """\
Find out whether the package keeps its promises on this machine, with the backend in use: play the
table of facts about SO_SPLICE, and a few hundred short transfers in each of which something goes
wrong.  It takes less than half a minute (more on an emulated machine), and uses loopback alone.

The exit status is 0 if all was as it should be, else 1.
"""

_SELFTEST_EXAMPLE = """\
example:
  FREEBSD_SPLICE_BACKEND=kernel %(prog)s
"""

_INFO_EXAMPLE = """\
example:
  %(prog)s
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit status: 0, or 1 for what could not be done."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "info":
            print(report())
        elif options.command == "selftest":
            return _selftest(options)
        else:
            _forward(options)
    except _CannotStartError as error:
        print(f"freebsd-splice: {error}", file=sys.stderr)
        return 1
    return 0


class _CannotStartError(Exception):
    """What is wrong, in one line."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="freebsd-splice",
        description="Join TCP connections: in the kernel where it has SO_SPLICE, else here.",
        epilog="example:\n  %(prog)s forward 127.0.0.1:8080 backend.example:80",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    forward = commands.add_parser(
        "forward",
        help="forward TCP connections to a target",
        description=_FORWARD,
        epilog=_FORWARD_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    forward.add_argument("listen", metavar="LISTEN", help="where to accept clients")
    forward.add_argument("target", metavar="TARGET", help="where to connect them to")
    forward.add_argument(
        "--connect-timeout",
        type=_positive,
        default=10.0,
        metavar="SECONDS",
        help="for the name and all its addresses together (default: 10)",
    )
    forward.add_argument(
        "--idle-timeout",
        type=_positive,
        metavar="SECONDS",
        help="end a connection when no byte has moved either way for so long (default: never)",
    )
    forward.add_argument(
        "--grace",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="how long live connections may go on after a signal (default: 10)",
    )
    forward.add_argument(
        "--no-keepalive",
        dest="keepalive",
        action="store_false",
        help="don't have the system look for peers that have vanished",
    )
    forward.add_argument(
        "--backlog",
        type=_count,
        default=1024,
        metavar="N",
        help="clients that may wait to be accepted, if the system allows so many (default: 1024)",
    )
    forward.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="info (the default) has one line for each connection",
    )

    test = commands.add_parser(
        "selftest",
        help="find out whether the package keeps its promises here",
        description=_SELFTEST,
        epilog=_SELFTEST_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    test.add_argument(
        "--transfers", type=_count, default=300, metavar="N", help="how many (default: 300)"
    )
    test.add_argument(
        "--seed", type=int, metavar="N", help="of the first transfer (default: another each time)"
    )

    commands.add_parser(
        "info",
        help="say what this system offers and what the package makes of it",
        description="Say what this system offers and what the package makes of it.",
        epilog=_INFO_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds")
    return seconds


def _positive(text: str) -> float:
    seconds = _seconds(text)
    if not seconds:
        raise argparse.ArgumentTypeError("it must be more than 0")
    return seconds


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("it must be at least 1")
    return count


def _selftest(options: argparse.Namespace) -> int:
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    try:
        return 0 if selftest(options.transfers, seed, print) else 1
    except (OSError, ValueError) as error:
        raise _CannotStartError(getattr(error, "strerror", None) or error) from error


def _forward(options: argparse.Namespace) -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("freebsd_splice").setLevel(options.log_level.upper())
    _raise_descriptor_limit()
    try:
        listen, target = parse_listen(options.listen), parse_target(options.target)
        backend()
        current()  # made here and now, for the errors of its environment variables
    except (OSError, ValueError) as error:
        raise _CannotStartError(getattr(error, "strerror", None) or error) from error
    server = forwarder(
        target,
        connect_timeout=options.connect_timeout,
        idle_timeout=options.idle_timeout,
        grace=options.grace,
        keepalive=options.keepalive,
    )
    asyncio.run(_serve(server, listen, options.backlog))


async def _serve(server: ProxyServer, listen: Address, backlog: int) -> None:
    """Serve until SIGINT or SIGTERM."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, server.stop)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(server.stop))
    try:
        server.listen(listen, backlog)
    except OSError as error:
        raise _CannotStartError(error) from error
    await server.run()


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
