"""``tools/environment``, which both commands of the README begin with, on systems of all kinds.

Python and the system's tools are stand-ins here, small shell scripts in a PATH of their own; one
case has the real Python.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from programs.processes import PATIENCE, until

ROOT = Path(__file__).parents[2]
VERSION = ".".join(map(str, sys.version_info[:3]))
VENV_PACKAGE = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
HERE = ".venv/bin/python"
MAKING = f"Making .venv with python3 (Python {VERSION})"
INSTALLING = (
    "Installing freebsd-splice into .venv by pip install -e '.[test]' (its text: .venv.log)"
)

UTILITIES = (
    *("sh", "cat", "cksum", "cp", "cut", "dirname", "env", "find", "mkdir", "mv", "ps", "rm"),
    *("sed", "sleep", "tail", "uname"),
)

#: A Python of the version in ``$0.version``, without the module in ``$0.lacks``.
PYTHON = f"""
calls=$(dirname "$0")/calls
case "$1 $2" in
"-m venv")
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
    [ ! -e "$0.stops" ] || {{ mv "$0.stops" "$0.stopped"; exec sleep 600; }} ;;
"-m pip")
    [ ! -e "$0.lacks" ] || exit 1
    [ "$3" = --version ] && exit
    shift 2; echo "$0: pip $*" >>"$CALLS"; echo "pip's text"
    while [ -e "$CALLS.wait" ]; do sleep 0.05; done
    [ ! -e "$CALLS.fails" ] ;;
*)
    exec '{sys.executable}' -I -c 'import sys
