"""Compiles what is in C for the systems it is meant for, with the headers ziglang carries for them.

Run as a program it prints F2's table and exits with 1 if a compiler disagrees with it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Layout(NamedTuple):
    """What a compiler makes of ``struct splice``: sizes and offsets in bytes (F2)."""

    splice: int
    sp_fd: int
    sp_max: int
    sp_idle: int
    timeval: int


SIXTY_FOUR_BITS = Layout(splice=32, sp_fd=0, sp_max=8, sp_idle=16, timeval=16)

LAYOUTS = {
    "x86_64-freebsd": SIXTY_FOUR_BITS,
    "aarch64-freebsd": SIXTY_FOUR_BITS,
    "riscv64-freebsd": SIXTY_FOUR_BITS,
    "powerpc64-freebsd": SIXTY_FOUR_BITS,
    "x86-freebsd": Layout(splice=20, sp_fd=0, sp_max=4, sp_idle=12, timeval=8),
    "x86_64-openbsd": SIXTY_FOUR_BITS,
    "aarch64-openbsd": SIXTY_FOUR_BITS,
    "x86-openbsd": Layout(splice=24, sp_fd=0, sp_max=4, sp_idle=12, timeval=12),
}

# A system whose headers have no SO_SPLICE.
WITHOUT_SO_SPLICE = "x86_64-linux-musl"


def what_is_missing() -> str:
    """Why nothing can be compiled here, or "" where it can."""
    for module in ("cffi", "ziglang"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
    if not python_headers().joinpath("Python.h").exists():
        return f"Python's headers are not installed: no Python.h in {python_headers()}"
    return ""


def zig_compiler(target: str) -> list[str]:
    return [sys.executable, "-m", "ziglang", "cc", "-target", target]


def compile_for(target: str, source: Path, *include: Path) -> subprocess.CompletedProcess[str]:
    """Compile one C file, every warning an error; the object file lies beside the source."""
    command = [*zig_compiler(target), "-Wall", "-Wextra", "-Werror"]
    for directory in include:
        command += ["-I", str(directory)]
    command += ["-c", str(source), "-o", str(source.with_suffix(".o"))]
    return subprocess.run(command, capture_output=True, text=True)


def compile_binding(
    target: str, directory: Path, *include: Path
) -> subprocess.CompletedProcess[str]:
    """Generate the extension's C as a build on the target would, and compile it."""
    source = directory / "_so_splice.c"
    with contextlib.redirect_stdout(None):  # cffi reports each file
        build_ffi().ffibuilder.emit_c_code(str(source))
    return compile_for(target, source, *include, adapted_headers(target, directory))


def compile_relay(target: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """The relay in C of the benchmark."""
    source = Path(shutil.copy(ROOT / "bench" / "programs" / "relay.c", directory))
    return compile_for(target, source)


def compile_layout(
    target: str, expected: Layout, directory: Path
) -> subprocess.CompletedProcess[str]:
    """Let the target's compiler check every number of a layout."""
    source = directory / "layout.c"
    source.write_text(layout_assertions(expected))
    return compile_for(target, source)


def build_ffi() -> ModuleType:
    """The build script, loaded from its place without a change to sys.path."""
    spec = importlib.util.spec_from_file_location("build_ffi", ROOT / "build_ffi.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def layout_assertions(layout: Layout) -> str:
    measured = {
        "sizeof(struct splice)": layout.splice,
        "offsetof(struct splice, sp_fd)": layout.sp_fd,
        "offsetof(struct splice, sp_max)": layout.sp_max,
        "offsetof(struct splice, sp_idle)": layout.sp_idle,
        "sizeof(struct timeval)": layout.timeval,
    }
    headers = ("sys/types.h", "sys/socket.h", "sys/time.h", "stddef.h")
    return "".join(
        [f"#include <{header}>\n" for header in headers]
        + [f'_Static_assert({what} == {n}, "F2");\n' for what, n in measured.items()]
    )


def modelled_headers(
    directory: Path,
    so_splice: str = "0x1023",
    fields: str = "int sp_fd; off_t sp_max; struct timeval sp_idle;",
) -> Path:
    """A sys/socket.h that adds SO_SPLICE to that of a system without it."""
    headers = directory / "headers" / "sys"
    headers.mkdir(parents=True)
    (headers / "socket.h").write_text(
        "#include_next <sys/socket.h>\n#include <sys/time.h>\n"
        f"#define SO_SPLICE {so_splice}\nstruct splice {{ {fields} }};\n"
    )
    return headers.parent


def python_headers() -> Path:
    return Path(sysconfig.get_path("include"))


def adapted_headers(target: str, directory: Path) -> Path:
    """A copy of this Python's headers whose pyconfig.h fits the target.

    This host's says how long a ``long`` is here, and leaves out ``_BSD_SOURCE``, without which
    OpenBSD's headers hide ``struct splice`` behind ``_XOPEN_SOURCE``; OpenBSD's own defines it.
    A copy of all, since ``#include "pyconfig.h"`` looks beside the header that says so first.
    """
    copy = directory / "python"
    shutil.copytree(python_headers(), copy)
    text = host_pyconfig().read_text()
    sizes = {
        "LONG": "__SIZEOF_LONG__",
        "SIZE_T": "__SIZEOF_SIZE_T__",
        "UINTPTR_T": "__SIZEOF_POINTER__",
        "VOID_P": "__SIZEOF_POINTER__",
    }
    for name, size in sizes.items():
        line = rf"^#define SIZEOF_{name} \d+$"
        text, found = re.subn(line, f"#define SIZEOF_{name} {size}", text, flags=re.MULTILINE)
        assert found == 1, f"pyconfig.h has {found} lines for SIZEOF_{name}"
    if "openbsd" in target:
        text = "#define _BSD_SOURCE 1\n" + text
    (copy / "pyconfig.h").write_text(text)
    return copy


def host_pyconfig() -> Path:
    """The host's pyconfig.h; Debian keeps the real one in a directory named after the machine."""
    headers = python_headers()
    machine = sysconfig.get_config_var("MULTIARCH") or ""
    of_machine = headers.parent / machine / headers.name / "pyconfig.h"
    return of_machine if of_machine.exists() else headers / "pyconfig.h"


def main() -> int:
    if missing := what_is_missing():
        print(f"cross-compile: {missing}", file=sys.stderr)
        return 1
    failures = 0
    print(f"{'target':18}" + "".join(f"{name:>9}" for name in Layout._fields))
    for target, layout in LAYOUTS.items():
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            checks = (
                compile_layout(target, layout, directory),
                compile_binding(target, directory),
                compile_relay(target, directory),
            )
        errors = "".join(check.stderr for check in checks if check.returncode)
        failures += bool(errors)
        numbers = "".join(f"{number:9}" for number in layout)
        print(f"{target:18}{numbers}  {'NOT SO' if errors else 'ok'}\n{errors}", end="")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
