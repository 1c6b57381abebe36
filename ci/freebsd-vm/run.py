"""Run the tests inside FreeBSD, from Linux, with QEMU: see README.md beside this file."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from freebsd_vm import failures, guest, images, machine, seed
from freebsd_vm.events import Deadline

ROOT = Path(__file__).resolve().parents[2]

#: All the facts, then the whole suite on the kernel, where a fallback is a failure.
DEFAULT = """\
python3 tests/facts; facts=$?
FREEBSD_SPLICE_BACKEND=kernel python3 -m pytest || exit
exit $facts"""

#: How much slower than the machines the tests' deadlines are made for.
SLOWNESS = {"kvm": 2, "tcg": 20}
BOOT_SECONDS = {"kvm": 180, "tcg": 1200}
PREPARATION_SECONDS = {"kvm": 600, "tcg": 3600}
SILENCE_SECONDS = {"kvm": 60, "tcg": 300}
COMMAND_SECONDS = {"kvm": 3600, "tcg": 6 * 3600}
PROBE_SECONDS = 60


def main(arguments: list[str] | None = None) -> int:
    """The command's exit status, or one of ``failures.statuses()``."""
    options = _options(arguments)
    try:
        with _signals():
            return _run(options)
    except failures.Failure as failure:
        say(f"FAILED: {failure}")
        return failure.status
    except KeyboardInterrupt:
        say("interrupted")
        return failures.INTERRUPTED


def say(text: str) -> None:
    """What the runner itself says goes to stderr."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def _run(options: argparse.Namespace) -> int:
    machine.check_programs(options.arch)
    image = options.image
    if image is None:
        image = images.official(options.release, options.arch, options.cache, options.site, say)
    elif not image.exists():
        raise failures.DownloadFailed(f"there is no {image}")
    hardware = machine.Hardware(options.arch, options.cpus, options.memory, options.disk)
    port = options.port or machine.free_port()
    with _folder(options) as run:
        disks = machine.Disks(image, run / "seed.iso")
        seed.write(disks.seed, guest.make_key(run / "key"))
        accelerator = options.accel
        if accelerator == "auto":
            accelerator = _accelerator(hardware, disks, port, run)
        log = options.results / "console.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        say(f"booting {image.name} under {accelerator}; its console: {log}")
        booted = machine.Machine(
            hardware, accelerator, disks, port, run / "machine", seed.READY, log
        )
        try:
            silence = options.silence or SILENCE_SECONDS[accelerator]
            inside = guest.Guest(booted, port, run, silence)
            status = _use(inside, accelerator, options)
        except BaseException:
            if options.keep and booted.process.poll() is None:
                _leave(booted, inside)
            else:
                booted.power_off()
            raise
        if options.keep:
            _leave(booted, inside)
        else:
            booted.power_off()
        return status


def _use(inside: guest.Guest, accelerator: str, options: argparse.Namespace) -> int:
    began = time.monotonic()
    inside.wait_until_ready(Deadline(options.boot_timeout or BOOT_SECONDS[accelerator]))
    say(f"the guest is ready after {time.monotonic() - began:.0f} s")
    preparation = Deadline(PREPARATION_SECONDS[accelerator])
    say(f"{inside.copy_in(ROOT, preparation)} files copied in")
    inside.prepare(preparation)
    command = options.command or ["sh", "-c", DEFAULT]
    say(f"running {shlex.join(command)}")
    variables = {
        "FREEBSD_SPLICE_SLOWNESS": str(SLOWNESS[accelerator]),
        "FREEBSD_SPLICE_RESULTS": guest.RESULTS,
        "PYTEST_ADDOPTS": f"--junitxml={guest.RESULTS}/junit.xml",
    }
    limit = options.timeout or COMMAND_SECONDS[accelerator]
    try:
        status = inside.run(command, variables, Deadline(limit))
    except failures.CommandTimedOut:
        inside.bring_back(options.results)
        raise
    brought = [str(path) for path in inside.bring_back(options.results)]
    say(f"status {status}; brought back: {', '.join(brought) or 'nothing'}")
    return status


def _accelerator(hardware: machine.Hardware, disks: machine.Disks, port: int, run: Path) -> str:
    reason = machine.can_kvm(hardware, disks, port, run / "probe", PROBE_SECONDS)
    if reason is None:
        return "kvm"
    say(f"no KVM: {reason}")
    return "tcg"


def _leave(booted: machine.Machine, inside: guest.Guest) -> None:
    say(f"it is left running.  To get in:\n    {shlex.join(inside.ssh)}")
    say(f"To end it:\n    kill {booted.process.pid}")


@contextmanager
def _folder(options: argparse.Namespace) -> Iterator[Path]:
    """For the key, the overlay and the sockets, whose paths have to be short."""
    run = Path(tempfile.mkdtemp(prefix="freebsd-vm-"))
    try:
        yield run
    finally:
        if not options.keep:
            shutil.rmtree(run, ignore_errors=True)


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end it as Ctrl-C does, with the machine off."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)  # what follows is the clearing up
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    statuses = "\n".join(f"  {number}  {text}" for number, text in failures.statuses())
    parser = argparse.ArgumentParser(
        description="Boot a FreeBSD release in QEMU, copy this checkout into it and run a command "
        "there; by default the facts and the tests, with the kernel demanded.",
        epilog=f"exit status: the command's own, or\n{statuses}\n\nexample:\n"
        "  %(prog)s --release 15.1 -- python3 -m pytest tests/conformance",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--release", default="14.4", help="of FreeBSD (default: 14.4)")
    add("--arch", choices=sorted(images.ARCHITECTURES), default="amd64", help="default: amd64")
    add("--image", type=Path, metavar="FILE", help="an image that is here (qcow2 or raw)")
    add("--cache", type=Path, default=images.default_cache(), help="where fetched images are kept")
    add("--site", default=images.SITE, metavar="URL", help="where images are fetched from")
    add("--results", type=Path, default=Path("vm-results"), metavar="FOLDER",
        help="for junit.xml, what else the command leaves in $FREEBSD_SPLICE_RESULTS, and the "
        "console's log (default: vm-results)")  # fmt: skip
    add("--accel", choices=("auto", "kvm", "tcg"), default="auto",
        help="auto, the default: kvm where a probe boot shows that it works")  # fmt: skip
    add("--cpus", type=int, default=max(2, min(4, os.cpu_count() or 2)), help="default: 2 to 4")
    add("--memory", type=int, default=2048, metavar="MIB", help="default: 2048")
    add("--disk", type=int, default=12, metavar="GIB", help="at least so large (default: 12)")
    add("--port", type=int, help="of this machine, for the guest's sshd (default: a free one)")
    add("--boot-timeout", type=float, metavar="SECONDS", help="default: 180, without KVM 1200")
    add("--silence", type=float, metavar="SECONDS",
        help="one that answers nothing so long hangs (default: 60, without KVM 300)")  # fmt: skip
    add("--timeout", type=float, metavar="SECONDS",
        help="for the command (default: an hour, without KVM six)")  # fmt: skip
    add("--keep", action="store_true", help="leave it running, and say how to get in")
    add("command", nargs="*", metavar="COMMAND", help="what to run in the guest, after --")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
