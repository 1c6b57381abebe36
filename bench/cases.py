"""What is measured: a case, its contestants, and what each run of one says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .peers import REFERENCES, Peer

Values = dict[str, float]


@dataclass(frozen=True)
class Metric:
    """One figure of a run."""

    name: str
    unit: str
    more_is_better: bool
    #: Whether it is in the text and the plots; the JSON has all of them.
    shown: bool = True


@dataclass(frozen=True)
class Case:
    """Something that all contestants do once a round."""

    section: str
    name: str
    metrics: tuple[Metric, ...]
    contestants: Mapping[str, Callable[[], Values]]
    #: Whom the others are compared with.
    references: tuple[str, ...] = REFERENCES


@dataclass(frozen=True)
class Settings:
    """How long, and with whom."""

    peers: list[Peer]
    #: Of each run.
    seconds: float
    #: One short run of each kind, to see that everything works.
    quick: bool
    streams: tuple[int, ...] = (1, 8, 64)
    #: Numbers of relays that are held.
    held: tuple[int, ...] = (100, 1_000, 4_500, 10_000)
