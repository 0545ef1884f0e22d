"""All partitions of a node at one moment: what a set of snapshots is made of.

Partitions talk to each other by numbered messages. Put back at different moments, one would hold
messages that another doesn't know to have sent, or lack some that were acknowledged. So flushes are
held until none is under way, and then everything applied is frozen in one turn of the loop: what a
partition has received by then was sent by then, and what was acknowledged was received.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from perdure.core.errors import SnapshotsUnavailable
from perdure.core.ids import PartitionId
from perdure.core.limits import SNAPSHOT_CUT_MS
from perdure.node.partition.processor import Processor
from perdure.storage.table_images import HeldTables

Hold = Callable[[PartitionId], HeldTables]


@dataclass(frozen=True, slots=True)
class HeldPartition:
    """A partition's tables as of a moment. ``lsn``: the last record applied to them."""

    partition: PartitionId
    lsn: int
    tables: HeldTables


async def cut(
    processors: Sequence[Processor], hold: Hold, at_moment: Callable[[], None]
) -> list[HeldPartition]:
    """Hold the tables of all partitions as they are now; ``at_moment`` is called at that moment.

    Raises:
        SnapshotsUnavailable: a partition is halted, or can't be flushed.
        PartitionUnavailable: as above.
    """
    for processor in processors:
        processor.check_available()
    try:
        async with asyncio.timeout(SNAPSHOT_CUT_MS / 1000):
            await _all([processor.hold_flushes for processor in processors])
            at_moment()
            await _all([processor.flush_held for processor in processors])
        return _hold(processors, hold)
    except TimeoutError as error:
        raise SnapshotsUnavailable(
            "the partitions' tables can't be flushed: see partition.flush.failed in the log"
        ) from error
    finally:
        for processor in processors:
            processor.release_flushes()


def _hold(processors: Sequence[Processor], hold: Hold) -> list[HeldPartition]:
    held: list[HeldPartition] = []
    try:
        for processor in processors:
            processor.check_available()  # it may have been halted meanwhile, and not been flushed
            lsn = processor.store.durable_lsn
            held.append(HeldPartition(processor.partition, lsn, hold(processor.partition)))
    except BaseException:  # bulkhead: let go of what is held, and raise it again
        for item in held:
            item.tables.release()
        raise
    return held


async def _all(starts: Sequence[Callable[[Callable[[], None]], None]]) -> None:
    """Start all in this turn, and wait until each has called back."""
    waiting = len(starts)
    done = asyncio.Event()

    def one() -> None:
        nonlocal waiting
        waiting -= 1
        if not waiting:
            done.set()

    for start in starts:
        start(one)
    await done.wait()
