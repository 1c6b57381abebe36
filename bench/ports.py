"""Free ports, and waiting for a listener without being its client."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable

HOST = "127.0.0.1"


def free_port() -> int:
    """Below the ports that systems hand out to clients."""
    while True:
        port = random.randrange(15_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server((HOST, port)):
            return port


def wait_for_listener(port: int, alive: Callable[[], bool], seconds: float = 30.0) -> None:
    """Until somebody listens there, or TimeoutError; ``alive`` says whether it still can."""
    deadline = time.monotonic() + seconds
    while alive() and time.monotonic() < deadline:
        for host in (HOST, ""):  # the BSDs let the one be bound beside the other
            with socket.socket() as probe:
                # So that it is in nobody's way before there is a listener, and fails after that.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((host, port))
                except OSError:
                    return
        time.sleep(0.02)
    raise TimeoutError(f"nobody listens on port {port}")
