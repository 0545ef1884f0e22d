"""Durations in a few bytes: how many, how long altogether, and quantiles of the latest.

Adding one is two additions and a store, so it may stand on a hot path; sorting is left to who
looks. Pure.
"""

from array import array
from dataclasses import dataclass

RECENT_COUNT = 512
"""Quantiles are over this many of the latest durations; a power of two."""
QUANTILES = (0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class SummaryFigures:
    """``quantiles``: the values at ``QUANTILES``, in seconds; empty while there is nothing."""

    count: int
    seconds: float
    quantiles: tuple[float, ...]


NO_DURATIONS = SummaryFigures(0, 0.0, ())


class Summary:
    """Durations since the process started."""

    __slots__ = ("_count", "_recent", "_seconds")

    def __init__(self) -> None:
        self._count = 0
        self._seconds = 0.0
        self._recent = array("d")

    def add(self, seconds: float) -> None:
        """One more."""
        if self._count < RECENT_COUNT:
            self._recent.append(seconds)
        else:
            self._recent[self._count & (RECENT_COUNT - 1)] = seconds
        self._count += 1
        self._seconds += seconds

    def figures(self) -> SummaryFigures:
        """What was added, summed up."""
        ordered = sorted(self._recent)
        if not ordered:
            return NO_DURATIONS
        last = len(ordered) - 1
        values = tuple(ordered[round(last * quantile)] for quantile in QUANTILES)
        return SummaryFigures(self._count, self._seconds, values)
