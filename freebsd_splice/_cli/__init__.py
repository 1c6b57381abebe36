"""The command line: ``python -m freebsd_splice``, also installed as ``freebsd-splice``."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from typing import Any

from .. import __version__
from .._backend import backend
from .._diagnostics.info import report
from .._diagnostics.selftest import SECONDS, TRANSFERS, selftest
from .connect_socks5 import add_connect, add_socks5
from .forward import add_forward
from .options import (
    CannotStartError,
    MistakesError,
    Parser,
    UsageError,
    add_command,
    count,
    positive,
    usage_complaint,
)
from .password import add_password
from .serve import add_serve
from .sni import add_sni
from .stderr import complain

_SELFTEST = """\
Find out whether the package keeps its promises on this machine, with the backend in use: check the
table of facts about SO_SPLICE, and make a few hundred short transfers in each of which something
goes wrong. That takes half a minute at most, with fewer transfers on a slow machine, and uses
loopback alone. On a terminal a counter shows the progress.

The exit status is 0 if everything was as it should be, else 1.
"""

_SELFTEST_EXAMPLE = """\
example:
  FREEBSD_SPLICE_BACKEND=kernel %(prog)s
"""

_INFO = """\
Say what this system offers and what the package makes of it.

The exit status is 1 if an environment variable has a wrong value, or demands what isn't there.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    The status is 0, 1 for a command that could not do its work, or 2 for a wrong command line.

    Raises:
        SystemExit: argparse has found the command line wrong, or has shown a help text.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except UsageError as error:
        complain(usage_complaint(f"freebsd-splice {options.command}", error))
        return 2
    except MistakesError as error:
        for mistake in error.mistakes:
            complain(f"freebsd-splice: {mistake}")
        return 2
    except CannotStartError as error:
        complain(f"freebsd-splice: {error}")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="freebsd-splice",
        description="Join TCP connections: in the kernel where it has SO_SPLICE, else here.",
        epilog="example:\n  %(prog)s forward 127.0.0.1:8080 backend.example:80",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    add_forward(commands)
    add_connect(commands)
    add_socks5(commands)
    add_sni(commands)
    add_serve(commands)
    add_password(commands)
    _add_selftest(commands)
    _add_info(commands)
    return parser


def _add_selftest(commands: Any) -> None:
    parser = add_command(
        commands,
        "selftest",
        help="find out whether the package keeps its promises here",
        description=_SELFTEST,
        example=_SELFTEST_EXAMPLE,
    )
    parser.add_argument(
        "--transfers",
        type=count,
        metavar="N",
        help=f"how many transfers, however long they take (default: {TRANSFERS}, or as many as "
        "there is time for)",
    )
    parser.add_argument(
        "--seconds",
        type=positive,
        metavar="SECONDS",
        help=f"begin nothing more after that time (default: {SECONDS:g}; with --transfers no such "
        "limit)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="the first transfer's seed (default: another each time)",
    )
    parser.set_defaults(run=_run_selftest)


def _add_info(commands: Any) -> None:
    parser = add_command(
        commands,
        "info",
        help="say what this system offers and what the package makes of it",
        description=_INFO,
        example="example:\n  %(prog)s\n",
    )
    parser.set_defaults(run=_run_info)


def _run_selftest(options: argparse.Namespace) -> int:
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    try:
        backend()
    except (OSError, ValueError) as error:  # there is none to test
        raise CannotStartError(getattr(error, "strerror", None) or error) from error
    return 0 if _selftest_as_asked(options, seed) else 1


def _selftest_as_asked(options: argparse.Namespace, seed: int) -> bool:
    given = options.transfers is not None
    return selftest(
        options.transfers if given else TRANSFERS,
        seed,
        print,
        seconds=None if given and options.seconds is None else options.seconds or SECONDS,
        terminal=sys.stderr,
    )


def _run_info(options: argparse.Namespace) -> int:
    found = report()
    print(found.text)
    for error in found.errors:
        complain(f"freebsd-splice: {error}")
    return 1 if found.errors else 0
