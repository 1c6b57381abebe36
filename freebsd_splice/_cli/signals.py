"""The signals that a proxy handles."""

from __future__ import annotations

import signal

from ..proxies._log import fields, logger

#: The first of these signals stops the proxy, a second one cuts. SIGINT works also where the
#: program was started with SIGINT ignored, as a shell starts a background command: a sender of
#: SIGINT means it, and nginx and HAProxy's master obey it as well.
STOPPING = (signal.SIGINT, signal.SIGTERM)

#: Signals by which other servers load their configuration again or reopen their log. Without a
#: handler they would end the program at once, with all its connections.
WITHOUT_EFFECT = tuple(
    getattr(signal, name) for name in ("SIGHUP", "SIGUSR2") if hasattr(signal, name)
)

#: Signals by which a proxy logs who is connected. SIGINFO is what Ctrl-T in a terminal sends on the
#: BSDs and macOS.
SHOWING = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGINFO") if hasattr(signal, name))


def say_without_effect(number: int) -> None:
    name = signal.Signals(number).name
    logger.warning(
        "%s does nothing: for another configuration, stop and start again",
        name,
        extra=fields("signal without effect", signal=name),
    )
