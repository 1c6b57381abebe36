"""What a process is to serve: its proxies, each with its options, and what these make."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .._errors import ThreadRefusedError, advice_for
from ..proxies import OpenTarget
from ..proxies._mistakes import mistakes_of
from ..proxies._services import Target
from .options import CannotStartError, MistakesError, UsageError

Listeners = Sequence[socket.socket]


def nothing(*_: object) -> None:
    """Do what a proxy does that has nothing to do here."""


class Made(NamedTuple):
    """What the options of one proxy make.

    Attributes:
        open_target: the function that opens targets.
        listening: is given the listening sockets before anybody is served.
        before_fork: is called before each start of a worker, also of one that replaces another.
        targets: those that are known without a client.
    """

    open_target: OpenTarget
    listening: Callable[[Listeners], object] = nothing
    before_fork: Callable[[], object] = nothing
    targets: Sequence[Target] = ()


#: Reads the files that a proxy's options name, and makes the proxy of them. OSError, ValueError,
#: UsageError and CannotStartError say why it can't be made.
Make = Callable[[argparse.Namespace], Made]


class Planned(NamedTuple):
    """One proxy that is to be served.

    Attributes:
        options: those of its command line, or of its table in a file.
        make: makes it of these.
        place: where it is written, for messages; "": on the command line.
    """

    options: argparse.Namespace
    make: Make
    place: str = ""


class Plan(NamedTuple):
    """All that a process is to serve.

    Attributes:
        options: those that it has once (``add_process``).
        proxies: its proxies, in their order.
    """

    options: argparse.Namespace
    proxies: list[Planned]


#: Returns what is to be served now: at the start, and at each reload. MistakesError says why not.
Read = Callable[[], Plan]


def make_all(plan: Plan) -> list[Made]:
    """Make all proxies of a plan.

    Raises:
        MistakesError: all reasons for which some of them can't be made.
        OSError, ValueError, UsageError, CannotStartError: why the proxy of a command line can't be.
    """
    made: list[Made] = []
    mistakes: list[str] = []
    for planned in plan.proxies:
        try:
            made.append(planned.make(planned.options))
        except (OSError, ValueError, UsageError, CannotStartError) as error:
            if not planned.place:
                raise
            mistakes += [f"{planned.place}: {reason}" for reason in reasons_of(error)]
    if mistakes:
        raise MistakesError(mistakes)
    return made


def reasons_of(error: Exception) -> Sequence[str]:
    """Return why something can't be served, a line each, with the names of files."""
    if isinstance(error, MistakesError):
        return error.mistakes
    if isinstance(error, ValueError):
        return mistakes_of(error)
    return [complaint(error) if isinstance(error, OSError) else str(error)]


def complaint(error: OSError | ValueError | ThreadRefusedError) -> str:
    """Return the error in one line, with the name of the file that it is about, if any."""
    reason = getattr(error, "strerror", None) or str(error)
    file = getattr(error, "filename", None)
    advice = advice_for(error) if isinstance(error, OSError) else ""
    if reason.endswith(advice):  # the error says it itself
        advice = ""
    return reason + advice if file is None else f"{file}: {reason}{advice}"
