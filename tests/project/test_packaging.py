"""What is built, what is published, and what pip makes of it on each system."""

from __future__ import annotations

import email
import errno
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import parse_wheel_filename

import cross_compile
from freebsd_splice import __version__
from support.slowness import SLOWNESS

ROOT = cross_compile.ROOT
PIP_CHOICE = Path(__file__).with_name("pip_choice.py")

BSDS = (
    "freebsd_14_3_release_amd64",
    "freebsd_14_3_release_p2_amd64",
    "freebsd_15_0_release_arm64",
    "freebsd_15_1_release_p1_amd64",
    "openbsd_7_7_amd64",
    "openbsd_7_8_arm64",
)
OTHERS = (
    "manylinux_2_36_x86_64",
    "musllinux_1_2_aarch64",
    "macosx_14_0_arm64",
    "win_amd64",
)
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="models FreeBSD on Linux")


def run(*command: str | Path, **variables: str) -> str:
    """What a command printed; its failure is the test's."""
    result = subprocess.run(
        command,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=110 * SLOWNESS,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def build(source: Path, *options: str, **variables: str) -> tuple[Path, str]:
    """Build with what is installed here, needing no index; where the files are, and the log."""
    pytest.importorskip("build", reason="builds with PyPA's build")
    made = source / "dist"
    command = (sys.executable, "-m", "build", "--no-isolation", "--outdir", str(made))
    return made, run(*command, *options, source, **variables)


def only(directory: Path, pattern: str) -> Path:
    (found,) = directory.glob(pattern)
    return found


def copy_of_the_tree(directory: Path) -> Path:
    leftovers = (".*", "build", "dist", "*.egg-info", "__pycache__", "*.so", "venv")
    return Path(shutil.copytree(ROOT, directory, ignore=shutil.ignore_patterns(*leftovers)))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_the_tree(tmp_path_factory.mktemp("tree") / "freebsd-splice")


@pytest.fixture(scope="module")
def sdist(tree: Path) -> Path:
    return only(build(tree, "--sdist")[0], "*.tar.gz")


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pip itself makes of the sdist on this system."""
    made = tmp_path_factory.mktemp("wheel")
    offline = ("--no-deps", "--no-index", "--no-build-isolation", "--no-cache-dir")
    run(sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", made, sdist)
    return only(made, "*.whl")


def pip_choice(directory: Path, *platforms: str) -> Mapping[str, str | None]:
    answer: Mapping[str, str | None] = json.loads(
        run(sys.executable, "-W", "ignore", PIP_CHOICE, directory, *platforms)
    )
    return answer


def test_every_system_gets_the_sdist(sdist: Path, tmp_path: Path) -> None:
    """F37: the sdist is all that is published."""
    shutil.copy(sdist, tmp_path)
    chosen = pip_choice(tmp_path, *BSDS, *OTHERS)
    assert chosen == dict.fromkeys((*BSDS, *OTHERS), sdist.name)


def test_a_wheel_built_here_is_not_taken_on_the_bsds(
    sdist: Path, wheel: Path, tmp_path: Path
) -> None:
    """F37."""
    shutil.copy(sdist, tmp_path)
    shutil.copy(wheel, tmp_path)
    (built_for,) = {tag.platform for tag in parse_wheel_filename(wheel.name)[3]}
    others = [name for name in BSDS if name != built_for]
    chosen = pip_choice(tmp_path, built_for, *others)
    assert chosen == {built_for: wheel.name, **dict.fromkeys(others, sdist.name)}


def test_a_wheel_for_any_platform_would_be_taken_on_the_bsds(sdist: Path, tmp_path: Path) -> None:
    """F37: why there must be none."""
    shutil.copy(sdist, tmp_path)
    pure = sdist.name.replace(".tar.gz", "-py3-none-any.whl")
    (tmp_path / pure).touch()
    assert pip_choice(tmp_path, *BSDS) == dict.fromkeys(BSDS, pure)


def platforms_of(wheel: Path) -> set[str]:
    """The platforms in the wheel's name and, which must be the same, in its metadata."""
    in_name = {tag.platform for tag in parse_wheel_filename(wheel.name)[3]}
    written = metadata(wheel, "WHEEL").get_all("Tag", [])
    assert {str(tag).rpartition("-")[2] for tag in written} == in_name
    return in_name


def metadata(wheel: Path, name: str) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (found,) = [entry for entry in archive.namelist() if entry.endswith(f".dist-info/{name}")]
        return email.message_from_bytes(archive.read(found))


def test_a_wheel_names_the_platform_it_was_built_on(wheel: Path) -> None:
    """F37."""
    here = sysconfig.get_platform()
    for separator in "-. ":
        here = here.replace(separator, "_")
    assert platforms_of(wheel) == {here.lower()}


def test_a_wheel_can_not_be_forced_to_fit_any_platform(tree: Path, tmp_path: Path) -> None:
    """F37."""
    source = shutil.copytree(tree, tmp_path / "source")
    made, _ = build(source, "--wheel", "-C--build-option=--plat-name=any")
    assert "any" not in platforms_of(only(made, "*.whl"))


@pytest.mark.skipif(sys.platform.startswith(("freebsd", "openbsd")), reason="has the extension")
def test_a_wheel_built_elsewhere_is_pure_python(wheel: Path) -> None:
    assert wheel.name.startswith(f"freebsd_splice-{__version__}-py3-none-")
    assert metadata(wheel, "WHEEL")["Root-Is-Purelib"] == "true"


def test_type_checkers_follow_an_editable_install(tree: Path, tmp_path: Path) -> None:
    """And no finder, which they don't call."""
    hook = "import sys, setuptools.build_meta as made; made.build_editable(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", hook, tmp_path], cwd=tree, check=True, capture_output=True
    )
    with zipfile.ZipFile(only(tmp_path, "*.whl")) as archive:
        held = [name for name in archive.namelist() if "/" not in name]
        assert [Path(name).suffix for name in held] == [".pth"]
        assert Path(archive.read(held[0]).decode().strip()).resolve() == tree.resolve()


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    package = ROOT / "freebsd_splice"
    modules = {path.relative_to(ROOT).as_posix() for path in package.rglob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held - {name for name in held if name.endswith(".so")} == {
        *modules,
        "freebsd_splice/py.typed",
        f"freebsd_splice-{__version__}.data/data/share/man/man1/freebsd-splice.1",
        f"freebsd_splice-{__version__}.data/data/share/man/man3/freebsd_splice.3",
    }


def test_the_checkers_find_nothing_wrong(sdist: Path, wheel: Path) -> None:
    for module in ("twine", "check_wheel_contents"):
        pytest.importorskip(module, reason="one of the checkers")
    run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
    run(sys.executable, "-m", "check_wheel_contents", wheel)


def test_the_sdist_holds_all_that_building_and_testing_need(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    top = ("LICENSE", "build_ffi.py", "pyproject.toml", "setup.py", "tox.ini")
    below = [
        path.relative_to(ROOT).as_posix()
        for directory, pattern in (
            *(("freebsd_splice", "*.py"), ("tests", "*.py"), ("ci", "*.py"), ("ci", "*.sh")),
            *(("docs", "*.md"), ("docs", "*.[13]"), ("docs", "*.svg"), ("tools", "*.py")),
            *(("contrib", "*file"), ("contrib", "*.in")),
        )
        for path in (ROOT / directory).rglob(pattern)
    ]
    pages = [path.name for path in ROOT.glob("*.md")]
    assert {*top, *pages, *below, "freebsd_splice/py.typed"} <= held
    assert not [name for name in held if name.endswith((".pyc", ".so"))]


@pytest.mark.parametrize("system", ["FreeBSD", "OpenBSD"])
def test_cffi_is_the_only_dependency_on_the_bsds(wheel: Path, system: str) -> None:
    assert dependencies(wheel, system) == ["cffi"]


@pytest.mark.parametrize("system", ["Linux", "Darwin", "Windows"])
def test_there_is_no_dependency_elsewhere(wheel: Path, system: str) -> None:
    assert dependencies(wheel, system) == []


def test_the_version_is_the_same_everywhere() -> None:
    for name, pattern in {
        "pyproject.toml": r'^version = "(.+)"$',
        "contrib/port/net/py-freebsd-splice/Makefile": r"^DISTVERSION=\t(.+)$",
        "CHANGELOG.md": r"^## ([\d.]+)",
    }.items():
        found = re.search(pattern, (ROOT / name).read_text("utf-8"), re.M)
        assert found is not None, name
        assert found[1] == __version__, name


def dependencies(wheel: Path, system: str) -> list[str]:
    lines = metadata(wheel, "METADATA").get_all("Requires-Dist", [])
    required = [Requirement(str(line)) for line in lines]
    environment = {"platform_system": system, "extra": ""}
    return [one.name for one in required if one.marker is None or one.marker.evaluate(environment)]


class ModelledFreeBSDBuild:
    """A build on this Linux to which ``platform.system()`` says FreeBSD, with headers as given."""

    def __init__(self, tree: Path, directory: Path) -> None:
        if missing := cross_compile.what_is_missing():
            if os.environ.get("CI"):
                pytest.fail(f"the extension can't be built: {missing}")
            pytest.skip(missing)
        self.source = shutil.copytree(tree, directory / "source")
        site = directory / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(
            'import platform\nplatform.system = lambda: "FreeBSD"\n'
        )
        target = f"{platform.machine()}-linux-gnu"
        compiler = shlex.join(cross_compile.zig_compiler(target))
        self.variables = {
            "CC": compiler,
            "LDSHARED": f"{compiler} -shared",
            "PYTHONPATH": str(site),
        }
        self.include = [cross_compile.adapted_headers(target, directory)]

    def wheel(self, *headers: Path) -> tuple[Path, str]:
        flags = shlex.join(f"-I{directory}" for directory in (*headers, *self.include))
        made, log = build(self.source, "--wheel", CPPFLAGS=flags, **self.variables)
        return only(made, "*.whl"), log


@pytest.mark.slow  # ziglang's first link on a machine prepares its libc
@on_linux
def test_headers_with_so_splice_give_an_extension(tree: Path, tmp_path: Path) -> None:
    wheel, _ = ModelledFreeBSDBuild(tree, tmp_path).wheel(cross_compile.modelled_headers(tmp_path))
    assert "-none-" not in wheel.name
    assert "any" not in platforms_of(wheel)
    installed = tmp_path / "installed"
    shutil.unpack_archive(wheel, installed, "zip")
    (installed / "freebsd_splice" / "__init__.py").write_text("")  # the extension alone
    program = installed / "program.py"
    program.write_text(
        "from freebsd_splice._so_splice import ffi, lib\n"
        'splice = ffi.new("struct splice *", {"sp_fd": 3, "sp_max": 2**63 - 1})\n'
        'size = ffi.sizeof("struct splice")\n'
        "result = lib.setsockopt(-1, lib.SOL_SOCKET, lib.SO_SPLICE, splice, size)\n"
        "print(hex(lib.SO_SPLICE), size, splice.sp_max, result, ffi.errno)\n"
        "print(lib.give_up_all_but(b'stdio'), ffi.errno)\n"
    )
    said = run(sys.executable, program)
    assert said.split()[:5] == ["0x1023", "32", str(2**63 - 1), "-1", str(errno.EBADF)]
    assert said.split()[5:] == ["-1", str(errno.ENOSYS)]  # OpenBSD alone has pledge(2)


@on_linux
def test_headers_without_so_splice_install_without_an_extension(tree: Path, tmp_path: Path) -> None:
    """F5: a FreeBSD before 14.3."""
    wheel, log = ModelledFreeBSDBuild(tree, tmp_path).wheel()
    assert "declare no SO_SPLICE; installing without the extension" in log
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if "_so_splice" in name]
    assert "any" not in platforms_of(wheel)


@pytest.mark.slow
def test_a_clean_environment_installs_the_sdist(sdist: Path, tmp_path: Path) -> None:
    """With pip's own isolated build, which fetches setuptools."""
    venv.create(tmp_path / "venv", with_pip=True, symlinks=os.name != "nt")
    scripts = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    run(scripts / "python", "-m", "pip", "install", sdist)
    shown = run(scripts / "python", "-I", "-c", "import freebsd_splice as f; print(f.__file__)")
    assert Path(shown.strip()).is_relative_to(tmp_path)
    assert "usage" in run(scripts / "freebsd-splice", "--help")


def test_every_fact_quoted_in_the_tree_has_its_heading() -> None:
    headings = set(
        re.findall(r"^### (F\d+)$", (ROOT / "docs/so_splice.md").read_text("utf-8"), re.M)
    )
    quoting = [*ROOT.glob("*.py"), *ROOT.glob("*.md")]
    for directory in ("freebsd_splice", "tests", "docs"):
        quoting += [*(ROOT / directory).rglob("*.py"), *(ROOT / directory).rglob("*.md")]
    quoted = {fact for path in quoting for fact in re.findall(r"\bF\d+\b", path.read_text("utf-8"))}
    assert quoted <= headings
