"""One machine in QEMU: started, listened to, and always ended."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from .events import Console, Deadline, Event, Events, Monitor, watch_process
from .failures import (
    Failure,
    GuestHangs,
    GuestPanicked,
    GuestVanished,
    HostDiskFull,
    PortTaken,
    ProgramMissing,
)

#: Seconds that QEMU has to open its sockets, and to end.
_PROMPT = 30.0

#: Where QEMU's package, or Debian's own one, puts the firmware of a machine that has none.
_ARM_FIRMWARE = (
    "/usr/share/qemu-efi-aarch64/QEMU_EFI.fd",
    "/usr/share/AAVMF/AAVMF_CODE.fd",
    "/usr/share/qemu/edk2-aarch64-code.fd",
    "/usr/local/share/qemu/edk2-aarch64-code.fd",
    "/opt/homebrew/share/qemu/edk2-aarch64-code.fd",
)


class Hardware(NamedTuple):
    architecture: str = "amd64"
    processors: int = 2
    memory: int = 2048  # MiB
    disk: int = 12  # GiB


class Disks(NamedTuple):
    """The image, which is left alone, and the seed."""

    image: Path
    seed: Path


def qemu(architecture: str) -> str:
    """QEMU's program for an architecture."""
    name = {"amd64": "qemu-system-x86_64", "aarch64": "qemu-system-aarch64"}[architecture]
    return _program(name, "QEMU")


def check_programs(architecture: str) -> None:
    """ProgramMissing now, and not after an hour's download."""
    qemu(architecture)
    _program("qemu-img", "QEMU's tools")
    for name in ("ssh", "ssh-keygen"):
        _program(name, "OpenSSH's client")
    _firmware(architecture)


def command_line(
    hardware: Hardware, accelerator: str, overlay: Path, seed: Path, port: int, run: Path
) -> list[str]:
    """How QEMU is called."""
    machine = {
        "amd64": [],
        "aarch64": ["-machine", "virt", *_firmware(hardware.architecture)],
    }[hardware.architecture]
    processor = {
        "kvm": ["-cpu", "host"],
        "tcg": ["-cpu", "max"] if hardware.architecture == "aarch64" else [],
    }[accelerator]
    return [
        qemu(hardware.architecture),
        *machine,
        *("-accel", accelerator),
        *processor,
        *("-smp", str(hardware.processors)),
        *("-m", str(hardware.memory)),
        *("-display", "none"),
        "-no-reboot",
        *("-drive", f"file={_escaped(overlay)},if=virtio,format=qcow2"),
        *("-drive", f"file={_escaped(seed)},if=virtio,format=raw,readonly=on"),
        *("-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-:22"),
        *("-device", "virtio-net-pci,netdev=net"),
        *("-device", "virtio-rng-pci"),
        *("-chardev", f"socket,id=console,path={_escaped(run / 'console')},server=on,wait=on"),
        *("-serial", "chardev:console"),
        *("-qmp", f"unix:{_escaped(run / 'qmp')},server=on,wait=on"),
    ]


