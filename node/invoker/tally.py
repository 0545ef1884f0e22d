"""Counts what became of a partition's attempts, for metrics to read. Pure."""

from dataclasses import dataclass
from enum import Enum

from perdure.core.summary import Summary, SummaryFigures


class AttemptEnd(Enum):
    """How an attempt ended. ``RETRIED`` and ``FAILED`` both failed; after the latter no other
    follows by itself. ``ABORTED``: taken away from it, by an operator or by this node stopping."""

    COMPLETED = "completed"
    SUSPENDED = "suspended"
    RETRIED = "retried"
    FAILED = "failed"
    ABORTED = "aborted"


FAILURES = (AttemptEnd.RETRIED, AttemptEnd.FAILED)


@dataclass(frozen=True, slots=True)
class AttemptFigures:
    """``started`` minus all of ``ended`` are under way. ``answers``: response heads by status."""

    started: int
    ended: dict[AttemptEnd, int]
    duration: SummaryFigures
    answers: dict[int, int]


class AttemptTally:
    """Of one partition, since this node leads it."""

    def __init__(self) -> None:
        self._started = 0
        self._ended = dict.fromkeys(AttemptEnd, 0)
        self._duration = Summary()
        self._answers: dict[int, int] = {}

    def start(self) -> None:
        """An attempt begins."""
        self._started += 1

    def answer(self, status: int) -> None:
        """A response head came. Statuses have three digits, so this stays small."""
        self._answers[status] = self._answers.get(status, 0) + 1

    def end(self, how: AttemptEnd, seconds: float) -> None:
        """An attempt is over after ``seconds``."""
        self._ended[how] += 1
        self._duration.add(seconds)

    def figures(self) -> AttemptFigures:
        return AttemptFigures(
            self._started, dict(self._ended), self._duration.figures(), dict(self._answers)
        )
