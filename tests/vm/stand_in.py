"""A disk image that boots by itself, has sshd and reads NoCloud seeds: Debian's, made here.

It stands in for FreeBSD's own images, which this machine may not be able to fetch.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

PACKAGES = (
    "systemd-sysv",
    "linux-image-cloud-amd64",
    "initramfs-tools",
    "cloud-init",
    "openssh-server",
    "python3",
    "python3-pytest",
    "iproute2",
    "ifupdown",
    "isc-dhcp-client",
)
PROGRAMS = (
    "qemu-system-x86_64",
    "qemu-img",
    "ssh",
    "mmdebstrap",
    "mke2fs",
    "mkfs.vfat",
    "mcopy",
    "syslinux",
    "sfdisk",
)
MASTER_BOOT_RECORD = Path("/usr/lib/syslinux/mbr/mbr.bin")

_BOOT = """\
DEFAULT linux
SERIAL 0 115200
LABEL linux
  KERNEL vmlinuz
  INITRD initrd.img
  APPEND root=/dev/vda2 rw console=ttyS0 panic=-1
"""
_BOOT_MIB, _ROOT_MIB = 96, 1600


def what_is_missing() -> str | None:
    """Why it can't be made here."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)}: not installed"
    if not MASTER_BOOT_RECORD.exists():
        return f"no {MASTER_BOOT_RECORD}"
    if os.geteuid() != 0:
        return "only root can make the files of a system"
    if os.uname().machine != "x86_64":
        return "it is an x86 machine's image"
    return None


def build(folder: Path) -> Path:
    """Make it in an empty folder."""
    root, boot, system = folder / "root", folder / "boot.fat", folder / "root.ext4"
    _run("mmdebstrap", "--variant=minbase", "--include", ",".join(PACKAGES), "bookworm", root)
    kernel, initrd = _only(root, "boot/vmlinuz-*"), _only(root, "boot/initrd.img-*")
    (folder / "syslinux.cfg").write_text(_BOOT)
    shutil.copy(kernel, folder / "vmlinuz")
    shutil.copy(initrd, folder / "initrd.img")

    _sized(boot, _BOOT_MIB)
    _run("mkfs.vfat", "-F", "16", boot)
    for name in ("vmlinuz", "initrd.img", "syslinux.cfg"):
        _run("mcopy", "-i", boot, folder / name, "::")
    _run("syslinux", "--install", boot)

    _sized(system, _ROOT_MIB)
    _run("mke2fs", "-q", "-t", "ext4", "-d", root, system)
    shutil.rmtree(root)

    image = folder / "stand-in.raw"
    _sized(image, 1 + _BOOT_MIB + _ROOT_MIB)
    first, second = 1 << 11, (1 + _BOOT_MIB) << 11  # sectors of 512 bytes
    _run("sfdisk", "-q", image, told=f"{first},{_BOOT_MIB << 11},6,*\n{second},,83\n")
    _run("dd", f"if={MASTER_BOOT_RECORD}", f"of={image}", "conv=notrunc", "bs=440", "count=1")
    for part, at in ((boot, 1), (system, 1 + _BOOT_MIB)):
        _run("dd", f"if={part}", f"of={image}", "bs=1M", f"seek={at}", "conv=notrunc,sparse")
        part.unlink()
    return image


def _sized(path: Path, mebibytes: int) -> None:
    with path.open("wb") as made:
        made.truncate(mebibytes << 20)


def _only(root: Path, pattern: str) -> Path:
    (found,) = root.glob(pattern)
    return found


def _run(*command: str | Path, told: str = "") -> None:
    made = subprocess.run(
        command, input=told, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert made.returncode == 0, made.stdout
