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

#: How many right pairs of user and password are remembered.
REMEMBERED = 1_024

#: What computing one hash may take, in bytes.
_MEMORY = 256 << 20

_SALT_SIZES = range(8, 65)
_DIGEST_SIZES = range(16, 65)

_NUMBER = "([1-9][0-9]{0,8})"
_BASE64 = "([A-Za-z0-9+/]+)"
_SCRYPT = re.compile(rf"\$scrypt\$ln={_NUMBER},r={_NUMBER},p={_NUMBER}\${_BASE64}\${_BASE64}")


def make_entry(user: str, password: str) -> str:
    """A line for the file, without its end, with a new salt.

    Takes some 50 ms and 16 MiB.  Raises ValueError where a password file can hold no such user,
    and for an empty password.
    """
    check_user(user)
    if not password:
        raise ValueError("the password is empty")
    salt = secrets.token_bytes(16)
    digest = _USUAL.digest(password.encode(), salt, 32)
    ln, r, p = _USUAL
    return f"{user}:$scrypt$ln={ln},r={r},p={p}${_unpadded(salt)}${_unpadded(digest)}"


class Passwords:
    """The users of a password file, for one event loop.

    The file may change: it is read again when a password is to be verified after that.  Where it
    is broken or gone then, the entries read before hold, and a warning is logged, once a change.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read the file.

        Raises OSError, and ValueError, whose message names the file and the line.
        """
        self._path = Path(path)
        #: Of the file as it was read; None where it could not be read the last time.
        self._state: tuple[int, ...] | None = _state(self._path)
        self._entries = _read(self._path)
        self._warn_if_empty()
        self._nobody = _nobody(self._entries.values())
        self._key = secrets.token_bytes(32)
        # The thread alone writes to it.
        self._remembered: dict[bytes, None] = {}
        self._thread: threading.Thread | None = None
        self._fair_executor: FairExecutor[bytes, bool] = FairExecutor(1, 1, self._start_thread)

    async def verify(self, user: str, password: str, client: str = "") -> bool:
        """Whether this is the user's password, as UTF-8.  ``client`` is whose turn it takes.

        The hash is computed in a thread, one at a time, for a user that does not exist as well:
        how long it takes does not tell who does, where all users' hashes cost the same.  A right
        password is remembered, and takes no time later, until the user's line changes.  However
        many one client has verified, another waits for one hash of each client before it.  Not to
        be called after ``close``.
        """
        self.refresh()
        entry = self._entries.get(user, self._nobody)
        secret = password.encode("utf-8", "surrogatepass")  # no right one has a surrogate
        mark = self._mark(entry, user, secret)
        if mark in self._remembered:
            return True
        return await self._fair_executor.do(
            mark, client, partial(self._matches, mark, entry, secret)
        )

    def close(self) -> None:
        """End the thread, after the hash it is at.  What waits to be verified is cancelled."""
        self._fair_executor.close()
        if self._thread is not None:
            self._thread.join()

    def refresh(self) -> None:
        """Read the file again if it has changed; where it can't be read, a warning is logged."""
        try:
            state = _state(self._path)
            entries = self._entries if state == self._state else _read(self._path)
        except OSError as error:
            # Perhaps for lack of descriptors: it is tried again each time.
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
        """One for each hash, which takes a hundred times as long: there is one at a time."""
        # Waited for at the exit, where OpenSSL is taken down.
        self._thread = start_thread(run, "passwords", daemon=False)

    def _warn_if_empty(self) -> None:
        if not self._entries:
            empty = fields("no users", file=str(self._path))
            logger.warning("%s has no users: nobody can use the proxy", self._path, extra=empty)

    def _warn(self, complaint: str) -> None:
        logger.warning("%s; the passwords read before still hold", complaint)

    def _mark(self, entry: _Entry, user: str, secret: bytes) -> bytes:
        """What the pair is known by: no line has a NUL, nor has the user of a line."""
        # With the user, as those who don't exist have one line: one's hash would be another's, and
        # how long that takes would tell.
        parts = entry.line.encode(), user.encode("utf-8", "surrogatepass"), secret
        return hmac.digest(self._key, b"\0".join(parts), "sha256")

    def _matches(self, mark: bytes, entry: _Entry, secret: bytes) -> bool:
        """In the thread."""
        if mark in self._remembered:  # since this one waits for its turn
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
        # What OpenSSL allocates: the product alone would be a little too low a limit.
        memory = 128 * self.r * (n + self.p + 2)
        return hashlib.scrypt(secret, salt=salt, n=n, r=self.r, p=self.p, maxmem=memory, dklen=size)

    def size(self) -> int:
        """What it is like in time."""
        return self.r * self.p << self.ln

    def is_in_bounds(self) -> bool:
        # scrypt itself demands the second.
        if not (10 <= self.ln <= 20 and self.ln < 16 * self.r):
            return False
        return 128 * self.r * (1 << self.ln) * self.p <= _MEMORY


_USUAL = _Cost(ln=14, r=8, p=1)


class _Entry(NamedTuple):
    #: As it is in the file.
    line: str
    cost: _Cost
    salt: bytes
    digest: bytes

    def matches(self, secret: bytes) -> bool:
        digest = self.cost.digest(secret, self.salt, len(self.digest))
        return hmac.compare_digest(digest, self.digest)


def _nobody(entries: Iterable[_Entry]) -> _Entry:
    """Whom a user that does not exist is verified as, at the cost of the dearest."""
    cost = max((entry.cost for entry in entries), key=_Cost.size, default=_USUAL)
    return _Entry("", cost, secrets.token_bytes(16), secrets.token_bytes(32))


def _state(path: Path) -> tuple[int, ...]:
    """What is another when the file has changed.

    With the time of the last change of its mode: whoever lets it be read again is heard.
    """
    found = path.stat()
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _read(path: Path) -> dict[str, _Entry]:
    entries: dict[str, _Entry] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            text = line.decode().strip()
            if not text or text.startswith("#"):
                continue
            user, entry = _parse(text)
            if user in entries:
                raise ValueError(f"user {user!r} is there already")
        except UnicodeDecodeError:
            raise ValueError(f"{path}, line {number}: this is not UTF-8") from None
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        entries[user] = entry
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
    """Raises ValueError (binascii.Error)."""
    return base64.b64decode(text + "=" * (-len(text) % 4))
