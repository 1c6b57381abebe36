"""SIGHUP: what the files say now takes the place of what they said before, all of it or nothing."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import Callable
from typing import NamedTuple

from .._platform.threads import start as start_thread
from ..proxies._listening import say_listening
from ..proxies._log import fields, logger
from . import service_manager
from .listeners import Find, Kept, Served, close_all
from .options import CannotStartError, MistakesError, UsageError
from .plan import Plan, Read, nothing, reasons_of

#: Makes the servers of a plan, with their sockets.
Open = Callable[[Plan, Find], list[Served]]

#: Options of a process that a reload can change; the others take a restart.
_CHANGEABLE = frozenset({"log_level", "log_format"})

#: Why a configuration can't be put in force. Any other exception is a defect.
_REFUSALS = (OSError, ValueError, CannotStartError, UsageError, MistakesError)


def reload_begins() -> None:
    """Report that a reload begins, to the log and to the service manager."""
    service_manager.reloading()
    logger.info("reloading", extra=fields("reloading"))


def reload_ends(failure: Exception | None) -> None:
    """Report that a reload has ended: that the new configuration is in force, or why it isn't.

    The service manager, which waits for the end, is told that the proxy serves either way.
    """
    if failure is None:
        logger.info("reloaded", extra=fields("reloaded"))
    elif isinstance(failure, _REFUSALS):
        for reason in reasons_of(failure):
            refused = fields("not reloaded", error=reason)
            logger.error("not reloaded, all stays as it was: %s", reason, extra=refused)
    else:
        logger.error("a reload has failed, all stays as it was", exc_info=failure)
    service_manager.ready()


class Reload(NamedTuple):
    """What will be in force: all of it is there, and nothing has changed yet.

    Attributes:
        plan: the plan.
        served: the proxies of the plan, with their sockets.
        kept: the former sockets that stay.
    """

    plan: Plan
    served: list[Served]
    kept: Kept


class InForce:
    """What a process serves now, and the way to what it serves next.

    Args:
        read: returns what is to be in force, at each reload.
        open_all: makes servers and sockets.
        set_log: has the log follow the options of the process.
        plan: the first plan.
        served: the proxies of it.
        changed: is given the proxies of each plan that follows, once it is in force.
    """

    def __init__(
        self,
        read: Read,
        open_all: Open,
        set_log: Callable[[argparse.Namespace], object],
        plan: Plan,
        served: list[Served],
        changed: Callable[[list[Served]], object] = nothing,
    ) -> None:
        self._read = read
        self._open_all = open_all
        self._set_log = set_log
        self._changed = changed
        self.plan = plan
        self.served = served

    def prepare(self) -> Reload:
        """Read everything again, and open what is new. May wait for files and name servers.

        Raises:
            OSError, ValueError, CannotStartError, UsageError, MistakesError: why that can't be
                in force.
        """
        plan = self._read()
        _check_process(self.plan.options, plan.options)
        kept = Kept(self.served)
        return Reload(plan, self._open_all(plan, kept.find), kept)

    def apply(self, reload: Reload) -> list[Served]:
        """Put it in force, and return what was served before, whose sockets are to be closed."""
        former = self.served
        reload.kept.settle()
        self._set_log(reload.plan.options)
        self.plan, self.served = reload.plan, reload.served
        for each in reload.kept.opened_among(reload.served):
            say_listening(each.listeners[0])
        self._changed(self.served)
        return former


def _check_process(before: argparse.Namespace, now: argparse.Namespace) -> None:
    fixed = [name for name in vars(before) if name not in _CHANGEABLE]
    changed = [name for name in fixed if getattr(before, name) != getattr(now, name)]
    if changed:
        reasons = [
            f"{name.replace('_', '-')}: only a restart can change it from "
            f"{getattr(before, name)} to {getattr(now, name)}"
            for name in changed
        ]
        raise MistakesError(reasons)


def reload_now(in_force: InForce) -> bool:
    """Reload in a process that serves nobody itself; return whether new workers are needed.

    Once they serve, ``reload_ends`` has to be called.
    """
    reload_begins()
    try:
        reload = in_force.prepare()
    except Exception as failure:
        reload_ends(failure)
        return False
    close_all(in_force.apply(reload))
    return True


class Reloading:
    """Reloads in the process that serves, without its connections waiting for files or names.

    Args:
        in_force: what is served.
        replace: has these proxies accept clients in place of the ones before, in the loop. Returns
            False where the process is stopping.
    """

    def __init__(self, in_force: InForce, replace: Callable[[list[Served]], bool]) -> None:
        self._in_force = in_force
        self._replace = replace
        self._loop = asyncio.get_running_loop()
        self._is_under_way = False
        self._is_asked_again = False

    def begin(self) -> None:
        """Reload now, or once more where a reload is under way."""
        if self._is_under_way:
            self._is_asked_again = True
            return
        self._is_under_way = True
        self._is_asked_again = False
        reload_begins()
        try:
            start_thread(self._prepare, "reload")
        except RuntimeError as error:  # no thread can be started now
            self._finish(OSError(str(error)))

    def _prepare(self) -> None:
        outcome: Reload | Exception
        try:
            outcome = self._in_force.prepare()
        except Exception as error:
            outcome = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: the program has ended
            self._loop.call_soon_threadsafe(self._finish, outcome)

    def _finish(self, outcome: Reload | Exception) -> None:
        self._is_under_way = False
        if isinstance(outcome, Reload):
            if not self._replace(outcome.served):
                close_all(outcome.served)
                return
            self._in_force.apply(outcome)
        reload_ends(outcome if isinstance(outcome, Exception) else None)
        if self._is_asked_again:
            self.begin()
