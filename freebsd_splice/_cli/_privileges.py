"""Giving up root's privileges once what takes them is done."""

from __future__ import annotations

import grp
import os
import pwd
import sys
from typing import NamedTuple

assert sys.platform != "win32"


class User(NamedTuple):
    """Who to go on as."""

    name: str
    number: int
    group: int

    @classmethod
    def parse(cls, text: str) -> User:
        """``user``, or ``user:group``.  ValueError: there is no such user or group."""
        name, colon, group = text.partition(":")
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            raise ValueError(f"--user: there is no user {name!r}") from None
        try:
            number = grp.getgrnam(group).gr_gid if colon else entry.pw_gid
        except KeyError:
            raise ValueError(f"--user: there is no group {group!r}") from None
        return cls(name, entry.pw_uid, number)

    def become(self) -> None:
        """For good.  Raises PermissionError where this process may not."""
        if (os.geteuid(), os.getegid()) == (self.number, self.group):
            return
        try:
            os.initgroups(self.name, self.group)
            os.setgid(self.group)
            os.setuid(self.number)
        except PermissionError as error:
            raise PermissionError(
                error.errno, f"--user: only root can go on as {self.name}: {error.strerror}"
            ) from None
