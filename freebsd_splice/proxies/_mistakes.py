"""What is wrong with a file that somebody has written: all of it, with what may have been meant."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class Mistakes(ValueError):
    """A file, or a part of one, can't be used; the text is the first mistake.

    Attributes:
        mistakes: a text for each mistake, the first included.
    """

    def __init__(self, *mistakes: str) -> None:
        super().__init__(mistakes[0])
        self.mistakes = mistakes


class Found:
    """Collects mistakes, so that all are known before anybody has to mend one."""

    def __init__(self) -> None:
        self.mistakes: list[str] = []

    @contextlib.contextmanager
    def at(self, place: str = "") -> Iterator[None]:
        """Keep what is raised as a ValueError inside the ``with`` block, as one of that place."""
        try:
            yield
        except ValueError as error:
            before = f"{place}: " if place else ""
            self.mistakes += [f"{before}{mistake}" for mistake in mistakes_of(error)]

    def check(self) -> None:
        """Raise Mistakes if any were found."""
        if self.mistakes:
            raise Mistakes(*self.mistakes)


def mistakes_of(error: ValueError) -> tuple[str, ...]:
    """Return all that is wrong; an error of another class than ``Mistakes`` is one mistake."""
    return error.mistakes if isinstance(error, Mistakes) else (str(error),)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a message, with the known word that is most like a wrong one, if any."""
    like = difflib.get_close_matches(word.lower(), list(known), 1)
    return f"; did you mean {like[0]!r}?" if like else ""
