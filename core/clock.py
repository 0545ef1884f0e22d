"""The port of time: the only module that reads a clock.

Wall time (milliseconds since the epoch) stamps records and fires timers; monotonic time measures
durations. The simulator gives a ``Clock`` that runs on virtual time.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """A source of wall and monotonic time."""

    def now_ms(self) -> int:
        """Wall time in milliseconds since the Unix epoch; may jump either way."""
        ...

    def monotonic(self) -> float:
        """Seconds that only grow; meaningless but for differences."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()
