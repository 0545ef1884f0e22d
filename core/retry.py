"""Retry schedules as arithmetic: how long to wait before try k, and when to give up.

Delays grow geometrically to a cap; jitter only ever adds (spec: 0 to 30 %, at least 3 ms).
"""

from dataclasses import dataclass

from perdure.core.entropy import Entropy

_JITTER_SHARE = 0.3
_JITTER_MS_MIN = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """``attempts_max`` counts the first try; None is without end, 0 behaves as 1."""

    initial_ms: float
    factor: float
    interval_ms_max: float | None
    attempts_max: int | None

    def delay_ms(self, retry: int) -> float | None:
        """Milliseconds before retry ``retry`` (from 1), without jitter; None: give up."""
        if self.attempts_max is not None and retry >= max(self.attempts_max, 1):
            return None
        cap = self.interval_ms_max if self.interval_ms_max is not None else float("inf")
        try:
            return min(self.initial_ms * float(self.factor) ** (retry - 1), cap)
        except OverflowError:
            return cap


def with_jitter(delay_ms: float, entropy: Entropy) -> float:
    """The delay plus a random share of itself."""
    return delay_ms + entropy.jitter(max(delay_ms * _JITTER_SHARE, _JITTER_MS_MIN))
