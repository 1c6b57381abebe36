"""``freebsd-splice connect`` and ``socks5``: proxies whose clients choose their targets."""

from __future__ import annotations

import argparse
import ipaddress
from collections.abc import Callable
from functools import partial
from typing import Any

from ..proxies import OpenTarget, Passwords, Rules, parse_rule, socks5_connect
from ..proxies._addresses import SocketAddress, show
from ..proxies._log import logger
from .options import (
    CannotStartError,
    FileName,
    add_command,
    add_handshake,
    add_listen,
    add_serving,
    parsed_by,
)
from .plan import Listeners, Made, nothing
from .serving import serve_alone

_RULES = """\
RULE is WHAT or WHAT:PORTS. WHAT is * for everything, a host name, which stands for all names below
it as well (.example.org: for those alone), an IPv4 network or address, or an IPv6 one in brackets;
PORTS is 443 or 8000-8999. Rules are tried in their order, and the first that decides wins.

Loopback, private, link-local and other addresses that are not global, and those of this machine,
are refused unless a rule that names their network allows them. The address that is connected to
counts, as the owner of a name chooses what it stands for.
"""

_CONNECT = f"""\
An HTTP proxy for CONNECT, as https clients use it.

LISTEN is host:port, [v6]:port, :port for every address of this machine, a port of 127.0.0.1, or
unix:/path.

{_RULES}"""

_CONNECT_EXAMPLE = """\
examples:
  %(prog)s
  %(prog)s --passwords /etc/proxy.passwords :3128
  %(prog)s --allow example.org:443 --deny '*' 127.0.0.1:3128
  curl --proxy http://127.0.0.1:3128 https://www.example.org/

It needs h11: pip install "freebsd-splice[proxy]".
"""

_SOCKS5 = f"""\
A SOCKS 5 proxy for CONNECT, over IPv4, IPv6 and names.

LISTEN is host:port, [v6]:port, :port for every address of this machine, a port of 127.0.0.1, or
unix:/path.

{_RULES}"""

_SOCKS5_EXAMPLE = """\
examples:
  %(prog)s
  %(prog)s --passwords /etc/proxy.passwords :1080
  %(prog)s --allow 10.1.0.0/16:22 127.0.0.1:1080
  curl --proxy socks5h://127.0.0.1:1080 https://www.example.org/
"""


def add_connect(commands: Any) -> None:
    parser = add_command(
        commands,
        "connect",
        help="an HTTP proxy for CONNECT",
        description=_CONNECT,
        example=_CONNECT_EXAMPLE,
    )
    _add_choice(parser, "127.0.0.1:3128", _http_connect)


def add_socks5(commands: Any) -> None:
    parser = add_command(
        commands,
        "socks5",
        help="a SOCKS 5 proxy",
        description=_SOCKS5,
        example=_SOCKS5_EXAMPLE,
    )
    _add_choice(parser, "127.0.0.1:1080", socks5_connect)


def _http_connect(**options: Any) -> OpenTarget:
    try:
        from ..proxies.connect import http_connect
    except ImportError as error:
        raise CannotStartError(
            f'connect needs h11: pip install "freebsd-splice[proxy]" ({error})'
        ) from error
    return http_connect(**options)


def _add_choice(
    parser: argparse.ArgumentParser, listen: str, proxy: Callable[..., OpenTarget]
) -> None:
    add_listen(parser, listen)
    for option, allow in (("--allow", True), ("--deny", False)):
        parser.add_argument(
            option,
            dest="rules",
            action="append",
            type=parsed_by(partial(parse_rule, allow=allow)),
            default=[],
            metavar="RULE",
            help=f"{option[2:]} what the rule is for, unless an earlier rule decides",
        )
    parser.add_argument(
        "--passwords",
        type=FileName(),
        metavar="FILE",
        help='who may use it: lines made by "freebsd-splice password" (default: everybody)',
    )
    add_handshake(parser)
    add_serving(parser)
    parser.set_defaults(run=serve_alone, make=partial(make, proxy=proxy))


def make(options: argparse.Namespace, proxy: Callable[..., OpenTarget]) -> Made:
    passwords = None if options.passwords is None else Passwords(options.passwords)
    return Made(
        proxy(rules=Rules(options.rules), passwords=passwords),
        listening=lambda listeners: _warn_of_everybody(options, listeners),
        # Read the file for the next worker, which might not be allowed to.
        before_fork=nothing if passwords is None else passwords.refresh,
    )


def _warn_of_everybody(options: argparse.Namespace, listeners: Listeners) -> None:
    """Warn of a proxy without passwords that others can reach.

    The sockets decide: LISTEN can be a name, and isn't listened on where LISTEN_FDS is set.
    """
    addresses = [listener.getsockname() for listener in listeners]
    reachable = " and ".join(show(address) for address in addresses if not _is_loopback(address))
    if reachable and options.passwords is None:
        logger.warning("everybody who can reach %s can use it: no --passwords", reachable)


def _is_loopback(address: SocketAddress | str) -> bool:
    if isinstance(address, str):  # a Unix socket: its permissions say who can reach it
        return True
    return ipaddress.ip_address(address[0]).is_loopback
