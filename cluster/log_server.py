"""One node's replicas behind its write-ahead log: takes stores, says when they are durable.

Called in process by the sequencers, recoverers and readers of the same node; for those of other
nodes ``log_service`` calls the same methods.
"""

import asyncio
import zlib
from collections.abc import Callable, Iterator
from functools import partial

from perdure.cluster.core.chain import PartitionMeta, closed_unsafely
from perdure.cluster.core.log_messages import Extent, Records, TailState
from perdure.cluster.core.replica import ReplicaCore
from perdure.cluster.core.types import (
    REFUSED_WRONG_WRITER,
    Member,
    Refused,
    SealOk,
    SegmentKey,
    SegmentRef,
    SegmentState,
    Store,
    StoreAck,
)
from perdure.cluster.recent import RecentRecords
from perdure.cluster.wal_writer import WalWriter
from perdure.core.limits import READ_CHUNK_BYTES_MAX
from perdure.core.telemetry import logger
from perdure.storage.wal_format import Frame

log = logger("log")

AckReceiver = Callable[[StoreAck | Refused], None]


class LogServer:
    """The replicas of one node."""

    def __init__(self, core: ReplicaCore, writer: WalWriter) -> None:
        self._core = core
        self._writer = writer
        # Told in the order in which they came, so that simulations can be repeated.
        self._watchers: dict[SegmentKey, dict[asyncio.Event, None]] = {}
        self._recent: dict[SegmentKey, RecentRecords] = {}  # of those watched
        self.pin_conflicts = 0  # stores of a second writer of a segment, which must never be (I-20)

    @property
    def member(self) -> Member:
        """Node and disk."""
        return self._core.member

    @property
    def is_authoritative(self) -> bool:
        """Whether this disk's votes count."""
        return self._core.is_authoritative

    @property
    def is_full(self) -> bool:
        """Whether the disk has no room for another log file."""
        return self._writer.is_full

    def epoch_seen(self, partition: int) -> int:
        """The highest epoch that any request named."""
        return self._core.epoch_seen(partition)

    # --- For sequencers -------------------------------------------------------------------------

    def store(self, item: Store, reply: AckReceiver) -> None:
        """Take a sequencer's records; ``reply`` when they are durable, or at once if refused."""
        answer = self._core.store(item)
        if self._watchers:
            self._tell((item.partition, item.segment))
        if not isinstance(answer, Frame):
            if isinstance(answer, Refused) and answer.reason == REFUSED_WRONG_WRITER:
                self._on_pin_conflict(item, answer)
            reply(answer)
            return
        tail = answer.first_offset + answer.record_count
        if (recent := self._recent.get((item.partition, item.segment))) is not None:
            recent.add(answer.first_offset, tuple(answer.body))
        self._writer.stage(
            answer, partial(self._stored, (item.partition, item.segment), tail, reply)
        )

    def release(self, ref: SegmentRef, kgt: int) -> None:
        """The segment's writer tells how far commits have come."""
        if self._core.release(ref, kgt) and self._watchers:
            self._tell(ref.key)

    def state(self, key: SegmentKey) -> SegmentState | None:
        """What is here of a segment."""
        return self._core.state(key)

    def probe(self, ref: SegmentRef) -> bool:
        """Whether the segment is still its writer's."""
        return self._core.probe(ref)

    # --- For recoverers -------------------------------------------------------------------------

    def seal(
        self, ref: SegmentRef, by_epoch: int, sealed: Callable[[SealOk | Refused], None]
    ) -> None:
        """Refuse stores to the segment for ever; ``sealed`` once that is durable."""
        frame = self._core.seal(ref, by_epoch)
        if isinstance(frame, Refused):
            sealed(frame)
            return
        self._writer.stage(frame, partial(self._sealed, ref, sealed))
        self._tell(ref.key)

    def repair(
        self,
        ref: SegmentRef,
        by_epoch: int,
        first_offset: int,
        records: tuple[bytes, ...],
        repaired: Callable[[Refused | None], None],
    ) -> None:
        """Hold copies of records; ``repaired(None)`` once they are durable."""
        frames = self._core.repair(ref, by_epoch, first_offset, records)
        if isinstance(frames, Refused):
            repaired(frames)
            return

        def durable() -> None:
            self._core.on_repaired(ref.key, first_offset, len(records))
            repaired(None)

        for frame in frames[:-1]:
            self._writer.stage(frame, None)
        self._writer.stage(frames[-1], durable)

    # --- Consequences of the chain --------------------------------------------------------------

    def close_segment(
        self, key: SegmentKey, tail: int, version: int, is_unsafe: bool = False
    ) -> None:
        """The chain fixed the segment's tail; made durable with the next group."""
        before = self._core.state(key)
        if (frame := self._core.close(key, tail, version, is_unsafe=is_unsafe)) is not None:
            self._writer.stage(frame, None)
            self._tell(key)
            if is_unsafe and before is not None and before.local_tail > tail:
                log.error(
                    "log.segment.cut",
                    partition=key[0],
                    segment=key[1],
                    tail=tail,
                    had=before.local_tail,
                    committed=before.kgt,
                )

    def trim(self, key: SegmentKey, up_to: int) -> None:
        """Committed records below ``up_to`` are durable in tables: their place may go."""
        if (state := self._core.state(key)) is not None:
            self.release(state.ref, up_to)
            if state.closed_tail is not None:
                up_to = min(up_to, state.closed_tail)
        if (frame := self._core.trim(key, up_to)) is not None:
            self._writer.stage(frame, None)

    def trim_for(self, ref: SegmentRef, up_to: int) -> None:
        """As ``trim``, asked for by a segment's writer; ignored from anybody else."""
        state = self._core.state(ref.key)
        if state is not None and state.ref == ref:
            self.trim(ref.key, min(up_to, state.local_tail))

    def on_chain(self, partition: int, meta: PartitionMeta, version: int) -> None:
        """A version of the chain was read: close and drop here what it closed and dropped."""
        for segment in meta.chain:
            if segment.tail_lsn is not None:
                tail = segment.tail_lsn - segment.base_lsn
                is_unsafe = closed_unsafely(meta, segment.index) is not None
                self.close_segment((partition, segment.index), tail, version, is_unsafe)
        if meta.chain:
            self._core.drop(partition, meta.chain[0].index, version)

    # --- For readers ----------------------------------------------------------------------------

    def tail(self, key: SegmentKey) -> TailState | None:
        """How far the segment may be read here; None: nothing of it is here."""
        state = self._core.state(key)
        if state is None:
            return None
        return TailState(state.kgt, state.tail_at_seal is not None, state.closed_tail)

    def watch(self, key: SegmentKey, changed: asyncio.Event) -> Callable[[], None]:
        """Set ``changed`` whenever the segment's tail moves; returns how to end it."""
        self._watchers.setdefault(key, {})[changed] = None
        self._recent.setdefault(key, RecentRecords())

        def forget() -> None:
            watchers = self._watchers.get(key, {})
            watchers.pop(changed, None)
            if not watchers:
                self._watchers.pop(key, None)
                self._recent.pop(key, None)

        return forget

    def read(
        self, key: SegmentKey, lower: int, upper: int, *, for_repair: bool = False
    ) -> Records | None:
        """Records from ``lower`` on, as far as they are here and may be shown; None: not now.

        Nothing is read that isn't synced. Raises LogDamaged.
        """
        state = self._core.state(key)
        if state is None:
            return None
        bound = self._readable(state, for_repair)
        upper = min(upper, bound)
        if lower >= upper:
            return None
        if not for_repair and lower < state.trim:
            return Records(min(state.trim, upper), (), True)
        recent = self._recent.get(key) if not for_repair else None
        if recent is not None and (found := recent.take(lower, upper, READ_CHUNK_BYTES_MAX)):
            return Records(lower, found)
        held = self._writer.wal.read_records(key, lower, upper, READ_CHUNK_BYTES_MAX)
        if held.records:
            return Records(lower, tuple(held.records))
        return Records(min(held.first_offset or upper, upper), ())

    def _readable(self, state: SegmentState, for_repair: bool) -> int:
        """Exclusive. Stores are looked up once they are synced: until then there may be nothing to
        find, which must not be taken for a hole."""
        if for_repair:
            return 1 << 32 if state.tail_at_seal is not None else 0
        kgt = self._core.readable_tail(state.ref.key)
        if state.durable_tail < state.local_tail:
            return min(kgt, state.durable_tail)
        return kgt

    def digest(self, key: SegmentKey, lower: int, upper: int, step: int) -> Iterator[Extent | None]:
        """What is here of ``[lower, upper)``, cut at multiples of ``step``. Raises LogDamaged.

        None after each piece that was read: let the loop do something else then.
        """
        state = self._core.state(key)
        bound = self._readable(state, False) if state is not None else 0
        upper = min(upper, bound)
        while lower < upper:
            end = min(upper, lower - lower % step + step)
            first, crc = lower, 0
            following: int | None = lower
            while lower < end and following == lower:
                held = self._writer.wal.read_records(key, lower, end, READ_CHUNK_BYTES_MAX)
                for record in held.records:
                    crc = zlib.crc32(record[-4:], crc)
                lower += len(held.records)
                following = lower if held.records else held.first_offset
                yield None
            if lower > first:
                yield Extent(first, lower - first, crc)
            if lower < end:
                lower = end if following is None else min(following, end)

    # --- Inside ---------------------------------------------------------------------------------

    def _on_pin_conflict(self, item: Store, refused: Refused) -> None:
        self.pin_conflicts += 1
        log.error(
            "log.writer.refused",
            partition=item.partition,
            segment=item.segment,
            pinned=refused.detail,
        )

    def _stored(self, key: SegmentKey, tail: int, reply: AckReceiver) -> None:
        ack = self._core.on_durable(key, tail)
        if self._watchers:
            self._tell(key)  # what was committed elsewhere before can be read here from now on
        reply(ack)

    def _sealed(self, ref: SegmentRef, sealed: Callable[[SealOk | Refused], None]) -> None:
        if self._core.state(ref.key) is None:
            sealed(Refused(*ref.key, "stale_epoch", self._core.epoch_seen(ref.partition)))
        else:
            sealed(self._core.seal_reply(ref.key))

    def _tell(self, key: SegmentKey) -> None:
        for changed in self._watchers.get(key, ()):
            changed.set()
