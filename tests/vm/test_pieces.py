"""The small pieces: the seed, the command line, what is copied in and brought back."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("fcntl", reason="the runner is for POSIX hosts")

from freebsd_vm import failures, guest, iso9660, machine, seed

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHq comment: with a colon"


def test_the_seed_is_a_disc_with_that_label_and_those_names() -> None:
    pycdlib = pytest.importorskip("pycdlib")
    files = {"user-data": b"u" * 5000, "meta-data": b"m", "empty": b""}
    disc = pycdlib.PyCdlib()
    disc.open_fp(io.BytesIO(iso9660.image("cidata", files)))
    try:
        assert disc.pvd.volume_identifier.rstrip() == b"cidata"
        assert disc.has_joliet()
        for name, content in files.items():
            found = io.BytesIO()
            disc.get_file_from_iso_fp(found, joliet_path=f"/{name}")
            assert found.getvalue() == content
    finally:
        disc.close()


def test_the_script_is_yaml_too() -> None:
    """nuageinit parses all user-data as YAML before it looks at the first line."""
    yaml = pytest.importorskip("yaml")
    script = seed.user_data(KEY)
    assert script.startswith("#!/bin/sh\n")
    assert isinstance(yaml.safe_load(script), str)


def test_the_script_is_right_for_sh() -> None:
    checked = subprocess.run(["sh", "-n"], input=seed.user_data(KEY), text=True)
    assert checked.returncode == 0


def test_the_script_lets_the_key_in_and_switches_updates_off(tmp_path: Path) -> None:
    """Run, with the system's folders below a folder of ours."""
    for name in ("etc/ssh", "root", "dev"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "etc/ssh/sshd_config").write_text("#PermitRootLogin no\nPort 22\n")
    script = seed.user_data(KEY)
    for folder in ("/root", "/etc/", "/dev/"):
        script = script.replace(folder, f"{tmp_path}{folder}")
    service = tmp_path / "service"
    service.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/restarted\n')
    service.chmod(0o755)
    script = script.replace("service ", f"{service} ")
    subprocess.run(["sh", "-eu"], input=script, text=True, check=True)
    keys = (tmp_path / "root/.ssh/authorized_keys").read_text()
    assert keys.split() == KEY.split()[:2]
    assert (tmp_path / "root/.ssh/authorized_keys").stat().st_mode & 0o777 == 0o600
    for name in ("firstboot_pkg_upgrade", "firstboot_freebsd_update"):
        assert (tmp_path / "etc/rc.conf.d" / name).read_text() == f"{name}_enable=NO\n"
    configuration = (tmp_path / "etc/ssh/sshd_config").read_text()
    assert configuration == "PermitRootLogin prohibit-password\nPort 22\n"
    assert (tmp_path / "restarted").read_text() == "sshd restart\n"
    assert (tmp_path / "dev/console").read_text().strip() == seed.READY
    assert script.index("service") < script.index(KEY.split()[1]), "let in before the restart"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with all the programs, none of which does anything."""
    for name in ("qemu-system-x86_64", "qemu-system-aarch64", "qemu-img", "ssh", "ssh-keygen"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("missing", ["qemu-system-x86_64", "qemu-img", "ssh", "ssh-keygen"])
def test_a_missing_program_is_said_at_once(programs: Path, missing: str) -> None:
    (programs / missing).unlink()
    with pytest.raises(failures.ProgramMissing, match=missing):
        machine.check_programs("amd64")


def test_a_missing_firmware_is_said_at_once(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_ARM_FIRMWARE", (str(programs / "none"),))
    machine.check_programs("amd64")
    with pytest.raises(failures.ProgramMissing, match="UEFI"):
        machine.check_programs("aarch64")


def test_each_architecture_has_its_machine(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_ARM_FIRMWARE", (str(programs / "ssh"),))

    def line(architecture: str, accelerator: str) -> str:
        hardware = machine.Hardware(architecture, processors=3, memory=777)
        overlay, odd = Path("/r/disk.qcow2"), Path("/r/a,b.iso")
        return " ".join(machine.command_line(hardware, accelerator, overlay, odd, 2222, Path("/r")))

    amd, arm = line("amd64", "kvm"), line("aarch64", "tcg")
    assert amd.startswith(f"{programs}/qemu-system-x86_64 -accel kvm -cpu host -smp 3 -m 777")
    assert arm.startswith(f"{programs}/qemu-system-aarch64 -machine virt -bios {programs}/ssh")
    for made in (amd, arm):
        assert "hostfwd=tcp:127.0.0.1:2222-:22" in made
        assert "file=/r/a,,b.iso,if=virtio,format=raw,readonly=on" in made
        assert "-no-reboot" in made


def test_every_failure_has_a_status_of_its_own() -> None:
    told = dict(failures.statuses())
    kinds = failures.Failure.__subclasses__()
    assert len(told) == len(kinds) + 1
    assert failures.Failure.status not in told
    assert all(text.endswith(".") for text in told.values())


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    root.mkdir()
    for name in ("tracked", "gone", "new", "ignored", "ünïcode name"):
        (root / name).write_text(name)
    (root / ".gitignore").write_text("ignored\n")
    (root / "link").symlink_to("nowhere")
    for command in (["init", "-q"], ["add", "tracked", "gone"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    (root / "gone").unlink()
    return root


def test_what_is_copied_in_is_what_git_would_know(checkout: Path) -> None:
    names = [".gitignore", "link", "new", "tracked", "ünïcode name"]
    assert guest.files_of(checkout) == names


def test_what_a_guest_sends_back_stays_in_its_folder(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("./junit.xml", "deep/er/bench.json", "../outside", "/root/absolute"):
            member = tarfile.TarInfo(name)
            member.size = 2
            archive.addfile(member, io.BytesIO(b"ab"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    stream.seek(0)
    into = tmp_path / "results"
    into.mkdir()
    found = guest._extract(stream, into)
    assert [path.relative_to(into).as_posix() for path in found] == [
        "junit.xml",
        "deep/er/bench.json",
    ]
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        "junit.xml",
        "bench.json",
    }


def test_help_names_the_statuses() -> None:
    run = Path(__file__).parents[2] / "ci/freebsd-vm/run.py"
    said = subprocess.run([sys.executable, run, "--help"], capture_output=True, text=True)
    assert said.returncode == 0
    for status, text in failures.statuses():
        assert f"  {status}  {text}" in said.stdout
