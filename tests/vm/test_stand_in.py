"""The runner from end to end, on a guest that stands in for FreeBSD, under emulation."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fcntl", reason="the runner is for POSIX hosts")

from freebsd_vm import failures
from vm import stand_in

RUNNER = Path(__file__).parents[2] / "ci/freebsd-vm/run.py"
PATIENCE = 600.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if missing := stand_in.what_is_missing():
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("stand-in")
    yield stand_in.build(folder)
    shutil.rmtree(folder)


class Runner:
    """The runner as a process, and what it leaves."""

    def __init__(self, image: Path, folder: Path) -> None:
        self.image = image
        self.results = folder / "results"
        self.temporary = Path(tempfile.mkdtemp(prefix="vm-"))  # sockets need a short path

    def start(self, *arguments: str | Path, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        given = ("--image", self.image, "--results", self.results, "--accel", "tcg", *arguments)
        return subprocess.Popen(
            [*before, sys.executable, RUNNER, *given],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "TMPDIR": str(self.temporary)},
        )

    def run(self, *arguments: str | Path, before: tuple[str, ...] = ()) -> tuple[int, str]:
        """Its exit status and what it said; nothing of it is left."""
        process = self.start(*arguments, before=before)
        try:
            said, _ = process.communicate(timeout=PATIENCE)
        except BaseException:
            process.terminate()
            process.communicate()
            raise
        self.nothing_is_left()
        return process.returncode, said

    def nothing_is_left(self) -> None:
        assert list(self.temporary.iterdir()) == []
        assert self.machines() == []

    def machines(self) -> list[int]:
        """Processes that have this run's folder on their command line."""
        mine = str(self.temporary).encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                line = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if mine in line and b"run.py" not in line:
                found.append(int(process.name))
        return found


@pytest.fixture
def runner(image: Path, tmp_path: Path) -> Iterator[Runner]:
    made = Runner(image, tmp_path)
    yield made
    for process in made.machines():  # only where a test has failed
        os.kill(process, signal.SIGKILL)
    shutil.rmtree(made.temporary)


def test_a_command_runs_in_the_guest(runner: Runner) -> None:
    before = _sum(runner.image)
    untracked = RUNNER.with_name("untracked-by-a-test")
    untracked.write_text("came along\n")
    command = """
        cat ci/freebsd-vm/untracked-by-a-test && test ! -e .git &&
        test "$FREEBSD_SPLICE_SLOWNESS" -gt 1 &&
        echo '{"ratio": 2}' >$FREEBSD_SPLICE_RESULTS/bench.json &&
        python3 -m pytest tests/vm/test_pieces.py -k status"""
    try:
        status, said = runner.run("--", "sh", "-c", command)
    finally:
        untracked.unlink()
    assert status == 0, said
    assert "came along" in said
    assert re.search(r"the guest is ready after \d+ s", said)
    suite = ElementTree.parse(runner.results / "junit.xml").getroot().find("testsuite")
    assert suite is not None
    assert int(suite.attrib["tests"]) > 0
    assert suite.attrib["failures"] == suite.attrib["errors"] == "0"
    assert (runner.results / "bench.json").read_text() == '{"ratio": 2}\n'
    assert "Linux version" in (runner.results / "console.log").read_text()
    assert _sum(runner.image) == before, "the image was written to"


def test_a_command_that_fails_has_its_status_and_results(runner: Runner) -> None:
    status, said = runner.run("--", "sh", "-c", "echo some >$FREEBSD_SPLICE_RESULTS/part; exit 7")
    assert status == 7, said
    assert (runner.results / "part").read_text() == "some\n"


def test_a_command_that_takes_too_long_is_cut(runner: Runner) -> None:
    late = "echo some >$FREEBSD_SPLICE_RESULTS/part; echo begun; sleep 10000"
    status, said = runner.run("--timeout", "20", "--", "sh", "-c", late)
    assert status == failures.CommandTimedOut.status, said
    assert "begun" in said
    assert "didn't end in 20 s" in said
    assert (runner.results / "part").read_text() == "some\n"


def test_a_panic_is_told_with_the_consoles_last_lines(runner: Runner) -> None:
    status, said = runner.run("--", "sh", "-c", "echo c >/proc/sysrq-trigger; sleep 10000")
    assert status == failures.GuestPanicked.status, said
    assert "has panicked: [" in said
    assert "Kernel panic - not syncing" in said


def test_a_guest_that_switches_itself_off_is_missed(runner: Runner) -> None:
    status, said = runner.run("--", "poweroff", "--force", "--force")
    assert status == failures.GuestVanished.status, said
    assert "switched itself off" in said


def test_a_guest_that_stops_answering_hangs(runner: Runner) -> None:
    down = "ip link set $(ip -o route get 10.0.2.2 | sed 's/.* dev \\([^ ]*\\).*/\\1/') down"
    status, said = runner.run("--silence", "10", "--", "sh", "-c", f"{down}; sleep 10000")
    assert status == failures.GuestHangs.status, said
    assert "connection to the guest broke" in said


def test_a_guest_that_is_never_ready_hangs(runner: Runner) -> None:
    status, said = runner.run("--boot-timeout", "6", "--", "true")
    assert status == failures.GuestHangs.status, said
    assert "wasn't ready in 6 s; its console's last lines:\n    " in said


def test_a_full_disk_of_the_guests_is_told(runner: Runner) -> None:
    fill = "dd if=/dev/zero of=/fill bs=16M 2>/dev/null; exit 5"
    status, said = runner.run("--", "sh", "-c", fill)
    assert status == failures.GuestDiskFull.status, said
    assert "--disk" in said


def test_a_full_disk_of_ours_is_told(runner: Runner) -> None:
    small = f'mount -t tmpfs -o size=48m none {runner.temporary} && exec "$@"'
    status, said = runner.run(
        *("--", "sh", "-c", "dd if=/dev/urandom of=/fill bs=1M count=400 conv=fsync"),
        before=("unshare", "--mount", "sh", "-c", small, "sh"),
    )
    assert status == failures.HostDiskFull.status, said


def test_a_port_in_use_is_told(runner: Runner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, said = runner.run("--port", str(taken.getsockname()[1]), "--", "true")
    assert status == failures.PortTaken.status, said
    assert "--port" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_switches_the_machine_off(runner: Runner, number: signal.Signals) -> None:
    process = runner.start("--", "true")
    assert process.stdout is not None
    console = runner.results / "console.log"
    deadline = time.monotonic() + PATIENCE
    while not (console.exists() and "Linux version" in console.read_text()):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == failures.INTERRUPTED, said
    runner.nothing_is_left()


def test_kept_it_can_be_got_into(runner: Runner) -> None:
    process = runner.start("--keep", "--", "true")
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    (way_in,) = re.findall(r"To get in:\n +(ssh .*)", said)
    (way_out,) = re.findall(r"To end it:\n +(kill \d+)", said)
    inside = subprocess.run(f"{way_in} uname -n", shell=True, capture_output=True, text=True)
    assert inside.stdout.strip() == "freebsd-splice"
    subprocess.run(way_out, shell=True, check=True)
    deadline = time.monotonic() + 60
    while runner.machines():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _sum(path: Path) -> str:
    with path.open("rb") as content:
        digest = hashlib.sha256()
        while piece := content.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
