"""What is opened once for a process, before anything is counted."""

from __future__ import annotations

import contextlib

import pytest


@pytest.fixture(scope="session", autouse=True)
def uvloop_has_its_descriptors() -> None:
    """libuv's, for signals: made with the first loop, and kept."""
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.new_event_loop().close()
