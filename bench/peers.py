"""The relays that are compared: how each is started, and why one is missing here."""

from __future__ import annotations

import contextlib
import fnmatch
import importlib.util
import os
import re
import resource
import shutil
import string
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .ports import HOST

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PROGRAMS = HERE / "programs"
CONFIGURATIONS = HERE / "configurations"

#: Nobody between the load and its target.
DIRECT = "direct"

#: Whom others are compared with, where they are there.
REFERENCES = ("haproxy", "threads", "asyncio")

_NGINX_MODULES = (
    "/usr/lib/nginx/modules",
    "/usr/lib64/nginx/modules",
    "/usr/local/libexec/nginx",
    "/usr/local/lib/nginx/modules",
    "/var/www/modules",
)


@dataclass(frozen=True)
class Launch:
    """What a relay is told at its start."""

    listen: int
    target: int
    workers: int
    #: For its configuration, and whatever it writes.
    directory: Path
    #: Whether it is to say of each connection how it was served.
    verbose: bool = False


@dataclass(frozen=True)
class Peer:
    """One relay."""

    name: str
    #: What it is, for the report.
    title: str
    command: Callable[[Launch], list[str]]
    #: Whether its claim is that it splices, which has to be shown.
    splices: bool = False
    #: Whether it can have several workers.
    scales: bool = True
    #: Whether its workers are processes, each with descriptors of its own.
    processes: bool = False
    #: Threads and processes that it has for each relay.
    tasks: int = 0
    #: Whether it delivers what the other side still sends after an EOF.
    half_closes: bool = True
    environment: dict[str, str] = field(default_factory=dict)
    #: Where it is started: ``python -m`` imports from there before anywhere else.
    home: Path = ROOT
    #: Why it can't be measured here; "" where it can.
    missing: str = ""
    #: Prints its version.
    version: tuple[str, ...] = ()

    @property
    def ours(self) -> bool:
        return self.name.startswith("ours")


def all_peers(trees: dict[str, Path], build: Path) -> list[Peer]:
    """Every relay, those that are missing here too.

    trees:
        Checkouts of this package, by what is appended to the names of its relays.
    build:
        A directory for programs that are compiled.
    """
    return [
        Peer(DIRECT, "nothing in between", lambda launch: []),
        *(peer for mark, tree in trees.items() for peer in _ours(mark, tree)),
        _haproxy("haproxy", "HAProxy with splicing", splices=sys.platform == "linux"),
        _haproxy("haproxy-copy", "HAProxy without splicing", splices=False),
        _nginx(),
        _c_relay(build),
        _python_relay("asyncio", "a relay on asyncio's streams"),
        _python_relay("threads", "two Python threads a connection"),
        _socat(),
        _pproxy(),
    ]


class UnknownPeerError(Exception):
    """A pattern that no name matches."""


def chosen(peers: list[Peer], patterns: list[str]) -> list[Peer]:
    """Those whose names match one of the patterns (as a shell's, ``@REV`` left aside)."""
    names = [peer.name.partition("@")[0] for peer in peers]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UnknownPeerError(f"no peer is called {pattern}: there are {', '.join(names)}")
    return [
        peer
        for name, peer in zip(names, peers, strict=True)
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    ]


def version(peer: Peer) -> str:
    """The first thing that looks like a version in what it prints."""
    if not peer.version:
        return ""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        run = subprocess.run(peer.version, capture_output=True, text=True, timeout=20)
        if found := re.search(r"\d+(\.\d+)+\S*", run.stdout + run.stderr):
            return found[0]
    return ""


def import_path(tree: Path) -> dict[str, str]:
    """The environment in which a Python program imports that tree's package."""
    others = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(tree), *([others] if others else [])])}


def descriptors() -> int:
    """How many a process can have here."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if hard == resource.RLIM_INFINITY else hard


def raise_descriptors() -> None:
    """Have this process, and those that it starts, use as many as they can have."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors(),) * 2)


def _ours(mark: str, tree: Path) -> list[Peer]:
    def command(launch: Launch) -> list[str]:
        return [
            *(sys.executable, "-m", "freebsd_splice", "forward"),
            *("--log-level", "info" if launch.verbose else "warning"),
            *("--workers", str(launch.workers)),
            # All clients are one here.
            *("--max-connections", "100000", "--max-per-client", "100000"),
            f"{HOST}:{launch.listen}",
            f"{HOST}:{launch.target}",
        ]

    def peer(name: str, title: str, *, splices: bool, **variables: str) -> Peer:
        environment = import_path(tree) | variables
        return Peer(
            name + mark,
            title + mark,
            command,
            splices=splices,
            processes=True,
            environment=environment,
            home=tree,
        )

    bsd = sys.platform.startswith(("freebsd", "openbsd"))
    found = [peer("ours", "freebsd-splice", splices=bsd or sys.platform == "linux")]
    if bsd:
        userspace = {"FREEBSD_SPLICE_BACKEND": "userspace"}
        found.append(peer("ours-copy", "freebsd-splice, userspace", splices=False, **userspace))
    elif hasattr(os, "splice"):
        for name, mover in (("splice", "os.splice"), ("copy", "copy")):
            title, variables = f"freebsd-splice, {mover}", {"FREEBSD_SPLICE_MOVER": mover}
            found.append(peer(f"ours-{name}", title, splices=name == "splice", **variables))
    return found


