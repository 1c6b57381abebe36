"""The official images: fetched once, checked, and kept for the next run."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import lzma
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from .failures import BadChecksum, DownloadFailed, HostDiskFull

SITE = "https://download.freebsd.org/releases/VM-IMAGES"

#: What a file's name says of a machine that a folder's name calls otherwise.
ARCHITECTURES = {"amd64": "amd64", "aarch64": "arm64-aarch64"}

_PIECE = 1 << 20
_LONGEST_CHECKSUM_FILE = 1 << 20
_SECONDS_OF_SILENCE = 60.0
_SECONDS_BETWEEN_NEWS = 5.0

Say = Callable[[str], object]


def default_cache() -> Path:
    """Where images are kept unless said otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "freebsd-splice" / "images"


def folder(site: str, release: str, architecture: str) -> str:
    return f"{site.rstrip('/')}/{release}-RELEASE/{architecture}/Latest"


def file_name(release: str, architecture: str) -> str:
    machine = ARCHITECTURES[architecture]
    return f"FreeBSD-{release}-RELEASE-{machine}-BASIC-CLOUDINIT-ufs.qcow2.xz"


def official(release: str, architecture: str, cache: Path, site: str, say: Say) -> Path:
    """The image of a release, out of the cache or fetched into it."""
    packed = cache / file_name(release, architecture)
    ready = packed.with_suffix("")
    with _room_is_needed(cache):
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(cache / "lock", say):
            if not ready.exists():
                where = folder(site, release, architecture)
                _fetch(where, packed, say)
                _unpack(packed, ready, say)
    return ready


def _fetch(where: str, packed: Path, say: Say) -> None:
    """Have ``packed`` there, whole and as its checksum says."""
    wanted = _remembered(packed, _published_sum(where, packed.name))
    part = packed.with_name(packed.name + ".part")
    _download(f"{where}/{packed.name}", part, say)
    found = _sha512(part)
    if found != wanted:
        part.unlink()
        raise BadChecksum(
            f"{where}/{packed.name} has the SHA-512 sum {found}, but its checksum file says "
            f"{wanted}; what was fetched is deleted"
        )
    part.replace(packed)


def _published_sum(where: str, name: str) -> str:
    text = _read(f"{where}/CHECKSUM.SHA512")
    found = re.search(rf"^SHA512 \({re.escape(name)}\) = ([0-9a-f]{{128}})$", text, re.M)
    if found is None:
        raise BadChecksum(f"{where}/CHECKSUM.SHA512 says nothing of {name}")
    return found[1]


def _remembered(packed: Path, published: str) -> str:
    """The sum, which must be the one seen the first time: a release doesn't change."""
    memory = packed.with_name(packed.name + ".sha512")
    if not memory.exists():
        memory.write_text(published + "\n")
    seen = memory.read_text().strip()
    if seen != published:
        raise BadChecksum(
            f"the checksum file now says {published} of {packed.name}, but said {seen} when it "
            f"was first seen; if that is right, delete {memory}"
        )
    return seen


def _read(url: str) -> str:
    with _opened(url) as answer:
        return str(answer.read(_LONGEST_CHECKSUM_FILE).decode())


def _download(url: str, part: Path, say: Say) -> None:
    """Fetch what ``part`` doesn't hold yet."""
    have = part.stat().st_size if part.exists() else 0
    with _opened(url, have) as answer, part.open("ab") as kept:
        if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
            kept.truncate(0)
            have = 0
        if answer.status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise DownloadFailed(f"{url}: more is here than there; run it again")
        whole = have + int(answer.headers.get("Content-Length") or 0)
        news = _News(whole, say)
        say(f"fetching {url}" + (f", from byte {have} on" if have else ""))
        while piece := _piece(answer, url):
            kept.write(piece)
            have += len(piece)
            news.have(have)
    if have < whole:
        raise DownloadFailed(
            f"{url}: the connection ended after {have} of {whole} bytes; run it again to go on"
        )


def _piece(answer: http.client.HTTPResponse, url: str) -> bytes:
    try:
        return answer.read(_PIECE)
    except http.client.IncompleteRead as ended:
        return ended.partial
    except OSError as error:
        raise DownloadFailed(f"{url}: {error}; run it again to go on") from error


@contextlib.contextmanager
def _opened(url: str, first_byte: int = 0) -> Iterator[http.client.HTTPResponse]:
    request = urllib.request.Request(url)
    if first_byte:
        request.add_header("Range", f"bytes={first_byte}-")
    try:
        answer = urllib.request.urlopen(request, timeout=_SECONDS_OF_SILENCE)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise DownloadFailed(f"{url}: {error}") from error
        answer = error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise DownloadFailed(f"{url}: {error}") from error
    with answer:
        yield answer


class _News:
    """Says how far it has come, now and then."""

    def __init__(self, whole: int, say: Say) -> None:
        self._whole = whole
        self._say = say
        self._next = time.monotonic() + _SECONDS_BETWEEN_NEWS

    def have(self, count: int) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _SECONDS_BETWEEN_NEWS
            of = f" of {self._whole >> 20} MiB, {100 * count // self._whole} %"
            self._say(f"  {count >> 20}{of if self._whole else ' MiB'}")


def _unpack(packed: Path, ready: Path, say: Say) -> None:
    say(f"unpacking {packed.name}")
    part = ready.with_name(ready.name + ".part")
    with lzma.open(packed) as source, part.open("wb") as target:
        shutil.copyfileobj(source, target, _PIECE)
    part.chmod(0o444)  # every run writes into an overlay of its own
    part.replace(ready)
    packed.unlink()


def _sha512(path: Path) -> str:
    digest = hashlib.sha512()
    with path.open("rb") as content:
        while piece := content.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


@contextlib.contextmanager
def _alone(lock: Path, say: Say) -> Iterator[None]:
    """One run at a time fetches."""
    import fcntl

    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another run that fetches an image")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _room_is_needed(where: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise HostDiskFull(f"no room for the image in {where}: {error}") from error
