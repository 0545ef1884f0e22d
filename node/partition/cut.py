"""All partitions of a node at one moment: what a set of snapshots is made of.

Partitions talk to each other by numbered messages. Put back at different moments, one would hold
messages that another doesn't know to have sent, or lack some that were acknowledged. So flushes are
held until none is under way, and then everything applied is frozen in one turn of the loop: what a
partition has received by then was sent by then, and what was acknowledged was received.

Where partitions are led by several nodes there is no such turn: they come to one moment by standing
still for it (``cluster_cut.py``), and what came of it is checked by the numbers of the messages.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from perdure.core.errors import SnapshotsUnavailable
from perdure.core.ids import PartitionId
from perdure.core.limits_snapshots import SNAPSHOT_CUT_MS
from perdure.node.partition.processor import Processor
from perdure.storage.env import Snapshot
from perdure.storage.keys import outbox_key, split_outbox_key
from perdure.storage.partition_store import TableId
from perdure.storage.table_images import HeldTables
from perdure.storage.tables.timers import inbound_counter, outbox_counter

Hold = Callable[[PartitionId], HeldTables]
_SEQUENCES, _OUTBOX = bytes([TableId.SEQUENCES]), bytes([TableId.OUTBOX])


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
            await all_called([processor.hold_flushes for processor in processors])
            at_moment()
            await all_called([processor.flush_held for processor in processors])
        return hold_all(processors, hold)
    except TimeoutError as error:
        raise SnapshotsUnavailable(
            "the partitions' tables can't be flushed: see partition.flush.failed in the log"
        ) from error
    finally:
        for processor in processors:
            processor.release_flushes()


class Counters(msgspec.Struct, frozen=True, array_like=True):
    """How far a partition's messages are, at ``lsn``, by the other partition: the last one sent,
    the first one still in the outbox (the next one, if there is none), the last one received."""

    partition: int
    lsn: int
    sent: tuple[int, ...]
    waiting: tuple[int, ...]
    received: tuple[int, ...]


def read_counters(partition: int, lsn: int, tables: Snapshot, partition_count: int) -> Counters:
    """The counters of tables at ``lsn``."""
    sent: list[int] = []
    waiting: list[int] = []
    received: list[int] = []
    for other in range(partition_count):
        sent.append(_sequence(tables, outbox_counter(other)))
        received.append(_sequence(tables, inbound_counter(other)))
        lower, upper = outbox_key(other, 0), outbox_key(other + 1, 0)
        first = tables.scan(_OUTBOX + lower, _OUTBOX + upper, 1, 1)
        waiting.append(split_outbox_key(first[0][0][1:])[1] if first else sent[-1] + 1)
    return Counters(partition, lsn, tuple(sent), tuple(waiting), tuple(received))


def _sequence(tables: Snapshot, counter: bytes) -> int:
    raw = tables.get(_SEQUENCES + counter)
    return msgspec.msgpack.decode(raw, type=int) if raw is not None else 0


def check_cut(partitions: Sequence[Counters]) -> None:
    """Refuse states that could not be put back together: each message that was sent is received,
    or still waits to be sent again, and none is received that its sender doesn't know of.

    Raises:
        SnapshotsUnavailable: they are not of one moment.
    """
    for source in partitions:
        for target in partitions:
            received = target.received[source.partition]
            if (
                not source.waiting[target.partition] - 1
                <= received
                <= (source.sent[target.partition])
            ):
                raise SnapshotsUnavailable(
                    f"the partitions' tables are not of one moment: {target.partition} has "
                    f"received {received} messages of {source.partition}, which has sent "
                    f"{source.sent[target.partition]} and keeps them from "
                    f"{source.waiting[target.partition]} on; it is tried again"
                )


def hold_all(processors: Sequence[Processor], hold: Hold) -> list[HeldPartition]:
    """Hold what was flushed last, of all of them or of none."""
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


async def all_called(starts: Sequence[Callable[[Callable[[], None]], None]]) -> None:
    """Start all in this turn, and wait until each has called back."""
    await start_all(starts).wait()


def start_all(starts: Sequence[Callable[[Callable[[], None]], None]]) -> asyncio.Event:
    """Start all now; set once each has called back."""
    waiting = len(starts)
    done = asyncio.Event()

    def one() -> None:
        nonlocal waiting
        waiting -= 1
        if not waiting:
            done.set()

    if not starts:
        done.set()
    for start in starts:
        start(one)
    return done