def _haproxy(name: str, title: str, *, splices: bool) -> Peer:
    # Not splice-auto, with which it splices nothing of a stream like those here.  Where it can't
    # splice (it knows no SO_SPLICE) these options are an error.
    options = "option splice-request\n    option splice-response" if splices else ""

    def command(launch: Launch) -> list[str]:
        # It refuses to start with more than its descriptors allow: for each connection two, and
        # for every fourth a pipe.
        limit = max(100, (descriptors() - 200) * 2 // 5)
        path = _configuration("haproxy.cfg", launch, splicing=options, connections=limit)
        return ["haproxy", "-db", "-f", str(path)]

    missing = "" if shutil.which("haproxy") else "haproxy is not installed"
    if name == "haproxy" and not splices:
        title = "HAProxy"
    elif name == "haproxy-copy" and sys.platform != "linux":
        missing = "HAProxy splices on Linux alone: it is the same as haproxy here"
    return Peer(name, title, command, splices, missing=missing, version=("haproxy", "-v"))


def _nginx() -> Peer:
    modules = [Path(place) / "ngx_stream_module.so" for place in _NGINX_MODULES]
    module = next((path for path in modules if path.exists()), None)

    def command(launch: Launch) -> list[str]:
        load = f"load_module {module};" if module else ""
        connections = max(200, descriptors() - 100)
        path = _configuration("nginx.conf", launch, module=load, connections=connections)
        return ["nginx", "-p", str(launch.directory), "-c", str(path)]

    missing = ""
    if not shutil.which("nginx"):
        missing = "nginx is not installed"
    elif module is None:
        run = subprocess.run(["nginx", "-V"], capture_output=True, text=True)
        if not re.search(r"--with-stream(\s|$)", run.stderr):
            missing = "nginx has no stream module here (Debian: libnginx-mod-stream)"
    version = ("nginx", "-v")
    return Peer("nginx", "nginx stream", command, processes=True, missing=missing, version=version)


def _python_relay(name: str, title: str) -> Peer:
    def command(launch: Launch) -> list[str]:
        script = str(PROGRAMS / f"relay_{name}.py")
        return [sys.executable, script, *map(str, (launch.listen, launch.target, launch.workers))]

    return Peer(name, title, command, processes=True, tasks=2 if name == "threads" else 0)


def _socat() -> Peer:
    def command(launch: Launch) -> list[str]:
        listen = f"TCP-LISTEN:{launch.listen},bind={HOST},reuseaddr,fork,backlog=1024,nodelay"
        return ["socat", "-b", "65536", listen, f"TCP:{HOST}:{launch.target},nodelay"]

    missing = "" if shutil.which("socat") else "socat is not installed"
    return Peer(
        "socat",
        "socat, a process a connection",
        command,
        scales=False,
        processes=True,
        tasks=1,
        missing=missing,
        version=("socat", "-V"),
    )


def _pproxy() -> Peer:
    # Its main() takes a loop that is there already for granted, which newer Pythons don't make.
    start = (
        "import asyncio, sys; sys.modules['uvloop'] = None;"
        "asyncio.set_event_loop(asyncio.new_event_loop());"
        "from pproxy.server import main; main()"
    )

    def command(launch: Launch) -> list[str]:
        tunnel = f"tunnel{{{HOST}:{launch.target}}}://{HOST}:{launch.listen}"
        return [sys.executable, "-c", start, "-l", tunnel]

    found = importlib.util.find_spec("pproxy")
    return Peer(
        "pproxy",
        "pproxy, a proxy on asyncio's streams",
        command,
        scales=False,
        half_closes=False,
        missing="" if found else "pproxy is not installed",
        version=(
            *(sys.executable, "-c"),
            "import importlib.metadata; print(importlib.metadata.version('pproxy'))",
        ),
    )


def _c_relay(build: Path) -> Peer:
    source, program = PROGRAMS / "relay.c", build / "relay"
    missing = ""
    if not sys.platform.startswith(("freebsd", "openbsd")):
        missing = "it is for systems with SO_SPLICE"
    elif not shutil.which("cc"):
        missing = "there is no C compiler"
    elif not program.exists():
        command = ["cc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(source)]
        run = subprocess.run(command, capture_output=True, text=True)
        missing = run.stderr if run.returncode else ""
    return Peer(
        "c-relay",
        "a relay in C with SO_SPLICE",
        lambda launch: [
            *(str(program), str(launch.listen), str(launch.target)),
            *(["-v"] if launch.verbose else []),
        ],
        splices=True,
        scales=False,
        missing=missing,
    )


def _configuration(name: str, launch: Launch, **others: object) -> Path:
    """The configuration of this launch, made from the template."""
    path = launch.directory / name
    template = string.Template((CONFIGURATIONS / name).read_text())
    text = template.safe_substitute(
        listen=launch.listen,
        target=launch.target,
        workers=launch.workers,
        directory=launch.directory,
        **others,
    )
    path.write_text(text)
    return path
