"""``freebsd-splice serve``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from .configuration import Kinds, kinds_among, process_keys, read
from .keys import keys_of
from .options import add_command, add_process
from .plan import Plan
from .schema import schema
from .serving import check, is_check, serve

_DESCRIPTION = """\
Run all the proxies of a configuration file in one process: a table for each, and a key for each
option of its command. Options given here win over the file's.

SIGHUP reads the file again, and the files that it names. A file with a mistake changes nothing.
"""

_EXAMPLE = """\
example:
  %(prog)s --check proxies.toml && %(prog)s proxies.toml

  idle-timeout = 300                                # at the top: for all proxies below
  [[forward]]
  listen = ":8080"
  target = ["10.0.0.5:8000", "10.0.0.6:8000"]       # each connection gets the next
  [[connect]]
  listen = "127.0.0.1:3128"
  rules = ["allow example.org:443", "deny *"]       # the first that decides wins

On Python 3.10 it needs tomli: pip install "freebsd-splice[proxy]".
"""


def add_serve(commands: Any) -> None:
    """Add the command, for all proxies that were added before."""
    kinds = kinds_among(commands.choices)
    parser = add_command(
        commands,
        "serve",
        help="run the proxies of a configuration file",
        description=_DESCRIPTION,
        example=_EXAMPLE,
    )
    parser.add_argument("file", metavar="FILE", help="the TOML file")
    parser.add_argument(
        "--schema",
        action=_show(lambda: schema(kinds)),
        help="print the JSON schema of such a file, and end",
    )
    add_process(parser)
    for key in keys_of(parser).values():
        if not key.is_argument:
            key.action.default = argparse.SUPPRESS  # so that the file's value can be told apart
    parser.set_defaults(run=lambda options: _run(options, kinds))


def _show(text: Callable[[], str]) -> type[argparse.Action]:
    """Return an action that prints a text and ends the program, as that of ``--version`` does."""

    class Show(argparse.Action):
        def __init__(self, option_strings: Sequence[str], help: str, **_: object) -> None:
            nothing = argparse.SUPPRESS
            super().__init__(option_strings, nothing, nargs=0, default=nothing, help=help)

        def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
            print(text())
            parser.exit()

    return Show


def _run(options: argparse.Namespace, kinds: Kinds) -> int:
    process = {key.action.dest for key in process_keys().values()}
    given = {name: value for name, value in vars(options).items() if name in process}

    def read_file() -> Plan:
        return read(options.file, kinds, argparse.Namespace(**given))

    if not is_check(options):
        return serve(read_file)
    plan = read_file()
    check(plan)
    count = len(plan.proxies)
    print(f"{options.file}: {count} {'proxy' if count == 1 else 'proxies'}, no mistakes")
    return 0
