"""``freebsd-splice password``."""

from __future__ import annotations

import argparse
import getpass
import sys
from typing import Any

from ..proxies._passwords import check_user, make_entry
from .options import CannotStartError, add_command, parsed_by

_DESCRIPTION = """\
Print a line for the password file of "connect" and "socks5", with the password hashed by scrypt.
The password is asked for twice. Where the standard input is not a terminal, its first line is the
password.
"""

_EXAMPLE = """\
example:
  %(prog)s alice >>/etc/proxy.passwords
"""


def add_password(commands: Any) -> None:
    parser = add_command(
        commands,
        "password",
        help="make a line for a password file",
        description=_DESCRIPTION,
        example=_EXAMPLE,
    )
    parser.add_argument(
        "user", metavar="USER", type=parsed_by(check_user), help="the name, without a colon"
    )
    parser.set_defaults(run=_print_entry)


def _print_entry(options: argparse.Namespace) -> int:
    try:
        print(make_entry(options.user, _ask()))
    except ValueError as error:
        raise CannotStartError(error) from error
    except EOFError as error:
        raise CannotStartError("no password was given") from error
    return 0


def _ask() -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass()
    if getpass.getpass("Again: ") != password:
        raise ValueError("the passwords do not match")
    return password
