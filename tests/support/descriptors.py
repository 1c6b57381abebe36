"""Enough descriptors for a test: many systems start a process with 1,024."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def enough_descriptors(count: int) -> Iterator[None]:
    """Raise the limit of this process, and of those that it starts meanwhile, to ``count``.

    Skip the test if the system doesn't allow that many.
    """
    resource = pytest.importorskip("resource", reason="limits are POSIX's")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"a process may have {hard} descriptors here, not {count}")
    # An unlimited soft limit is -1 in resource, less than any count.
    enough = soft if soft == resource.RLIM_INFINITY else max(soft, count)
    resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
