"""``freebsd-splice info``."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Callable

import pytest

import freebsd_splice
from freebsd_splice._platform.backlog import backlog_limit
from programs.processes import MAIN, Program

StartProgram = Callable[..., Program]


def test_info_says_what_there_is(program: StartProgram) -> None:
    facts = _info(program)
    assert facts["freebsd-splice"].startswith(freebsd_splice.__version__)
    assert facts["system"].startswith(f"{platform.system()} {platform.release()}")
    assert facts["backend"] == ": ".join(freebsd_splice.backend())
    assert re.match(r"\d+, one for each CPU", facts["workers"])
    limit = backlog_limit()
    assert facts.get("backlog") == (limit and f"{limit.most} at most, by {limit.sysctl}")
    for name in ("SO_SPLICE", "struct splice", "movers", "readiness", "descriptors"):
        assert facts[name]


@pytest.mark.skipif(sys.platform != "linux", reason="pipes matter to os.splice")
def test_on_linux_info_says_how_large_pipes_may_be(program: StartProgram) -> None:
    """F31."""
    facts = _info(program)
    assert facts["movers"] == "os.splice, then copy"
    assert re.match(r"\d+ bytes each; all of a user's together \d+ bytes", facts["pipes"])


def test_info_works_where_nothing_else_does(program: StartProgram) -> None:
    environment = {"FREEBSD_SPLICE_BACKEND": "mach", "FREEBSD_SPLICE_MOVER": "van"}
    run = program(*MAIN, "info", environment=environment)
    assert run.end() == 1
    facts = _facts(run)
    assert facts["backend"].startswith("none: FREEBSD_SPLICE_BACKEND")
    assert facts["movers"].startswith("none: FREEBSD_SPLICE_MOVER")
    assert facts["SO_SPLICE"]
    for variable in environment:
        assert len(run.find(f"^freebsd-splice: {variable}")) == 1


def test_info_says_what_the_environment_chose(program: StartProgram) -> None:
    chosen = {"FREEBSD_SPLICE_BACKEND": "userspace", "FREEBSD_SPLICE_MOVER": "copy"}
    facts = _info(program, chosen)
    assert facts["backend"] == "userspace: FREEBSD_SPLICE_BACKEND=userspace"
    assert facts["movers"] == "copy: FREEBSD_SPLICE_MOVER=copy"


def _info(program: StartProgram, environment: dict[str, str] | None = None) -> dict[str, str]:
    run = program(*MAIN, "info", environment=environment)
    assert run.end() == 0, run.text
    return _facts(run)


def _facts(run: Program) -> dict[str, str]:
    text = re.sub(r"\n +", " ", run.text)
    return {line[:16].rstrip(): line[16:] for line in text.splitlines()}
