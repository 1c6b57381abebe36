"""A straight line through samples: what grows with the work done, and what only wavers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Slope(NamedTuple):
    """The growth of a quantity for each unit of another, by least squares."""

    value: float
    #: Its standard error.
    error: float

    def is_above(self, bound: float) -> bool:
        """Return whether it is above ``bound`` by more than chance explains: 3 standard errors."""
        return self.value - 3 * self.error > bound


def slope_of(xs: Sequence[float], ys: Sequence[float]) -> Slope:
    """Return the slope of the straight line through the points, of which there are 3 or more."""
    count = len(xs)
    mean_x, mean_y = sum(xs) / count, sum(ys) / count
    spread = sum((x - mean_x) ** 2 for x in xs)
    value = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    left = sum((y - mean_y - value * (x - mean_x)) ** 2 for x, y in zip(xs, ys, strict=True))
    return Slope(value, math.sqrt(left / (count - 2) / spread))
