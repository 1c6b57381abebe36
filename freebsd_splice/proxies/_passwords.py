"""A file of users and the scrypt hashes of their passwords."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import secrets
import threading
import unicodedata
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from .._platform.threads import start as start_thread
from ._connecting import reason_of
from ._fair_executor import FairExecutor
from ._log import fields, logger
from ._mistakes import Mistakes

#: How many verified pairs of user and password are remembered.
REMEMBERED = 1_024

#: The most memory that computing one hash may need, in bytes.
_MEMORY = 256 << 20

#: How many lines that can't be used are named. A file of another kind has nothing else.
_MOST_NAMED = 20

_SALT_SIZES = range(8, 65)
_DIGEST_SIZES = range(16, 65)

_NUMBER = "([1-9][0-9]{0,8})"
_BASE64 = "([A-Za-z0-9+/]+)"
_SCRYPT = re.compile(rf"\$scrypt\$ln={_NUMBER},r={_NUMBER},p={_NUMBER}\${_BASE64}\${_BASE64}")


def make_entry(user: str, password: str) -> str:
    """Return a line for a password file, with a new salt and without its line end.

    That needs some 50 ms and 16 MiB.

    Raises:
        ValueError: the password is empty, or a password file can hold no such user.
    """
    check_user(user)
    if not password:
        raise ValueError("the password is empty")
    salt = secrets.token_bytes(16)
    digest = _USUAL.digest(password.encode(), salt, 32)
    ln, r, p = _USUAL
    return f"{user}:$scrypt$ln={ln},r={r},p={p}${_unpadded(salt)}${_unpadded(digest)}"


class Passwords:
    """The users of a password file, and the scrypt hashes of their passwords.

    The file is UTF-8. Each line is a user, a colon, and a hash, as ``freebsd-splice password``
    prints it::

        alice:$scrypt$ln=14,r=8,p=1$c2FsdHNhbHRzYWx0c2FsdA$...

    Empty lines and lines that begin with ``#`` are ignored. The file may change: it is read again
    when the next password is to be verified. Where the file is broken or gone then, the entries
    that were read before stay valid, and a warning is logged once for each change. A file without
    users is a warning as well.

    An object belongs to one event loop.

    Args:
        path: the password file.

    Raises:
        OSError: the file can't be read.
        ValueError: a line can't be used; the message names the file and the line.

    Example::

        ProxyServer(socks5_connect(passwords=Passwords("/etc/proxy.passwords")))
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        #: The file's state when it was read; None where it could not be read the last time.
        self._state: tuple[int, ...] | None = _state(self._path)
        self._entries = _read(self._path)
        self._warn_if_empty()
        self._nobody = _nobody(self._entries.values())
        self._key = secrets.token_bytes(32)
        # Only the thread writes to this.
        self._remembered: dict[bytes, None] = {}
        self._thread: threading.Thread | None = None
        self._fair_executor: FairExecutor[bytes, bool] = FairExecutor(1, 1, self._start_thread)

    async def verify(self, user: str, password: str, client: str = "") -> bool:
        """Return whether this is the user's password.

        Hashes are computed in a thread, one at a time, and clients take turns: however many
        passwords one client has verified, another waits for one hash of each client before it. A
        hash is also computed for a user that doesn't exist, so that the time doesn't tell which
        users exist, where all hashes of the file cost the same. A right password is remembered,
        and costs nothing later, until the user's line changes. Must not be called after ``close``.

        Args:
            user: the user's name.
            password: the password, which is compared as UTF-8.
            client: the client whose turn this is, as ``Client.counts_as``.

        Raises:
            OSError: (ENOMEM) no thread could be started.
        """
        self.refresh()
        entry = self._entries.get(user, self._nobody)
        secret = password.encode("utf-8", "surrogatepass")  # no right password has a surrogate
        mark = self._mark(entry, user, secret)
        if mark in self._remembered:
            return True
        return await self._fair_executor.do(
            mark, client, partial(self._matches, mark, entry, secret)
        )

    def close(self) -> None:
        """End the thread after the hash that it computes, and cancel what waits to be verified."""
        self._fair_executor.close()
        if self._thread is not None:
            self._thread.join()

    def refresh(self) -> None:
        """Read the file again if it has changed; log a warning where it can't be read."""
        try:
            state = _state(self._path)
            entries = self._entries if state == self._state else _read(self._path)
        except OSError as error:
            # Descriptors may be short: reading is tried again each time.
            if self._state is not None:
                self._warn(f"{self._path}: {reason_of(error)}")
            self._state = None
            return
        except ValueError as error:
            self._warn(str(error))
            entries = self._entries
        if entries is not self._entries:
            self._nobody = _nobody(entries.values())
            self._entries = entries
            self._warn_if_empty()
        self._state = state

    def _start_thread(self, run: Callable[[], None]) -> None:
        """Start a thread for one hash, which takes a hundred times as long as the start."""
        # The exit waits for it, as OpenSSL is taken down there.
        self._thread = start_thread(run, "passwords", daemon=False)

    def _warn_if_empty(self) -> None:
        if not self._entries:
            empty = fields("no users", file=str(self._path))
            logger.warning("%s has no users: nobody can use the proxy", self._path, extra=empty)

    def _warn(self, complaint: str) -> None:
        logger.warning("%s; the passwords read before still hold", complaint)

    def _mark(self, entry: _Entry, user: str, secret: bytes) -> bytes:
        """Return the key of a pair; neither lines nor their users have a NUL, which separates."""
        # The user is a part: all users that don't exist share one line. Without it they would share
        # hashes, and the time would tell them from those that exist.
        parts = entry.line.encode(), user.encode("utf-8", "surrogatepass"), secret
        return hmac.digest(self._key, b"\0".join(parts), "sha256")

    def _matches(self, mark: bytes, entry: _Entry, secret: bytes) -> bool:
        """Compute the hash, in the thread."""
        if mark in self._remembered:  # verified while this one waited for its turn
            return True
        if not entry.matches(secret):
            return False
        self._remember(mark)
        return True

    def _remember(self, mark: bytes) -> None:
        self._remembered[mark] = None
        if len(self._remembered) > REMEMBERED:
            del self._remembered[next(iter(self._remembered))]


