"""The extension's C: what each target's compiler says of it (F1, F2)."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import cross_compile
from cross_compile import LAYOUTS, WITHOUT_SO_SPLICE
from support.slowness import SLOWNESS


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    missing = cross_compile.what_is_missing()
    if missing and os.environ.get("CI"):
        pytest.fail(f"the binding can't be checked: {missing}")
    if missing:
        pytest.skip(missing)


@pytest.mark.parametrize("target", LAYOUTS)
def test_the_binding_compiles_without_a_warning(target: str, tmp_path: Path) -> None:
    result = cross_compile.compile_binding(target, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


@pytest.mark.parametrize("target", LAYOUTS)
def test_the_benchmarks_relay_compiles_without_a_warning(target: str, tmp_path: Path) -> None:
    result = cross_compile.compile_relay(target, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


@pytest.mark.parametrize("target", LAYOUTS)
def test_the_compiler_agrees_with_the_layout_table(target: str, tmp_path: Path) -> None:
    """F2."""
    result = cross_compile.compile_layout(target, LAYOUTS[target], tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("field", cross_compile.Layout._fields)
@pytest.mark.parametrize("target", ["x86_64-freebsd", "x86-openbsd"])
def test_a_wrong_number_in_the_layout_table_is_noticed(
    target: str, field: str, tmp_path: Path
) -> None:
    right = LAYOUTS[target]
    wrong = right._replace(**{field: getattr(right, field) + 4})
    result = cross_compile.compile_layout(target, wrong, tmp_path)
    assert result.returncode != 0
    assert "static assertion failed" in result.stderr


def test_headers_without_so_splice_are_a_clear_compile_error(tmp_path: Path) -> None:
    """F5."""
    result = cross_compile.compile_binding(WITHOUT_SO_SPLICE, tmp_path)
    assert result.returncode != 0
    assert "sys/socket.h declares no SO_SPLICE" in result.stderr


def test_headers_with_so_splice_added_compile(tmp_path: Path) -> None:
    headers = cross_compile.modelled_headers(tmp_path)
    result = cross_compile.compile_binding(WITHOUT_SO_SPLICE, tmp_path, headers)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("so_splice", "fields", "complaint"),
    [
        ("0x1024", "int sp_fd; off_t sp_max; struct timeval sp_idle;", "SO_SPLICE is 0x1023"),
        ("0x1023", "off_t sp_max; int sp_fd; struct timeval sp_idle;", "sp_fd is the first field"),
        ("0x1023", "int sp_fd; int sp_max; struct timeval sp_idle;", "sp_max has 64 bits"),
        ("0x1023", "int sp_fd; size_t sp_max; struct timeval sp_idle;", "sp_max is signed"),
        ("0x1023", "int sp_fd; struct timeval sp_idle; off_t sp_max;", "sp_idle lies after"),
    ],
)
def test_wrong_headers_are_a_compile_error(
    so_splice: str, fields: str, complaint: str, tmp_path: Path
) -> None:
    headers = cross_compile.modelled_headers(tmp_path, so_splice, fields)
    result = cross_compile.compile_binding(WITHOUT_SO_SPLICE, tmp_path, headers)
    assert result.returncode != 0
    assert complaint in result.stderr


@pytest.mark.parametrize("target", LAYOUTS)
def test_setup_finds_so_splice_in_headers_that_have_it(target: str) -> None:
    """F5."""
    build_ffi = cross_compile.build_ffi()
    assert build_ffi.headers_have_so_splice(cross_compile.zig_compiler(target))


def test_setup_finds_no_so_splice_in_headers_without_it() -> None:
    """F5: an older FreeBSD installs without the extension."""
    build_ffi = cross_compile.build_ffi()
    assert not build_ffi.headers_have_so_splice(cross_compile.zig_compiler(WITHOUT_SO_SPLICE))


def test_setup_takes_compiler_and_flags_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = cross_compile.modelled_headers(tmp_path)
    monkeypatch.setenv("CC", shlex.join(cross_compile.zig_compiler(WITHOUT_SO_SPLICE)))
    monkeypatch.setenv("CPPFLAGS", f"-I{headers}")
    assert cross_compile.build_ffi().headers_have_so_splice()


def test_setup_without_a_compiler_says_so() -> None:
    with pytest.raises(RuntimeError, match="needs a C compiler here: no-such-compiler"):
        cross_compile.build_ffi().headers_have_so_splice(["no-such-compiler"])


def test_setup_without_system_headers_says_so() -> None:
    compiler = cross_compile.zig_compiler("x86_64-freestanding")
    with pytest.raises(RuntimeError, match=r"can't read sys/socket\.h"):
        cross_compile.build_ffi().headers_have_so_splice(compiler)


@pytest.mark.slow
def test_the_check_runs_as_a_program() -> None:
    program = [sys.executable, str(Path(cross_compile.__file__))]
    result = subprocess.run(program, capture_output=True, text=True, timeout=60 * SLOWNESS)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count(" ok\n") == len(LAYOUTS)
