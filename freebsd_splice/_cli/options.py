"""The parser, and the options and argument types that several commands share."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, TypeVar

from ..proxies import Address, Limits, NameServers, UnixAddress
from ..proxies._addresses import parse_listen
from ..proxies._name_servers import needed_for, parse_server
from ..proxies._services import Target
from .proxy_protocol import add_proxy_protocol
from .starting import add_socket_mode, add_starting

Value = TypeVar("Value")

#: The largest backlog or buffer size that the system takes, a C int.
_LARGEST = 2**31 - 1


class CannotStartError(Exception):
    """The command can't do its work; the text says why, in one line. The exit status is 1."""


class UsageError(Exception):
    """The command line is wrong; the text says how, in one line. The exit status is 2."""


class MistakesError(Exception):
    """A configuration can't be used. The exit status is 2.

    Attributes:
        mistakes: a line for each mistake, with the file and the key.
    """

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


class FileName:
    """The type of an argument that names a file.

    A configuration file names files relative to its own folder.

    Attributes:
        tables: the keys that a configuration file may have in place of the name, with the JSON
            schema of each: what the file would hold.
    """

    def __init__(self, tables: Mapping[str, object] | None = None) -> None:
        self.tables = tables or {}

    def __call__(self, text: str) -> str:
        if not text or "\0" in text:
            raise argparse.ArgumentTypeError(f"{text!r} is not the name of a file")
        return text


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line, which names the help too."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{usage_complaint(self.prog, message)}\n")


def usage_complaint(program: str, message: object) -> str:
    return f'{program}: error: {message}; see "{program} --help"'


def add_command(
    commands: Any, name: str, *, help: str, description: str, example: str
) -> argparse.ArgumentParser:
    """Return the parser of a new command, whose texts are shown as they are written."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def add_serving(parser: argparse.ArgumentParser) -> None:
    """Add the options of all proxies."""
    limits = Limits()
    parser.add_argument(
        "--connect-timeout",
        type=positive,
        default=10.0,
        metavar="SECONDS",
        help="for looking the target up and trying all its addresses (default: 10)",
    )
    parser.add_argument(
        "--idle-timeout",
        type=seconds,
        default=3600.0,
        metavar="SECONDS",
        help="end a connection when no byte has moved either way for that time; 0: never "
        "(default: 3600)",
    )
    parser.add_argument(
        "--max-connections",
        type=count,
        default=limits.connections,
        metavar="N",
        help="live connections; while there are that many, further clients wait "
        f"(default: {limits.connections}; for each worker)",
    )
    parser.add_argument(
        "--max-per-client",
        type=count,
        default=limits.per_client,
        metavar="N",
        help="live connections of one IPv4 address or IPv6 /64, or of one user at a Unix socket; "
        "further ones are closed "
        f"(default: {limits.per_client}; for each worker)",
    )
    parser.add_argument(
        "--grace",
        type=seconds,
        default=10.0,
        metavar="SECONDS",
        help="how long live connections may go on after a signal (default: 10)",
    )
    parser.add_argument(
        "--no-keepalive",
        dest="keepalive",
        action="store_false",
        help="leave SO_KEEPALIVE off: the system doesn't look for peers that have vanished",
    )
    parser.add_argument(
        "--buffer-size",
        type=count,
        metavar="BYTES",
        help="size of each socket's two buffers (default: the system's choice)",
    )
    parser.add_argument(
        "--backlog",
        type=count,
        default=1024,
        metavar="N",
        help="clients that may wait to be accepted, if the system allows that many (default: 1024)",
    )
    add_proxy_protocol(parser)
    add_socket_mode(parser)
    add_process(parser)


def add_process(parser: argparse.ArgumentParser) -> None:
    """Add the options that a process has once, however many proxies it runs.

    In a configuration file they are keys at the top.
    """
    parser.add_argument(
        "--workers",
        type=count,
        default=1,
        metavar="N",
        help="processes that share the port and the clients (default: 1)",
    )
    parser.add_argument(
        "--user",
        type=parsed_by(known_user),
        metavar="USER[:GROUP]",
        help="go on as this user once the sockets listen",
    )
    add_starting(parser, FileName())
    parser.add_argument(
        "--pledge",
        action="store_true",
        help="give up what serving does not take (OpenBSD: pledge(2))",
    )
    parser.add_argument(
        "--metrics",
        type=parsed_by(_parse_metrics),
        metavar="LISTEN",
        help="serve metrics for Prometheus there, as --metrics 9101 for 127.0.0.1:9101 (default: "
        'none; it needs pip install "freebsd-splice[metrics]")',
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="info (the default) has one line for each connection",
    )
    parser.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="json: an object in each line (default: text)",
    )


def add_listen(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add the argument LISTEN, optional where there is a default."""
    parser.add_argument(
        "listen",
        metavar="LISTEN",
        nargs=None if default is None else "?",
        type=parsed_by(parse_listen),
        default=default,
        help="where to accept clients" + ("" if default is None else f" (default: {default})"),
    )


