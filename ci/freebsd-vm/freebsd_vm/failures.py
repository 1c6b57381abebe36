"""What can go wrong, each with the runner's exit status for it."""

from __future__ import annotations

from collections.abc import Iterator


class Failure(Exception):
    """The command's own status can't be told: it didn't run, or not to its end."""

    status = 200


class ProgramMissing(Failure):
    """QEMU, or another program that is needed, isn't installed."""

    status = 201


class DownloadFailed(Failure):
    """The image, or its checksum, can't be had."""

    status = 202


class BadChecksum(Failure):
    """An image isn't what its checksum says, or the checksum isn't the one seen before."""

    status = 203


class HostDiskFull(Failure):
    """No room on this machine, for the image or for what the guest writes."""

    status = 204


class PortTaken(Failure):
    """The port of this machine that was to lead to the guest's sshd is in use."""

    status = 205


class GuestPanicked(Failure):
    """The guest's kernel has given up."""

    status = 206


class GuestHangs(Failure):
    """The guest wasn't ready in time, or has stopped answering."""

    status = 207


class GuestVanished(Failure):
    """The machine has stopped, by itself, by a reboot or by a fault of QEMU's."""

    status = 208


class CommandTimedOut(Failure):
    """The guest lives, but the command didn't end in time."""

    status = 209


class NotPrepared(Failure):
    """The copying, the packages or the extension's build failed in the guest."""

    status = 210


class GuestDiskFull(Failure):
    """No room on the guest's disk."""

    status = 211


#: What a shell says of SIGINT.
INTERRUPTED = 130


def statuses() -> Iterator[tuple[int, str]]:
    """The exit statuses and what they mean."""
    for kind in Failure.__subclasses__():
        yield kind.status, " ".join((kind.__doc__ or "").split())
    yield INTERRUPTED, "Interrupted."
