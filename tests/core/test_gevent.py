"""gevent's monkey patching takes away what the package's threads are made of."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("gevent", reason="gevent isn't installed")

pytestmark = pytest.mark.usefixtures("userspace")  # Unix sockets are nothing for the kernel

SPLICE = """
import socket
from gevent import monkey
monkey.patch_all({options})
from freebsd_splice import Relay
pairs = socket.socketpair(), socket.socketpair()
with Relay(pairs[0][1], pairs[1][0]) as relay:
    pairs[0][0].sendall(b"hello")
    assert pairs[1][1].recv(5) == b"hello"
"""


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("", "call monkey.patch_all(thread=False, select=False, queue=False)"),
        ("thread=False", "gevent has patched select, queue"),
        ("thread=False, select=False", "gevent has patched queue"),
        ("thread=False, select=False, queue=False", ""),
    ],
)
def test_what_must_not_be_patched_is_named(options: str, told: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", SPLICE.format(options=options)], capture_output=True, text=True
    )
    if told:
        assert run.returncode == 1
        assert "RuntimeError" in run.stderr
        assert told in run.stderr
    else:
        assert run.returncode == 0, run.stderr