def add_handshake_timeout(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Add the option that bounds what clients, or proxies for them, say first."""
    limits = Limits()
    parser.add_argument(
        "--handshake-timeout",
        type=positive,
        default=limits.handshake_timeout,
        metavar="SECONDS",
        help=f"{purpose} (default: {limits.handshake_timeout:g})",
    )


def add_handshake(parser: argparse.ArgumentParser) -> None:
    """What a proxy can be told that clients first say something to."""
    limits = Limits()
    add_handshake_timeout(parser, "for a client to say what it wants")
    parser.add_argument(
        "--handshake-size",
        type=count,
        default=limits.handshake_bytes,
        metavar="BYTES",
        help=f"the most that a client may say for that (default: {limits.handshake_bytes})",
    )


def add_retry_after(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--retry-after",
        type=positive,
        default=10.0,
        metavar="SECONDS",
        help="how long a target that can't be connected to is skipped where there are others "
        "(default: 10)",
    )


def add_resolver(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resolver",
        type=_checked_server,
        action="append",
        default=[],
        metavar="ADDRESS",
        help="look targets up at this name server, as 192.0.2.53 or 127.0.0.1:8600, and keep the "
        "answers for their TTL; may be given several times (default: the system's way)",
    )


def resolver_of(options: argparse.Namespace, targets: Iterable[Target]) -> NameServers | None:
    """Return what looks the targets up; None: the system does."""
    return needed_for(targets, options.resolver, timeout=options.connect_timeout)


def _checked_server(text: str) -> str:
    parsed_by(parse_server)(text)
    return text


def _parse_metrics(text: str) -> Address:
    address = parse_listen(text)
    if isinstance(address, UnixAddress):
        raise ValueError("Prometheus reads no Unix socket: write host:port, or a port of 127.0.0.1")
    return address


def limits_of(options: argparse.Namespace) -> Limits:
    usual = Limits()
    return Limits(
        connections=options.max_connections,
        per_client=options.max_per_client,
        handshake_timeout=getattr(options, "handshake_timeout", usual.handshake_timeout),
        handshake_bytes=getattr(options, "handshake_size", usual.handshake_bytes),
    )


def parsed_by(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    """Return ``parse`` as an argparse type; the text of its ValueError is what users see."""

    def convert(text: str) -> Value:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def known_user(text: str) -> str:
    """Return it if there is such a user, and such a group; raise ValueError."""
    if sys.platform != "win32":
        from .privileges import User

        User.parse(text)
        return text
    raise ValueError("not on Windows")


def seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return number


def positive(text: str) -> float:
    number = seconds(text)
    if not number:
        raise argparse.ArgumentTypeError("it must be more than 0")
    return number


def count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < 1:
        raise argparse.ArgumentTypeError("it must be at least 1")
    if number > _LARGEST:
        raise argparse.ArgumentTypeError(f"it must be at most {_LARGEST}")
    return number
