"""A leader that stood still starts nothing before it knows that it still leads."""

import asyncio
from typing import Any, cast

from tests.sim.loop import SimLoop, run
from tests.sim.ports import SimClock

from perdure.cluster.log import SegmentLogStatistics
from perdure.core.limits import FENCE_FRESH_MS
from perdure.node.partition.fence import Fence

FRESH_S = FENCE_FRESH_MS / 1000


class Log:
    """A segment whose commits and successor the test decides."""

    def __init__(self) -> None:
        self.tail = self.committed = 1
        self.is_stopped = False
        self.has_successor = False
        self.asked = 0

    def statistics(self) -> SegmentLogStatistics:
        return SegmentLogStatistics(self.tail, self.committed, 0, 0, 0)

    async def confirm(self) -> bool:
        self.asked += 1
        await asyncio.sleep(0.01)
        return not self.has_successor


def fenced(loop: SimLoop) -> tuple[Log, Fence]:
    log = Log()
    return log, Fence(cast(Any, log), SimClock(loop))


def test_a_commit_proves_leadership_as_of_its_append() -> None:
    async def work(loop: SimLoop) -> None:
        log, fence = fenced(loop)
        assert not fence.is_fresh()
        fence.on_append()
        log.tail += 1
        assert not fence.is_fresh()
        log.committed += 1
        assert fence.is_fresh()
        await asyncio.sleep(FRESH_S)
        assert not fence.is_fresh()

        # Acks that waited while the process stood still prove nothing about now.
        fence.on_append()
        log.tail += 1
        await asyncio.sleep(2 * FRESH_S)
        log.committed += 1
        assert not fence.is_fresh()

    run(1, work)


def test_who_is_not_sure_asks_once_for_all_who_wait() -> None:
    async def work(loop: SimLoop) -> None:
        log, fence = fenced(loop)
        started: list[int] = []
        for number in range(3):
            fence.wait(lambda number=number: started.append(number))  # type: ignore[misc]
        await asyncio.sleep(0.1)
        assert (started, log.asked) == ([0, 1, 2], 1)
        assert fence.is_fresh()

    run(1, work)


def test_nothing_starts_once_there_is_a_successor() -> None:
    async def work(loop: SimLoop) -> None:
        log, fence = fenced(loop)
        log.has_successor = True
        started: list[int] = []
        fence.wait(lambda: started.append(0))
        await asyncio.sleep(1)
        fence.stop()
        await asyncio.sleep(1)
        assert started == []
        assert log.asked > 1

    run(1, work)