class Machine:
    """A running one.  Use it in a ``with``: it is off afterwards, whatever happens.

    ``run`` is a folder of its own, with a short path (for sockets).
    """

    def __init__(
        self,
        hardware: Hardware,
        accelerator: str,
        disks: Disks,
        port: int,
        run: Path,
        watched: str = "",
        console_log: Path | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.events = Events()
        run.mkdir(parents=True, exist_ok=True)
        overlay = run / "disk.qcow2"
        make_overlay(disks.image, overlay, hardware.disk)
        self._errors = run / "qemu.log"
        command = command_line(hardware, accelerator, overlay, disks.seed, port, run)
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is for the runner, which ends this in order
            )
        try:
            deadline = Deadline(_PROMPT)
            channel = self._connect(run / "console", deadline)
            self.console = Console(channel, self.events, console_log or run / "log", watched)
            self._monitor = Monitor(self._connect(run / "qmp", deadline), self.events)
        except BaseException:
            self._end()
            raise
        watch_process(self.process, "exit", self.events)

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.power_off()

    def power_off(self) -> None:
        """At once: the overlay is thrown away, so nothing has to be written out."""
        if self.process.poll() is None:
            try:
                self._monitor.quit()
                self.process.wait(_PROMPT)
            except (OSError, subprocess.TimeoutExpired):
                self._end()
        self.console.join()

    def wait(self, kinds: Sequence[str], deadline: Deadline) -> Event | None:
        """The next event of these kinds; None at the deadline.

        Raises GuestPanicked, GuestVanished or HostDiskFull when the guest can't go on.
        """
        while deadline.left:
            event = self.events.next(deadline.left)
            if event is None:
                break
            self._check(event)
            if event.kind in kinds:
                return event
        return None

    def hangs(self, what: str) -> NoReturn:
        raise GuestHangs(f"{what}; its console's last lines:\n{self.console.last_lines()}")

    def _check(self, event: Event) -> None:
        if event.kind == "panic":
            time.sleep(1)  # the rest of what it says
            self._panicked()
        if event.kind == "exit":
            self.console.join()
            if self.console.panic is not None:
                self._panicked()
            if said := self._complaint():
                self._check_port(said)
                self._fail(GuestVanished, f"QEMU has ended: {said}")
            self._fail(GuestVanished, "the guest has switched itself off, or rebooted")
        if event.kind == "qmp" and event.about["event"] == "BLOCK_IO_ERROR":
            if event.about["data"].get("nospace"):
                self._fail(HostDiskFull, "no room for what the guest writes to its disk")
            self._fail(GuestVanished, f"the guest's disk fails: {event.about['data']}")
        if event.kind == "qmp" and event.about["event"] == "STOP":
            self._fail(GuestVanished, f"QEMU has stopped the guest: {self._complaint()}")

    def _panicked(self) -> NoReturn:
        self._fail(GuestPanicked, f"the guest's kernel has panicked: {self.console.panic}")

    def _fail(self, kind: type[Failure], what: str) -> NoReturn:
        raise kind(f"{what}; its console's last lines:\n{self.console.last_lines()}")

    def _complaint(self) -> str:
        """The first line that QEMU has to say."""
        lines = self._errors.read_text().splitlines()
        return next((line for line in lines if ": info: " not in line and line.strip()), "")

    def _connect(self, path: Path, deadline: Deadline) -> socket.socket:
        """QEMU opens its sockets one after the other, and waits for us at each."""
        while self.process.poll() is None and deadline.left:
            channel = socket.socket(socket.AF_UNIX)
            try:
                channel.connect(str(path))
                return channel
            except OSError:
                channel.close()
                time.sleep(0.05)
        said = self._complaint()
        self._check_port(said)
        if self.process.poll() is None:
            raise GuestVanished(f"QEMU doesn't answer at {path}: {said}")
        raise GuestVanished(f"QEMU doesn't start: {said}")

    def _check_port(self, said: str) -> None:
        if "host forwarding" in said:
            raise PortTaken(f"{said}; name another one with --port")

    def _end(self) -> None:
        self.process.kill()
        self.process.wait()


def make_overlay(image: Path, overlay: Path, gibibytes: int) -> None:
    """An empty disk over the image, which stays as it is."""
    described = json.loads(_tool("info", "--output=json", str(image)))
    size = max(gibibytes << 30, int(described["virtual-size"]))
    backing = ("-b", str(image.resolve()), "-F", str(described["format"]))
    _tool("create", "-q", "-f", "qcow2", *backing, str(overlay), str(size))


def can_kvm(hardware: Hardware, disks: Disks, port: int, run: Path, seconds: float) -> str | None:
    """Boot the image under KVM until its kernel runs; why not, or None.

    The device file proves nothing: a nested KVM may run a boot loader and fail at a kernel.
    """
    if hardware.architecture != {"x86_64": "amd64"}.get(os.uname().machine, os.uname().machine):
        return f"this is no {hardware.architecture} machine"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm isn't there for us"
    try:
        with Machine(hardware, "kvm", disks, port, run) as machine:
            if machine.wait(["alive"], Deadline(seconds)) is None:
                return f"under KVM its kernel doesn't come up in {seconds:.0f} s"
    except (GuestPanicked, GuestVanished) as failure:
        return str(failure).splitlines()[0].rpartition("; ")[0]
    finally:
        shutil.rmtree(run, ignore_errors=True)
    return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tool(*arguments: str) -> str:
    """qemu-img."""
    made = subprocess.run(
        [_program("qemu-img", "QEMU's tools"), *arguments], capture_output=True, text=True
    )
    if made.returncode == 0:
        return made.stdout
    if "No space left" in made.stderr:
        raise HostDiskFull(made.stderr.strip())
    raise Failure(made.stderr.strip())


def _program(name: str, of: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise ProgramMissing(f"{name} isn't here; install {of}")
    return found


def _firmware(architecture: str) -> list[str]:
    if architecture == "amd64":
        return []
    for path in _ARM_FIRMWARE:
        if os.path.exists(path):
            return ["-bios", path]
    raise ProgramMissing(f"no firmware for {architecture}; install UEFI for QEMU (EDK II)")


def _escaped(path: Path) -> str:
    """In QEMU's options a comma is doubled."""
    return str(path).replace(",", ",,")
