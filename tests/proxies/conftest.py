"""What tests of the proxies share."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from freebsd_splice.proxies._event_loop import ProxyLoop
from proxies.on_loop import Loop, looping
from support.platforms import RecordingPlatform, runtime


@pytest.fixture(params=[ProxyLoop, asyncio.SelectorEventLoop])
def loop(request: pytest.FixtureRequest) -> Iterator[Loop]:
    """A loop that waits in the worker's poller, and one that watches it."""
    with runtime(RecordingPlatform()), looping(request.param) as made:
        yield made
