"""When a proxy stops: at a signal, or once another process has taken over."""

from __future__ import annotations

from collections.abc import Callable


class Stopping:
    """Calls ``stop`` at each signal, and once when another process has taken over.

    The first signal after that changes nothing: the proxy is stopping already, and whoever looks
    after it may not know. A second call of ``stop`` would cut connections.

    Args:
        stop: lets connections end at its first call, and cuts them at the second.
    """

    def __init__(self, stop: Callable[[], object]) -> None:
        self._stop = stop
        self._has_begun = False
        self._expects_signal = False

    def signalled(self) -> None:
        """Stop, or cut: a signal has come."""
        self._has_begun = True
        if self._expects_signal:
            self._expects_signal = False
        else:
            self._stop()

    def handed_over(self) -> None:
        """Stop, unless that has begun: another process serves in the place of this one."""
        if not self._has_begun:
            self._has_begun = self._expects_signal = True
            self._stop()
