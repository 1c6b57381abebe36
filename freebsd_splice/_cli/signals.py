"""The signals that mean something to a proxy."""

from __future__ import annotations

import signal

from ..proxies._log import fields, logger

#: The first stops it, and a second one cuts.  SIGINT also where the program was started with SIGINT
#: ignored, as a shell starts what it doesn't wait for: whoever sends it to a server means it, and
#: nginx and HAProxy's master obey it as well.
STOPPING = (signal.SIGINT, signal.SIGTERM)

#: What others load their configuration again by, or open their log.  Left alone they would end the
#: program on the spot, with all its connections.
WITHOUT_EFFECT = tuple(
    getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)


def say_without_effect(number: int) -> None:
    name = signal.Signals(number).name
    logger.warning(
        "%s does nothing: for another configuration, stop and start again",
        name,
        extra=fields("signal without effect", signal=name),
    )