said, lacks, code = sys.argv[1:]
if said: sys.version_info = tuple(map(int, said.split(".")))
if lacks: sys.modules[lacks] = None
sys.base_prefix = "/stand-in"
exec(code)' "$(cat "$0.version" 2>/dev/null)" "$(cat "$0.lacks" 2>/dev/null)" "$2" ;;
esac
"""

#: A package manager: what it installs is there then.
MANAGER = """
echo "${0##*/} $*" >>"$CALLS"
echo "dpkg's text: Selecting previously unselected package"
[ ! -e "$CALLS.fails" ] || { echo "E: Unable to fetch some archives"; exit 100; }
[ "$1" = update ] || { bin=${0%/*}; rm -f "$bin/python3.lacks"
    if [ -e "$bin/python3.later" ]; then mv "$bin/python3.later" "$bin/python3"; fi; }
"""


class Machine:
    """A checkout, and the programs that the system has."""

    def __init__(self, directory: Path, made: contextlib.ExitStack) -> None:
        self.checkout, self.bin = directory / "checkout", directory / "bin"
        self.calls = directory / "calls"
        self._made = made
        (self.checkout / "tools").mkdir(parents=True)
        shutil.copy(ROOT / "tools/environment", self.checkout / "tools")
        for name in ("pyproject.toml", "setup.py", "build_ffi.py"):
            (self.checkout / name).write_text("")
        (self.checkout / "freebsd_splice").mkdir()
        self.bin.mkdir()
        for name in UTILITIES:
            found = shutil.which(name)
            assert found is not None, name
            (self.bin / name).symlink_to(found)
        self.has("uname", "echo Linux")
        self.has("python3", PYTHON)
        self.has("curl", "")
        self.user(1000)

    def has(self, name: str, script: str) -> Path:
        program = self.bin / name
        program.unlink(missing_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return program

    def user(self, number: int) -> None:
        self.has("id", f'[ "$1" = -u ] && echo {number} || echo somebody')

    def start(self, extra: str = "test", **variables: str) -> subprocess.Popen[str]:
        environment = {"PATH": str(self.bin), "CALLS": str(self.calls), **variables}
        started = subprocess.Popen(
            ["/bin/sh", "tools/environment", extra],
            cwd=self.checkout,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._made.callback(self._end, started)
        return started

    def run(self, extra: str = "test", **variables: str) -> tuple[int, str, list[str]]:
        """The exit status, what it gives, and the lines that it says."""
        return self.end(self.start(extra, **variables))

    @staticmethod
    def end(started: subprocess.Popen[str]) -> tuple[int, str, list[str]]:
        given, said = started.communicate(timeout=10 * PATIENCE)
        return started.returncode, given.strip(), said.splitlines()

    @property
    def called(self) -> list[str]:
        """What pip and the package managers were asked for."""
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    @property
    def log(self) -> str:
        return (self.checkout / ".venv.log").read_text()

    @staticmethod
    def _end(started: subprocess.Popen[str]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.communicate()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with contextlib.ExitStack() as made:
        yield Machine(tmp_path, made)


def test_each_step_says_one_line(machine: Machine) -> None:
    assert machine.run() == (0, HERE, [MAKING, INSTALLING])
    assert machine.called == [f"{HERE}: pip install --disable-pip-version-check -e .[test]"]
    assert machine.log == "pip's text\n"


def test_what_is_installed_already_is_left_alone(machine: Machine) -> None:
    """Nor does it need an index, then."""
    machine.run()
    (machine.bin / "python3").unlink()
    assert machine.run() == (0, HERE, [])
    assert len(machine.called) == 1


def test_what_has_changed_is_installed_again(machine: Machine) -> None:
    machine.run()
    (machine.checkout / "pyproject.toml").write_text("dependencies")
    assert machine.run() == (0, HERE, [INSTALLING])
    assert machine.run("demo") == (0, HERE, [INSTALLING.replace(".[test]", ".")])


@pytest.mark.parametrize("system", ["FreeBSD", "OpenBSD"])
def test_an_extension_that_is_gone_is_built_again(machine: Machine, system: str) -> None:
    machine.has("uname", f"echo {system}")
    extension = machine.checkout / "freebsd_splice/_so_splice.abi3.so"
    extension.touch()
    machine.run()
    assert machine.run() == (0, HERE, [])
    extension.unlink()
    assert machine.run() == (0, HERE, [INSTALLING])


# What the system lacks


def without(machine: Machine, module: str = "ensurepip") -> None:
    (machine.bin / "python3.lacks").write_text(module)


def test_without_sudo_it_says_what_to_install_and_how(machine: Machine) -> None:
    without(machine)
    (machine.bin / "curl").unlink()
    machine.has("apt-get", MANAGER)
    status, given, said = machine.run("demo")
    assert (status, given) == (1, "")
    assert said == [
        f"This system lacks {VENV_PACKAGE} curl, and there is no sudo to install it with. As root:",
        f"    apt-get install -y {VENV_PACKAGE} curl",
        "Then run this again.",
    ]
    assert machine.called == []
    assert not (machine.checkout / ".venv").exists()


@pytest.mark.parametrize("how", ["root", "sudo", "doas"])
def test_what_is_missing_is_installed_and_its_text_logged(machine: Machine, how: str) -> None:
    without(machine)
    machine.has("apt-get", MANAGER)
    if how == "root":
        machine.user(0)
    else:
        machine.has(how, 'exec "$@"')
    by = "apt-get" if how == "root" else f"{how} apt-get"
    assert machine.run() == (
        0,
        HERE,
        [
            "Asking apt-get what there is (its text: .venv.log)",
            f"Installing {VENV_PACKAGE} by {by} install -y (its text: .venv.log)",
            MAKING,
            INSTALLING,
        ],
    )
    assert machine.called[:2] == ["apt-get update", f"apt-get install -y {VENV_PACKAGE}"]
    assert machine.log.count("dpkg's text") == 2


def test_a_package_that_can_not_be_had(machine: Machine) -> None:
    without(machine)
    machine.user(0)
    machine.has("apt-get", MANAGER)
    Path(f"{machine.calls}.fails").touch()
    status, _, said = machine.run()
    assert status == 1
    assert "E: Unable to fetch some archives" in said
    assert said[-2].startswith("This failed: env DEBIAN_FRONTEND=noninteractive apt-get install")
    log = machine.checkout / ".venv.log"
    advice = f"By hand, as root: apt-get install -y {VENV_PACKAGE}"
    assert said[-1] == f"The whole text is in {log}. {advice}"


def test_freebsds_packages_are_pkgs(machine: Machine) -> None:
    (machine.bin / "python3").rename(machine.bin / "python3.later")
    machine.has("pkg", MANAGER)
    machine.user(0)
    status, given, said = machine.run()
    assert (status, given) == (0, HERE)
    assert said[0] == "Installing python3 by pkg install -y (its text: .venv.log)"


def test_a_system_whose_packages_it_does_not_know(machine: Machine) -> None:
    (machine.bin / "curl").unlink()
    assert machine.run("demo") == (1, "", ["Please install curl, and run this again."])


def test_a_client_that_is_gone_is_missed_later_too(machine: Machine) -> None:
    machine.run("demo")
    (machine.bin / "curl").unlink()
    assert machine.run("demo") == (1, "", ["Please install curl, and run this again."])
    assert machine.run("test")[0] == 0


def test_a_python_that_can_make_environments_needs_no_package(machine: Machine) -> None:
    without(machine)
    machine.has("python3.12", PYTHON)
    status, given, said = machine.run()
    assert (status, given) == (0, HERE)
    assert said[0] == f"Making .venv with python3.12 (Python {VERSION})"


def test_a_python_for_which_no_package_helps(machine: Machine) -> None:
    machine.user(0)
    without(machine)
    machine.has("apt-get", "exit 0")
    status, _, said = machine.run()
    assert status == 1
    assert said[-2:] == needed("python3 can't make environments (it has no module ensurepip)")


# Pythons that are too old


def needed(why: str, command: str = "test") -> list[str]:
    return [
        f"Python 3.10 or later is needed, and {why}.",
        f"Install one and name it: PYTHON=/path/to/python3.12 sh tools/{command}",
    ]


def test_an_old_python_is_said_before_anything_is_installed(machine: Machine) -> None:
    (machine.bin / "python3.version").write_text("3.9.2")
    (machine.bin / "curl").unlink()
    machine.user(0)
    machine.has("apt-get", MANAGER)
    assert machine.run("demo") == (1, "", needed("python3 is Python 3.9.2", "demo"))
    assert machine.called == []


def test_a_system_that_has_but_an_old_python_to_install(machine: Machine) -> None:
    (machine.bin / "python3").unlink()
    machine.user(0)
    machine.has("apt-get", MANAGER)
    machine.has("apt-cache", 'echo "  Candidate: 3.9.2-3"')
    status, _, said = machine.run()
    assert status == 1
    assert said[-2:] == needed("python3 is 3.9.2-3 in this system's packages")
    assert machine.called == ["apt-get update"]


def test_a_system_that_has_a_python_to_install(machine: Machine) -> None:
    (machine.bin / "python3").rename(machine.bin / "python3.later")
    machine.user(0)
    machine.has("apt-get", MANAGER)
    machine.has("apt-cache", 'echo "  Candidate: 3.11.2-1+b1"')
    assert machine.run()[:2] == (0, HERE)
    assert machine.called[1] == "apt-get install -y python3 python3-venv"


def test_a_python_that_was_asked_for(machine: Machine) -> None:
    missing = machine.bin / "python9"
    assert machine.run(PYTHON=str(missing)) == (1, "", needed(f"PYTHON={missing} is not one"))
    machine.run()
    chosen = machine.has("chosen", PYTHON.replace("/stand-in", "/chosen"))
    status, given, said = machine.run(PYTHON=str(chosen))
    assert (status, given) == (0, HERE)
    assert said[0].startswith(f"Making .venv with {chosen} (Python {VERSION}), as the one there is")
    assert machine.run(PYTHON=str(chosen)) == (0, HERE, [])


# A .venv that is there


BROKEN = f"{MAKING}, as the one there is broken, too old or not of this Python"


def test_one_without_pip_is_remade(machine: Machine) -> None:
    """As an interrupted run leaves it that sets no mark."""
    (machine.checkout / ".venv/bin").mkdir(parents=True)
    shutil.copy(machine.bin / "python3", machine.checkout / HERE)
    (machine.checkout / f"{HERE}.lacks").write_text("pip")
    assert machine.run() == (0, HERE, [BROKEN, INSTALLING])


def test_one_that_is_too_old_is_remade(machine: Machine) -> None:
    machine.run()
    (machine.checkout / f"{HERE}.version").write_text("3.9.2")
    assert machine.run() == (0, HERE, [BROKEN, INSTALLING])


def test_one_whose_python_is_gone_is_remade(machine: Machine) -> None:
    machine.run()
    (machine.checkout / HERE).unlink()
    (machine.checkout / HERE).symlink_to("/nowhere/python3")
    assert machine.run() == (0, HERE, [BROKEN, INSTALLING])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_one_is_remade(machine: Machine, number: signal.Signals) -> None:
    (machine.bin / "python3.stops").touch()
    started = machine.start()
    until((machine.bin / "python3.stopped").exists)
    os.killpg(started.pid, number)
    assert machine.end(started)[0] != 0
    (machine.checkout / ".venv/half").touch()
    again = "An earlier run did not finish .venv: making it anew"
    assert machine.run() == (0, HERE, [again, MAKING, INSTALLING])
    assert not (machine.checkout / ".venv/half").exists()
    assert machine.run() == (0, HERE, [])


def test_one_interrupted_while_pip_installs_is_remade(machine: Machine) -> None:
    wait = Path(f"{machine.calls}.wait")
    wait.touch()
    started = machine.start()
    until(lambda: machine.called)
    os.killpg(started.pid, signal.SIGINT)
    machine.end(started)
    wait.unlink()
    assert machine.run()[2][1:] == [MAKING, INSTALLING]


def test_where_pip_fails_the_environment_is_kept(machine: Machine) -> None:
    fails = Path(f"{machine.calls}.fails")
    fails.touch()
    status, given, said = machine.run()
    assert (status, given) == (1, "")
    assert said[2] == "pip's text"
    log = machine.checkout / ".venv.log"
    assert said[-1] == (f"The whole text is in {log}. pip needs a package index it can reach.")
    fails.unlink()
    assert machine.run() == (0, HERE, [INSTALLING])


def test_two_at_once_work_one_after_the_other(machine: Machine) -> None:
    wait = Path(f"{machine.calls}.wait")
    wait.touch()
    first = machine.start()
    until(lambda: machine.called)
    second = machine.start()
    assert second.stderr is not None
    waiting = second.stderr.readline()
    assert waiting.startswith(f"Waiting for process {first.pid}, which works on .venv")
    wait.unlink()
    assert machine.end(first)[:2] == (0, HERE)
    assert machine.end(second) == (0, HERE, [])
    assert len(machine.called) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_checkout_of_somebody_elses(machine: Machine) -> None:
    machine.checkout.chmod(0o555)
    try:
        said = f"somebody can't write in {machine.checkout}, where .venv is made: use a checkout "
        assert machine.run() == (1, "", [f"{said}of your own."])
    finally:
        machine.checkout.chmod(0o755)


#: All that pip needs of a project: a wheel with nothing in it.
BACKEND = """
import os, zipfile

def build_editable(directory, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(os.path.join(directory, "empty-1-py3-none-any.whl"), "w") as wheel:
        add = lambda name, text: wheel.writestr(f"empty-1.dist-info/{name}", text)
        add("METADATA", "Metadata-Version: 2.1\\nName: empty\\nVersion: 1\\n")
        add("WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        add("RECORD", "")
    return "empty-1-py3-none-any.whl"
"""


@pytest.mark.slow
def test_the_real_python_killed_while_it_makes_the_environment(machine: Machine) -> None:
    """It has no pip then, or half of one."""
    pytest.importorskip("ensurepip", reason="this Python makes no environments")
    (machine.bin / "python3").unlink()
    (machine.bin / "python3").symlink_to(Path(sys.executable).resolve())
    (machine.checkout / "backend.py").write_text(BACKEND)
    (machine.checkout / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    started = machine.start()
    until((machine.checkout / HERE).exists)
    os.killpg(started.pid, signal.SIGINT)
    assert machine.end(started)[0] != 0
    status, given, said = machine.run()
    assert (status, given) == (0, HERE), said
    assert said[1:] == [MAKING, INSTALLING]
    pip = [str(machine.checkout / HERE), "-m", "pip", "show", "empty"]
    assert "Version: 1" in subprocess.run(pip, capture_output=True, text=True, check=True).stdout


def test_the_commands_that_use_it_exist() -> None:
    uses: Callable[[str], bool] = lambda name: "tools/environment" in (ROOT / name).read_text()  # noqa: E731
    assert all(map(uses, ("tools/demo", "tools/test", ".ci/run")))
