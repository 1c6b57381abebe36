"""The signals that a proxy handles."""

from __future__ import annotations

import signal

from ..proxies._log import fields, logger
from . import service_manager

#: The first of these signals stops the proxy, a second one cuts. SIGINT works also where the
#: program was started with SIGINT ignored, as a shell starts a background command: a sender of
#: SIGINT means it, and nginx and HAProxy's master obey it as well.
STOPPING = (signal.SIGINT, signal.SIGTERM)

#: Signals by which other servers load their configuration again or reopen their log. Without a
#: handler they would end the program at once, with all its connections.
WITHOUT_EFFECT = tuple(
    getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)


def say_without_effect(number: int) -> None:
    is_reload = number == getattr(signal, "SIGHUP", None)
    if is_reload:  # a service manager that has asked for it waits for the two answers
        service_manager.reloading()
    name = signal.Signals(number).name
    logger.warning(
        "%s does nothing: for another configuration, stop and start again",
        name,
        extra=fields("signal without effect", signal=name),
    )
    if is_reload:
        service_manager.ready()
