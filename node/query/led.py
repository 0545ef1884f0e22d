"""What a statement reads where it is led: tables as they are now, and running sessions."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from perdure.core.errors import PartitionUnavailable
from perdure.core.ids import InvocationId
from perdure.core.limits import QUERY_FLUSH_MS
from perdure.core.telemetry import logger
from perdure.node.partition.gateway import LedPartition
from perdure.node.query.live import Live, capture
from perdure.storage.env import Snapshot

log = logger("query")


class Opened(NamedTuple):
    """A state of each partition, by number, and sessions."""

    snapshots: dict[int, Snapshot]
    live: dict[InvocationId, Live]


class LedTables:
    """The partitions of this node. ``is_alone``: no other node could lead what this one doesn't."""

    def __init__(self, partitions: Sequence[LedPartition], *, is_alone: bool) -> None:
        self._partitions = partitions
        self._is_alone = is_alone

    @property
    def partition_count(self) -> int:
        return len(self._partitions)

    def leads(self, partition: int) -> bool:
        """Whether a statement reads the partition here."""
        return self._is_alone or self._partitions[partition].leader.is_leading

    async def open(self, tables: Sequence[int], live: Sequence[int]) -> Opened:
        """Hold the tables of some partitions and the sessions of some, with all in them that was
        acknowledged before.

        Raises:
            PartitionUnavailable: this node doesn't lead one of them, or it can't be sure.
        """
        if not self._is_alone:
            await asyncio.gather(*(self._confirm(each) for each in sorted({*tables, *live})))
        await self._flush(tables)
        sessions: dict[InvocationId, Live] = {}
        for number in live:
            runs = self._partitions[number].leader.invoker.runs()
            sessions.update(capture(run) for run in runs)
        snapshots = {
            number: self._partitions[number].processor.store.env.snapshot() for number in tables
        }
        return Opened(snapshots, sessions)

    async def _confirm(self, number: int) -> None:
        if not self.leads(number):
            raise PartitionUnavailable(
                f"partition {number} is not led by this node (any more): ask the new leader"
            )
        await self._partitions[number].leader.confirm()

    async def _flush(self, partitions: Sequence[int]) -> None:
        """Bring the tables up to what is applied now."""
        loop = asyncio.get_running_loop()
        flushed: list[asyncio.Future[None]] = []
        for number in partitions:
            processor = self._partitions[number].processor
            if processor.halted is not None or processor.is_flushed():
                continue  # a halted partition is shown as it was flushed last
            done: asyncio.Future[None] = loop.create_future()
            flushed.append(done)
            processor.flush(partial(_resolve, done))
        if not flushed:
            return
        _, late = await asyncio.wait(flushed, timeout=QUERY_FLUSH_MS / 1000)
        if late:
            log.warning("query.tables.stale", partitions=len(late))


def _resolve(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
