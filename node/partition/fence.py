"""Keeps a leader that was frozen from starting attempts: its successor may have recorded the steps.

A process that stood still for long wakes up as a leader in its own eyes. It can't commit any more,
but it could call a service. So attempts start only while the node was the leader a moment ago: a
record that it appended then has been committed, or its replicas have said so when asked. A moment
(``FENCE_FRESH_MS``) is shorter than the silence after which others take a node for dead, also
where its connections were lost meanwhile, as long as its port is taken.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from perdure.cluster.log import SegmentLog
from perdure.core.clock import Clock
from perdure.core.limits import FENCE_ASK_MS, FENCE_FRESH_MS, FENCE_SAMPLE_MS
from perdure.node.invoker.gate import Place
from perdure.node.partition.processor import Proposed


class Fence:
    """One term of a leader."""

    def __init__(self, segment_log: SegmentLog[Proposed], clock: Clock) -> None:
        self._log = segment_log
        self._clock = clock
        self._appended: deque[tuple[int, float]] = deque()  # LSNs and when they were appended
        self._sure_at = float("-inf")  # when it was the leader for sure
        self._waiting: list[Place] = []
        self._asking: asyncio.Task[None] | None = None

    def on_append(self) -> None:
        """A record is about to be appended."""
        now = self._clock.monotonic()
        if not self._appended or now - self._appended[-1][1] >= FENCE_SAMPLE_MS / 1000:
            self._appended.append((self._log.statistics().tail_lsn, now))

    def is_fresh(self) -> bool:
        """Whether this node was the leader a moment ago."""
        committed = self._log.statistics().committed_lsn
        while self._appended and self._appended[0][0] < committed:
            self._sure_at = max(self._sure_at, self._appended.popleft()[1])
        return self._clock.monotonic() - self._sure_at < FENCE_FRESH_MS / 1000

    def wait(self, start: Callable[[], None]) -> Place:
        """Call ``start`` once it is sure, if that ever happens."""
        place = Place(start)
        self._waiting.append(place)
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._ask(), name="fence")
        return place

    def stop(self) -> None:
        """The term is over: whoever waits does so for nothing."""
        self._waiting.clear()
        if self._asking is not None:
            self._asking.cancel()

    async def _ask(self) -> None:
        while not self.is_fresh() and not self._log.is_stopped:
            asked_at = self._clock.monotonic()
            if await self._log.confirm():
                self._sure_at = max(self._sure_at, asked_at)
            else:
                await asyncio.sleep(FENCE_ASK_MS / 1000)
        self._asking = None
        waiting, self._waiting = self._waiting, []
        for place in waiting:
            place.take()  # each looks again, and waits again where it has come too late
