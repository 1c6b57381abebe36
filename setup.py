"""The parts of the build that pyproject.toml can't express: the extension, and the wheels' tags."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel, get_platform

KERNELS_WITH_SO_SPLICE = ("FreeBSD", "OpenBSD")


class PlatformWheel(bdist_wheel):
    """A wheel whose tag names the platform, even if it is pure Python.

    On FreeBSD too, pip prefers a wheel tagged ``any`` to the sdist, and would install it without
    the extension (F37). See docs/packaging.md.
    """

    def finalize_options(self) -> None:
        if self.plat_name in (None, "any"):
            self.plat_name = get_platform(None)
        super().finalize_options()


def extension() -> dict[str, Any]:
    """Return the extension as a keyword for setup(), which knows it only if cffi is installed.

    It is empty where the kernel's headers have no SO_SPLICE.
    """
    if platform.system() not in KERNELS_WITH_SO_SPLICE:
        return {}
    sys.path.insert(0, str(Path(__file__).resolve().parent))  # pip's builds don't include it
    from build_ffi import headers_have_so_splice

    if headers_have_so_splice():
        return {"cffi_modules": ["build_ffi.py:ffibuilder"]}
    print(
        f"freebsd-splice: the headers of this {platform.system()} {platform.release()} declare no "
        "SO_SPLICE; installing without the extension",
        file=sys.stderr,
    )
    return {}


setup(cmdclass={"bdist_wheel": PlatformWheel}, **extension())
