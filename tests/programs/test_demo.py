"""``tools/demo.py``, behind ``sh tools/demo``, which is the first that a newcomer sees."""

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from programs.processes import PATIENCE, _import_path, needs, until

DEMO = Path(__file__).parents[2] / "tools/demo.py"


class Demo:
    """Starts it; what goes on at the end of the test is ended, with all that it has started."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *options: str, **environment: str) -> subprocess.Popen[str]:
        started = subprocess.Popen(
            [sys.executable, str(DEMO), "--megabytes", "3", *options],
            env={**os.environ, **_import_path(), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._started.append(started)
        return started

    def run(self, *options: str, **environment: str) -> tuple[int, str]:
        started = self.start(*options, **environment)
        said, _ = started.communicate(timeout=PATIENCE)
        return started.returncode, said

    def close(self) -> None:
        for started in self._started:
            if started.poll() is None:
                os.killpg(started.pid, signal.SIGKILL)
            started.communicate()


@pytest.fixture
def demo() -> Iterator[Demo]:
    made = Demo()
    yield made
    made.close()


def with_curl(directory: Path, script: str) -> dict[str, str]:
    """A PATH in which curl is that."""
    curl = directory / "curl"
    curl.write_text(f"#!/bin/sh\n{script}\n")
    curl.chmod(0o755)
    return {"PATH": f"{directory}:{os.environ['PATH']}"}


def test_it_ends_with_what_moved_how_fast_and_by_what(demo: Demo, userspace: None) -> None:
    needs("curl")
    status, said = demo.run(http_proxy="http://127.0.0.1:9")  # which is not for these
    assert status == 0, said
    *steps, last, moved, following = said.splitlines()
    assert re.fullmatch(
        r"3 times 3,145,728 bytes came through freebsd-splice's forwarder, each time the same by "
        r"SHA-256 \([0-9a-f]{12}…\) as what was served\. That took \d+\.\d\d times as long as "
        r"fetching directly \(the best of each\)\.",
        last,
    )
    # On Linux the few bytes of a request are copied.
    mover = "copy and os.splice" if sys.platform == "linux" else "copy"
    assert moved.endswith(f", by {mover}: the same calls, and the same promises.")
    assert following.startswith("Next: ")
    assert len(re.findall(r"Fetching \d of 3, ", "\n".join(steps))) == 6


SAYS: dict[str, Any] = {}


def its(name: str) -> Any:
    """A function of the program."""
    if not SAYS:
        SAYS.update(runpy.run_path(str(DEMO)))
    return SAYS[name]


def who_moved_them(*arguments: object) -> str:
    said: str = its("who_moved_them")(*arguments)
    return said


def test_linux_is_told_plainly_whose_the_kernel_feature_is() -> None:
    assert who_moved_them({"userspace/os.splice"}, "Linux") == (
        "SO_SPLICE, with which a kernel joins two sockets, is FreeBSD's (14.3 and later) and "
        "OpenBSD's; Linux has none. What served here in its place are the package's worker "
        "threads, by os.splice: the same calls, and the same promises."
    )


def test_the_kernel_has_its_due() -> None:
    said = "The kernel moved them (SO_SPLICE): none passed through the forwarder's process."
    assert who_moved_them({"kernel/SO_SPLICE"}, "FreeBSD") == said


def test_where_the_kernel_was_not_used_it_says_why(userspace: None) -> None:
    said = who_moved_them({"userspace/copy"}, "FreeBSD")
    assert said.startswith("SO_SPLICE was not used: FREEBSD_SPLICE_BACKEND")


def test_what_arrives_damaged_is_a_failure(demo: Demo, tmp_path: Path) -> None:
    """A byte in the middle, as a test that compares lengths would not see it."""
    script = """
while [ "$1" != --output ]; do shift; done
cp "$(ls -d "${TMPDIR:-/tmp}"/*/file | head -n 1)" "$2"
printf x | dd of="$2" bs=1 seek=1000000 conv=notrunc 2>/dev/null"""
    files = tmp_path / "files"
    files.mkdir()
    status, said = demo.run(TMPDIR=str(files), **with_curl(tmp_path, script))
    assert status == 1
    assert said.endswith("The demonstration failed: what came directly is not what was served\n")
    assert list(files.iterdir()) == []


def test_a_curl_that_fails_says_why(demo: Demo, tmp_path: Path) -> None:
    script = "echo 'curl: (7) Failed to connect' >&2; exit 7"
    status, said = demo.run(**with_curl(tmp_path, script))
    assert status == 1
    assert said.splitlines()[-1] == (
        "The demonstration failed: curl ended with status 7: curl: (7) Failed to connect"
    )


def test_no_curl(demo: Demo) -> None:
    status, said = demo.run(PATH="/nowhere")
    assert (status, said) == (1, "The demonstration failed: curl is not installed\n")


def test_a_forwarder_that_can_not_start(demo: Demo) -> None:
    needs("curl")
    status, said = demo.run(FREEBSD_SPLICE_BACKEND="nonsense")
    assert status == 1
    assert "Traceback" not in said
    assert "nonsense" in said
    assert said.endswith("the forwarder did not start; what it said stands above\n")


def test_no_room_for_the_files(demo: Demo) -> None:
    needs("curl")
    status, said = demo.run("--megabytes", str(1 << 40))
    assert status == 1
    assert re.search(r"failed: .* MB left, and two files of \d+ MB .* \(TMPDIR names", said)


def test_an_interrupt_amid_a_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[subprocess.Popen[str]] = []

    def interrupted(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
        made.append(popen(*arguments, **options))
        signal.raise_signal(signal.SIGINT)
        return made[0]

    popen = subprocess.Popen
    monkeypatch.setattr("subprocess.Popen", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), its("started")(["sleep", "600"]):
            pass
        assert made[0].returncode == -signal.SIGKILL
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_is_interrupted_in_one_line(demo: Demo, tmp_path: Path, number: signal.Signals) -> None:
    """SIGTERM is sent to it alone, and what it has started ends all the same."""
    here = tmp_path / "here"
    started = demo.start(**with_curl(tmp_path, f"touch {here}; exec sleep 600"))
    until(here.exists)
    if number == signal.SIGINT:
        os.killpg(started.pid, number)
    else:
        started.send_signal(number)
    said, _ = started.communicate(timeout=PATIENCE)
    assert started.returncode == 1
    assert said.endswith("\nInterrupted.\n")
    assert "Traceback" not in said
