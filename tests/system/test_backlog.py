"""The system's limit of a listening socket's queue."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from freebsd_splice._platform import backlog
from freebsd_splice._platform.backlog import BacklogLimit, backlog_limit
from freebsd_splice.proxies import Address, _listening
from freebsd_splice.proxies._listening import listen_on


def test_this_system_has_one_that_can_be_read() -> None:
    limit = backlog_limit()
    if sys.platform == "linux":
        path = Path("/proc/sys", limit.sysctl.replace(".", "/")) if limit is not None else None
        assert path is not None
        assert limit == ("net.core.somaxconn", int(path.read_text()))
    elif sys.platform.startswith(("freebsd", "openbsd")):
        assert limit is not None
        assert limit.most > 0


@pytest.fixture
def sysctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program that is asked."""
    program = tmp_path / "sysctl"
    monkeypatch.setattr(backlog, "_PROGRAMS", (str(tmp_path / "elsewhere"), str(program)))
    return program


def write(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.mark.skipif(sys.platform == "win32", reason="the program is a shell script")
@pytest.mark.parametrize(
    ("system", "name"),
    [
        ("freebsd15", "kern.ipc.soacceptqueue"),
        ("openbsd7", "kern.somaxconn"),
        ("darwin", "kern.ipc.somaxconn"),
    ],
)
def test_others_are_asked_by_sysctl(
    system: str, name: str, sysctl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(sysctl, f'[ "$*" = "-n {name}" ] && echo 128')
    monkeypatch.setattr(sys, "platform", system)
    assert backlog_limit() == BacklogLimit(name, 128)


@pytest.mark.skipif(sys.platform == "win32", reason="the program is a shell script")
@pytest.mark.parametrize("script", [None, "exit 1", "echo unknown", "exec sleep 1000"])
def test_what_cannot_be_read_is_no_limit(
    script: str | None, sysctl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it hold anything up."""
    if script is not None:
        write(sysctl, script)
    monkeypatch.setattr(backlog, "_TIMEOUT", 0.3 if script and "sleep" in script else 30.0)
    monkeypatch.setattr(sys, "platform", "freebsd15")
    assert backlog_limit() is None


def test_a_system_of_which_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "plan9")
    assert backlog_limit() is None


@pytest.fixture
def limit_of_128(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(
        _listening, "backlog_limit", lambda: BacklogLimit("kern.ipc.soacceptqueue", 128)
    )
    _listening._say_if_cut.cache_clear()
    yield
    _listening._say_if_cut.cache_clear()


@pytest.mark.usefixtures("limit_of_128")
def test_a_backlog_that_is_cut_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(2):
        for listener in listen_on(Address("127.0.0.1", 0), 1024):
            listener.close()
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "the system cuts the backlog of 1024 to 128 (kern.ipc.soacceptqueue): "
        "clients beyond that may be reset"
    )


@pytest.mark.usefixtures("limit_of_128")
def test_a_backlog_that_is_not_cut_is_nothing_to_say(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for listener in listen_on(Address("127.0.0.1", 0), 128):
        listener.close()
    assert not caplog.records
