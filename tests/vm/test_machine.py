"""What is made of what QEMU and the guest's console say, with a stand-in for QEMU."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from socket import socketpair

import pytest

pytest.importorskip("fcntl", reason="the runner is for POSIX hosts")

from freebsd_vm import events, failures, machine
from support.slowness import SLOWNESS

FAKE = Path(__file__).with_name("fake_qemu.py")
PATIENCE = 20.0 * SLOWNESS

MakeMachine = Callable[..., machine.Machine]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a short path, as sockets need, and QEMU's programs in PATH."""
    folder = Path(tempfile.mkdtemp(prefix="vm-"))
    programs = folder / "bin"
    programs.mkdir()
    for name, line in (
        ("qemu-system-x86_64", f'exec "{sys.executable}" "{FAKE}" "$@"'),
        ("qemu-img", 'echo \'{"virtual-size": 1, "format": "raw"}\''),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_QEMU", str(folder / "script"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def made(run: Path) -> MakeMachine:
    def make(*script: list[object]) -> machine.Machine:
        (run / "script").write_text(json.dumps(script))
        return machine.Machine(machine.Hardware(), "tcg", DISKS, 1, run / "machine", "ready!")

    return make


DISKS = machine.Disks(Path("/nowhere/image"), Path("/nowhere/seed"))


def wait(on: machine.Machine, *kinds: str) -> events.Event | None:
    return on.wait(kinds, events.Deadline(PATIENCE))


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Trying to mount root from ufs:/dev/gpt/rootfs [rw]...\r\n", "alive"),
        ("[    2.0] Run /init as init process\n", "alive"),
        ("\x1b[32mit is ready!\x1b[0m\r\n", "console"),
    ],
)
def test_what_the_console_says_is_an_event(made: MakeMachine, said: str, kind: str) -> None:
    with made(["console", "Loading kernel...\r\n|/-\\|"], ["console", said]) as on:
        event = wait(on, "alive", "console")
        assert event is not None
        assert event.kind == kind
    assert on.process.returncode == 0, "told to quit, it was killed"


@pytest.mark.parametrize(
    "said",
    [
        "panic: vm_fault_lookup: fault on nofault entry, addr: 0xdeadbeef",
        "Fatal trap 12: page fault while in kernel mode",
        "[   12.3] Kernel panic - not syncing: sysrq triggered crash",
    ],
)
def test_a_panic_is_told_with_its_line(made: MakeMachine, said: str) -> None:
    with (
        made(["console", f"all is well\r\n{said}\r\ncpuid = 1\r\n"]) as on,
        pytest.raises(failures.GuestPanicked) as failure,
    ):
        wait(on)
    assert said.removeprefix("[   12.3] ") in str(failure.value)
    assert "    all is well\n" in str(failure.value)


def test_a_panic_right_before_the_end_is_not_taken_for_a_reboot(made: MakeMachine) -> None:
    with (
        made(["console", "panic: now\n"], ["exit"]) as on,
        pytest.raises(failures.GuestPanicked),
    ):
        wait(on)


def test_words_about_a_panic_are_none(made: MakeMachine) -> None:
    with made(["console", "don't panic: all is well\nready!\n"]) as on:
        event = wait(on, "console")
        assert event is not None
        assert event.about == "ready!"


@pytest.mark.parametrize(
    ("script", "kind", "text"),
    [
        ([["console", "bye\n"], ["exit"]], failures.GuestVanished, "switched itself off"),
        (
            [["qmp", "BLOCK_IO_ERROR", {"nospace": True}], ["qmp", "STOP", {}]],
            failures.HostDiskFull,
            "no room",
        ),
        ([["qmp", "BLOCK_IO_ERROR", {"reason": "EIO"}]], failures.GuestVanished, "disk fails"),
        ([["qmp", "STOP", {}]], failures.GuestVanished, "stopped the guest"),
        ([["stderr", "q: -chardev x: info: waiting\nq: KVM internal error"], ["qmp", "STOP", {}]],
         failures.GuestVanished, "stopped the guest: q: KVM internal error"),
        ([["stderr", "q: Could not set up host forwarding rule 'x'"], ["exit"]],
         failures.PortTaken, "--port"),
    ],
)  # fmt: skip
def test_what_ends_a_wait(
    made: MakeMachine, script: list[list[object]], kind: type[failures.Failure], text: str
) -> None:
    with made(*script) as on, pytest.raises(kind, match=text):
        wait(on)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("q: Could not set up host forwarding rule 'tcp:127.0.0.1:1-:22'", failures.PortTaken),
        ("q: No such machine", failures.GuestVanished),
    ],
)
def test_what_keeps_qemu_from_starting(
    made: MakeMachine, said: str, kind: type[failures.Failure]
) -> None:
    with pytest.raises(kind, match=said.split("'")[0]):
        made(["stderr", said])


def test_a_wait_has_its_deadline(made: MakeMachine) -> None:
    with made(["console", "nothing of interest\n"]) as on:
        assert on.wait(["console"], events.Deadline(0.05)) is None
        with pytest.raises(failures.GuestHangs, match="too slow"):
            on.hangs("too slow")


@pytest.fixture
def kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: True)


def probe(run: Path, *script: Sequence[object], seconds: float = PATIENCE) -> str | None:
    (run / "script").write_text(json.dumps(script))
    here = {"x86_64": "amd64"}.get(os.uname().machine, os.uname().machine)
    if here != "amd64":
        pytest.skip("the stand-in is an x86 machine's")
    return machine.can_kvm(machine.Hardware(), DISKS, 1, run / "probe", seconds)


@pytest.mark.usefixtures("kvm")
def test_kvm_is_taken_where_a_kernel_comes_up(run: Path) -> None:
    assert probe(run, ["console", "Trying to mount root from ufs:/dev/da0\n"]) is None
    assert not (run / "probe").exists()


@pytest.mark.usefixtures("kvm")
def test_kvm_is_not_taken_where_it_stops_the_guest(run: Path) -> None:
    complaint = ["stderr", "KVM internal error. Suberror: 1"]
    reason = probe(run, complaint, ["console", "Loading...\n"], ["qmp", "STOP", {}])
    assert reason == "QEMU has stopped the guest: KVM internal error. Suberror: 1"


@pytest.mark.usefixtures("kvm")
def test_kvm_is_not_taken_where_nothing_comes_up(run: Path) -> None:
    reason = probe(run, ["console", "Loading...\n"], seconds=0.1)
    assert reason is not None
    assert "doesn't come up" in reason


def test_kvm_is_not_taken_without_its_device(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert probe(run) == "/dev/kvm isn't there for us"


def test_kvm_is_not_for_another_architecture(run: Path) -> None:
    other = "aarch64" if os.uname().machine == "x86_64" else "amd64"
    reason = machine.can_kvm(machine.Hardware(other), DISKS, 1, run / "probe", PATIENCE)
    assert reason == f"this is no {other} machine"


def test_a_machine_that_ends_at_once_is_met_by_its_end(tmp_path: Path) -> None:
    """QEMU has accepted, and is gone before the first order: why is for its exit to say."""
    ours, theirs = socketpair()
    theirs.close()
    events.Monitor(ours, events.Events())