class _Cost(NamedTuple):
    """scrypt's parameters; ``ln`` is the base-2 logarithm of its N."""

    ln: int
    r: int
    p: int

    def digest(self, secret: bytes, salt: bytes, size: int) -> bytes:
        n = 1 << self.ln
        # As OpenSSL allocates it; 128 * r * n * p alone would be a little too low a limit.
        memory = 128 * self.r * (n + self.p + 2)
        return hashlib.scrypt(secret, salt=salt, n=n, r=self.r, p=self.p, maxmem=memory, dklen=size)

    def size(self) -> int:
        """Return a measure of the time that a hash takes."""
        return self.r * self.p << self.ln

    def is_in_bounds(self) -> bool:
        # scrypt itself demands the second condition.
        if not (10 <= self.ln <= 20 and self.ln < 16 * self.r):
            return False
        return 128 * self.r * (1 << self.ln) * self.p <= _MEMORY


_USUAL = _Cost(ln=14, r=8, p=1)


class _Entry(NamedTuple):
    #: The line in the file.
    line: str
    cost: _Cost
    salt: bytes
    digest: bytes

    def matches(self, secret: bytes) -> bool:
        digest = self.cost.digest(secret, self.salt, len(self.digest))
        return hmac.compare_digest(digest, self.digest)


def _nobody(entries: Iterable[_Entry]) -> _Entry:
    """Return the entry that users who don't exist are verified by, as costly as the dearest."""
    cost = max((entry.cost for entry in entries), key=_Cost.size, default=_USUAL)
    return _Entry("", cost, secrets.token_bytes(16), secrets.token_bytes(32))


def _state(path: Path) -> tuple[int, ...]:
    """Return a value that differs once the file has changed.

    The time of the last change of its mode is a part: the file may have been made readable.
    """
    found = path.stat()
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _read(path: Path) -> dict[str, _Entry]:
    entries: dict[str, _Entry] = {}
    mistakes: list[str] = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            text = line.decode().strip()
            if not text or text.startswith("#"):
                continue
            user, entry = _parse(text)
            if user in entries:
                raise ValueError(f"user {user!r} is there already")
        except UnicodeDecodeError:
            mistakes.append(f"{path}, line {number}: not UTF-8")
        except ValueError as error:
            mistakes.append(f"{path}, line {number}: {error}")
        else:
            entries[user] = entry
        if len(mistakes) == _MOST_NAMED:
            break
    if mistakes:
        raise Mistakes(*mistakes)
    return entries


def _parse(line: str) -> tuple[str, _Entry]:
    user, _, hashed = line.partition(":")
    check_user(user)
    match = _SCRYPT.fullmatch(hashed)
    if not match:
        raise ValueError("the line must be user:$scrypt$ln=14,r=8,p=1$salt$hash")
    cost = _Cost(*map(int, match.groups()[:3]))
    if not cost.is_in_bounds():
        raise ValueError("ln must be from 10 to 20, and 128 * r * 2**ln * p at most 256 MiB")
    salt, digest = map(_from_unpadded, match.groups()[3:])
    if len(salt) not in _SALT_SIZES or len(digest) not in _DIGEST_SIZES:
        raise ValueError("the salt must have from 8 to 64 bytes, the hash from 16 to 64")
    return user, _Entry(line, cost, salt, digest)


def check_user(user: str) -> str:
    """Return the user; raise ValueError where a password file can hold no such user."""
    if not user:
        raise ValueError("the name of the user is empty")
    if ":" in user or any(unicodedata.category(letter) == "Cc" for letter in user):
        raise ValueError(f"{user!r}: no colon and no control character can be in a user's name")
    if user != user.strip() or user.startswith("#"):
        raise ValueError(f"{user!r}: a user's name can't begin with # and has no space around it")
    return user


def _unpadded(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")


def _from_unpadded(text: str) -> bytes:
    """Decode base64 without padding; raise ValueError (binascii.Error)."""
    return base64.b64decode(text + "=" * (-len(text) % 4))
