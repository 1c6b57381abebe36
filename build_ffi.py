"""The binding to SO_SPLICE and to pledge(2), in cffi's API mode.

It declares names; the C compiler supplies their values and layout. The size of ``struct splice``
and the offsets of its fields differ between machines (F2 in docs/so_splice.md). ``setup.py`` builds
``freebsd_splice._so_splice`` on FreeBSD and OpenBSD if ``headers_have_so_splice()`` returns True.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
from collections.abc import Sequence

from cffi import FFI

# "..." is cffi's notation: the compiler fills it in from the real headers.
DECLARATIONS = """
#define SOL_SOCKET ...
#define SO_SPLICE ...

typedef int... off_t;
typedef int... socklen_t;
typedef int... suseconds_t;
typedef int... time_t;

struct timeval {
    time_t tv_sec;
    suseconds_t tv_usec;
    ...;
};

struct splice {
    int sp_fd;
    off_t sp_max;
    struct timeval sp_idle;
    ...;
};

int getsockopt(int, int, int, void *, socklen_t *);
int setsockopt(int, int, int, const void *, socklen_t);

int give_up_all_but(const char *);
"""

# What must hold on every machine. The compiler knows the layout's exact numbers.
SOURCE = """
#include <sys/types.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <errno.h>
#include <stddef.h>
#include <unistd.h>

#ifndef SO_SPLICE
#error "sys/socket.h declares no SO_SPLICE: FreeBSD 14.3 or later, or OpenBSD, is needed"
#endif

#define SP_MAX_TYPE __typeof__(((struct splice *)0)->sp_max)

_Static_assert(SO_SPLICE == 0x1023, "SO_SPLICE is 0x1023 on every kernel that has it");
_Static_assert(offsetof(struct splice, sp_fd) == 0, "sp_fd is the first field");
_Static_assert(sizeof(SP_MAX_TYPE) == 8, "sp_max has 64 bits");
_Static_assert((SP_MAX_TYPE)-1 < 0, "sp_max is signed");
_Static_assert(offsetof(struct splice, sp_idle) > offsetof(struct splice, sp_max),
               "sp_idle lies after sp_max");

/* pledge(2), which OpenBSD alone has. Programs that this one starts are not limited. */
static int give_up_all_but(const char *promises)
{
#ifdef __OpenBSD__
    return pledge(promises, NULL);
#else
    (void)promises;
    errno = ENOSYS;
    return -1;
#endif
}
"""

QUESTION = """
#include <sys/types.h>
#include <sys/socket.h>
#ifdef SO_SPLICE
declared
#endif
"""

ffibuilder = FFI()
ffibuilder.cdef(DECLARATIONS)
ffibuilder.set_source("freebsd_splice._so_splice", SOURCE)


def c_compiler() -> list[str]:
    """Return the compiler that setuptools would use, with the flags that choose its headers."""
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    flags = [os.environ.get(name, "") for name in ("CFLAGS", "CPPFLAGS")]
    return shlex.split(" ".join([compiler, *flags]))


def headers_have_so_splice(compiler: Sequence[str] | None = None) -> bool:
    """Return whether ``sys/socket.h`` declares SO_SPLICE, as the C preprocessor sees it.

    Args:
        compiler: the command and its flags; None: ``c_compiler()``.

    Raises:
        RuntimeError: there is no compiler, or it doesn't find the header.
    """
    command = [*(c_compiler() if compiler is None else compiler), "-E", "-x", "c", "-"]
    try:
        answer = subprocess.run(command, input=QUESTION, capture_output=True, text=True, check=True)
    except OSError as error:
        message = f"freebsd-splice needs a C compiler here: {command[0]}: {error}"
        raise RuntimeError(message) from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(
            f"freebsd-splice can't read sys/socket.h with {shlex.join(command)}:\n{error.stderr}"
        ) from error
    return answer.stdout.splitlines()[-1:] == ["declared"]
