"""What holds for every test: it leaves nothing behind."""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
import threading
from collections.abc import Iterator

import pytest

import freebsd_splice
from conformance.backends import BACKENDS, Served, reason_against, serving
from conformance.harness import Harness
from faults.bystanders import Bystander, RelayBystander, ThinBystander
from freebsd_splice._thin import emulation
from model.harness import ModelHarness
from support.leaks import has_children, open_descriptors
from support.slowness import SLOWNESS

#: Signals, fork(2), resource limits, /bin/sh: POSIX's from the first line on.
collect_ignore = ["programs", "vm"] if sys.platform == "win32" else []


def pytest_report_header() -> str | None:
    return f"not on this system: {', '.join(collect_ignore)}" if collect_ignore else None


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """In a FreeBSD guest pytest may be all there is: then nobody else knows this setting."""
    if not pluginmanager.hasplugin("timeout"):
        parser.addini("timeout", "seconds that pytest-timeout, where it is installed, gives a test")


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("timeout"):
        config.addinivalue_line("markers", "timeout(seconds): for pytest-timeout")
    with contextlib.suppress(ImportError):
        from hypothesis import HealthCheck, settings

        # Examples that come slowly say something about the machine, nothing about the test. They
        # are the same each time: a change is refused only for what it has changed.
        patient = settings(
            deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
        )
        settings.register_profile("any machine", patient)
        settings.load_profile("any machine")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A slow machine has more time, but for what the command line says."""
    usual = float(config.getini("timeout") or 0)
    said = config.getoption("timeout", None) is not None
    for item in items:
        mark = item.get_closest_marker("timeout")
        if mark is not None:
            seconds, *others = mark.args
            item.add_marker(pytest.mark.timeout(seconds * SLOWNESS, *others, **mark.kwargs), False)
        elif not said:
            item.add_marker(pytest.mark.timeout(usual * SLOWNESS))


@pytest.fixture
def harness(request: pytest.FixtureRequest) -> Iterator[Harness]:
    """The network: that of the backend which serves the case, where it has one of its own."""
    if "served" in request.fixturenames:
        yield request.getfixturevalue("served").harness
    elif _parameter(request, "thin").startswith("model"):
        before = sys.getswitchinterval()
        sys.setswitchinterval(60)  # the model's threads take turns
        yield ModelHarness(_parameter(request, "thin").split()[1])  # type: ignore[misc]
        sys.setswitchinterval(before)
    else:
        made = Harness()
        yield made
        made.close()


@pytest.fixture
def userspace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is the subject: here, and in programs started here, it serves in any case."""
    monkeypatch.setenv("FREEBSD_SPLICE_BACKEND", "userspace")


def _parameter(request: pytest.FixtureRequest, fixture: str) -> str:
    callspec = getattr(request.node, "callspec", None)
    return str(callspec.params.get(fixture, "")) if callspec else ""


@pytest.fixture(params=BACKENDS)
def served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """``Splice`` and ``Relay`` on each backend and mover that this machine has."""
    reason = reason_against(request.node.iter_markers("not_on"), request.param)
    if reason is not None:
        pytest.skip(reason)
    with serving(request.param, monkeypatch) as made:
        yield made


@pytest.fixture
def bystander(request: pytest.FixtureRequest, harness: Harness) -> Iterator[Bystander]:
    """Somebody else who is served by the same process, and isn't harmed by what happens."""
    if "thin" in request.fixturenames:
        made: Bystander = ThinBystander(harness, request.getfixturevalue("thin"))
    else:
        made = RelayBystander(harness)
    made.served()
    yield made
    made.end()


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Threads, descriptors and children are counted after the package's own shutdown."""
    threads = set(threading.enumerate())
    descriptors = open_descriptors()
    log = logging.getLogger("freebsd_splice")
    level = log.level
    yield
    log.setLevel(level)  # a program that a test has run in this process sets it
    freebsd_splice.shutdown()
    emulation.shutdown()
    for thread in set(threading.enumerate()) - threads:
        thread.join(10 * SLOWNESS)  # a test's own that is on its way out
    assert set(threading.enumerate()) <= threads
    if len(open_descriptors()) > len(descriptors):
        gc.collect()  # what only a reference cycle of a failing test holds is not the package's
    assert len(open_descriptors()) <= len(descriptors), (descriptors, open_descriptors())
    assert not has_children()
