"""Giving up root's privileges once they are no longer needed."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import sys
from typing import Any, NamedTuple

assert sys.platform != "win32"

_os: Any = os  # type checkers know that not all systems have all of its functions


class User(NamedTuple):
    """The user and the group to go on as."""

    name: str
    number: int
    group: int

    @classmethod
    def parse(cls, text: str) -> User:
        """Return what is written as ``user`` or ``user:group``.

        Raises:
            ValueError: the user or the group does not exist.
        """
        name, colon, group = text.partition(":")
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            raise ValueError(f"there is no user {name!r}") from None
        try:
            number = grp.getgrnam(group).gr_gid if colon else entry.pw_gid
        except KeyError:
            raise ValueError(f"there is no group {group!r}") from None
        return cls(name, entry.pw_uid, number)

    def become(self) -> None:
        """Become the user for good.

        Raises:
            PermissionError: this process may not, or could still become root again.
        """
        if _is_all_of(self.number, self.group):
            self._check_for_good()
            return
        try:
            _os.initgroups(self.name, self.group)
            _set_all_to(self.number, self.group)
        except PermissionError as error:
            raise PermissionError(
                error.errno, f"--user: only root can go on as {self.name}: {error.strerror}"
            ) from None
        self._check_for_good()

    def _check_for_good(self) -> None:
        """Check that the process can't become root again, as with capabilities that are left."""
        if self.number == 0:
            return
        try:
            _os.setuid(0)
        except OSError:
            return
        raise PermissionError(
            errno.EPERM, f"--user: as {self.name} this process could still become root again"
        )


def _is_all_of(user: int, group: int) -> bool:
    """Return whether the process has this user and group alone.

    Saved ones count too, where the system tells them: a process may take those again.
    """
    if hasattr(_os, "getresuid"):
        return bool(_os.getresuid() == 3 * (user,) and _os.getresgid() == 3 * (group,))
    return (_os.getuid(), _os.geteuid(), _os.getgid(), _os.getegid()) == (user, user, group, group)


def _set_all_to(user: int, group: int) -> None:
    """Set the real, effective and saved ones; ``setuid`` alone sets them all for root only."""
    if hasattr(_os, "setresuid"):
        _os.setresgid(group, group, group)
        _os.setresuid(user, user, user)
    else:
        _os.setgid(group)
        _os.setuid(user)
