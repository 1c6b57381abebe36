"""As many descriptors as a test takes: often 1,024 are all that a process begins with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def enough_descriptors(count: int) -> Iterator[None]:
    """For this process and those that it starts meanwhile: a skip where it may not have so many."""
    resource = pytest.importorskip("resource", reason="limits are POSIX's")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"a process may have {hard} descriptors here, not {count}")
    # A soft limit without bounds is less than any number to resource, which says -1.
    enough = soft if soft == resource.RLIM_INFINITY else max(soft, count)
    resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
