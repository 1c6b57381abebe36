"""The signals that a proxy handles."""

from __future__ import annotations

import signal

from ..proxies._log import fields, logger

#: The first of these signals stops the proxy, a second one cuts. SIGINT works also where the
#: program was started with SIGINT ignored, as a shell starts a background command: a sender of
#: SIGINT means it, and nginx and HAProxy's master obey it as well.
STOPPING = (signal.SIGINT, signal.SIGTERM)

#: The signal by which a proxy reads its files again; Windows has none.
RELOADING: tuple[int, ...] = (signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()

#: Signals by which other servers reopen their log, or do something else. Without a handler they
#: would end the program at once, with all its connections.
WITHOUT_EFFECT = tuple(getattr(signal, name) for name in ("SIGUSR2",) if hasattr(signal, name))

#: Signals by which a proxy logs who is connected. SIGINFO is what Ctrl-T in a terminal sends on the
#: BSDs and macOS.
SHOWING = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGINFO") if hasattr(signal, name))


def say_without_effect(number: int) -> None:
    name = signal.Signals(number).name
    logger.warning(
        "%s does nothing; SIGHUP reads all files again",
        name,
        extra=fields("signal without effect", signal=name),
    )
