"""Due times of a partition: the near ones in memory, the rest in the table.

``TimerWindow`` is pure: a heap of timer keys below a horizon, which is raised by reading the next
keys from the table when the heap runs low. A million far timers cost disk, not memory.
``TimerService`` wakes up and proposes what is due, one record at a time: a million timers that are
due at once take turns with everything else.
"""

import asyncio
import heapq
from collections.abc import Callable

from perdure.core.clock import Clock
from perdure.core.errors import PerdureError
from perdure.core.limits import TIMER_WINDOW_COUNT, TIMERS_PER_RECORD_MAX

_REFUSED_RETRY_SECONDS = 0.1
# Wake up this often at least, to notice that the wall clock was set.
_SLEEP_SECONDS_MAX = 5.0

Scan = Callable[[bytes, int], list[bytes]]
"""Up to ``limit`` timer keys from ``lower`` on, ascending."""

Fire = Callable[[list[bytes], Callable[[], None]], None]
"""Propose due timers; the callback is called once they are applied. May raise PerdureError."""


class TimerWindow:
    """Invariant: every stored timer below ``horizon`` is in the heap or was taken from it."""

    def __init__(self, scan: Scan, window: int = TIMER_WINDOW_COUNT) -> None:
        self._scan = scan
        self._window = window
        self._heap: list[bytes] = []
        self._horizon: bytes | None = b""

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, key: bytes) -> bool:
        """A timer was stored; True when it is the next to fire now."""
        if self._horizon is not None and key >= self._horizon:
            return False
        heapq.heappush(self._heap, key)
        if len(self._heap) > 2 * self._window:
            self._heap.sort()
            self._horizon = self._heap[self._window]
            del self._heap[self._window :]
        return self._heap[0] is key

    def next_at_ms(self) -> int | None:
        """When the next timer is due; None when there is none."""
        if not self._heap:
            self._refill()
        return int.from_bytes(self._heap[0][:8]) if self._heap else None

    def take_due(self, now_ms: int, limit: int) -> list[bytes]:
        """Remove and return up to ``limit`` timers due at ``now_ms``, in order."""
        due: list[bytes] = []
        while len(due) < limit:
            at_ms = self.next_at_ms()
            if at_ms is None or at_ms > now_ms:
                break
            due.append(heapq.heappop(self._heap))
        return due

    def give_back(self, keys: list[bytes]) -> None:
        """Timers that could not be proposed after all."""
        for key in keys:
            heapq.heappush(self._heap, key)

    def _refill(self) -> None:
        if self._horizon is None:
            return
        keys = self._scan(self._horizon, self._window + 1)
        if len(keys) > self._window:
            self._horizon = keys.pop()
        else:
            self._horizon = None
        self._heap = keys  # sorted, hence a heap


class TimerService:
    """Fires timers when they are due; what is refused is tried again shortly.

    ``rest_ms``: how long to rest after each record.
    """

    def __init__(
        self,
        scan: Scan,
        clock: Clock,
        fire: Fire,
        *,
        window: int = TIMER_WINDOW_COUNT,
        rest_ms: int = 0,
    ) -> None:
        self._window = TimerWindow(scan, window)
        self._clock = clock
        self._fire = fire
        self._rest_seconds = rest_ms / 1000
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None
        self._is_firing = False  # a record is under way
        self._is_stopped = False

    def start(self) -> None:
        """Begin to watch the table's timers."""
        self._arm()

    def add(self, key: bytes) -> None:
        """A timer was stored."""
        if self._window.add(key) and not self._is_firing:
            self._arm()

    def stop(self) -> None:
        self._is_stopped = True
        if self._handle is not None:
            self._handle.cancel()

    def __len__(self) -> int:
        return len(self._window)

    def _arm(self, rest_seconds: float = 0.0) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        at_ms = self._window.next_at_ms()
        if at_ms is not None and not self._is_stopped:
            due_in = (at_ms - self._clock.now_ms()) / 1000
            delay = max(min(due_in, _SLEEP_SECONDS_MAX), rest_seconds)
            self._handle = self._loop.call_later(delay, self._wake)

    def _wake(self) -> None:
        self._handle = None
        due = self._window.take_due(self._clock.now_ms(), TIMERS_PER_RECORD_MAX)
        if not due:
            self._arm()
            return
        self._is_firing = True
        try:
            self._fire(due, self._applied)
        except PerdureError:
            self._is_firing = False
            self._window.give_back(due)
            self._handle = self._loop.call_later(_REFUSED_RETRY_SECONDS, self._wake)

    def _applied(self) -> None:
        """The record is applied: its timers are no longer in the table."""
        self._is_firing = False
        self._arm(self._rest_seconds)
