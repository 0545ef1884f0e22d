"""One log server's replicas as a machine: what it takes, refuses, and when it may say so.

Methods return the frames to persist; the driver calls ``on_durable`` after their sync, and only
then are the replies of those frames sent. Acceptance order and refusals follow the cluster log
design 2.5.1.

Invariants: one writer per segment for ever (I-1) · an offset never holds two contents (I-2) ·
replies only after the sync (I-3) · holes only below the known global tail (I-5) · a sealed replica
takes no stores and reports the frozen tail (I-6) · repair never moves the known global tail (I-7).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from perdure.cluster.core.types import (
    Member,
    Refused,
    SealOk,
    SegmentKey,
    SegmentParams,
    Store,
    StoreAck,
)
from perdure.core.invariant import invariant
from perdure.storage.wal_format import Frame, FrameHeader, FrameType


class SegmentSummary(msgspec.Struct, frozen=True, array_like=True):
    """A segment in a CHECKPOINT frame: all of a replica but its records.

    ``crcs`` as in ``Segment``: files that hold the records may be gone by the time it is read.
    """

    partition: int
    segment: int
    epoch: int
    incarnation: int
    local_tail: int
    kgt: int
    trim: int
    tail_at_seal: int | None
    closed_tail: int | None
    crcs: list[tuple[int, int]]


class Checkpoint(msgspec.Struct, frozen=True, array_like=True):
    """Body of a CHECKPOINT frame: every live segment; per partition, the highest epoch seen and
    the lowest segment index that still lives."""

    segments: list[SegmentSummary]
    epochs: list[tuple[int, int]]
    floors: list[tuple[int, int]]


@dataclass(slots=True)
class Segment:
    """A replica of one segment. ``local_tail`` counts staged frames, ``durable_tail`` synced ones.

    ``crcs`` holds (offset -> CRC of the record) from ``kgt`` on: what recovery may have to name.
    """

    epoch: int
    incarnation: int
    local_tail: int = 0
    durable_tail: int = 0
    kgt: int = 0
    trim: int = 0
    tail_at_seal: int | None = None
    closed_tail: int | None = None
    crcs: dict[int, int] = field(default_factory=dict[int, int])

    def raise_kgt(self, kgt: int) -> None:
        """Commits have come so far; below, recovery needs no names any more."""
        if kgt > self.kgt:
            if kgt - self.kgt <= len(self.crcs):
                for offset in range(self.kgt, kgt):
                    self.crcs.pop(offset, None)
            else:  # over a hole
                self.crcs = {offset: crc for offset, crc in self.crcs.items() if offset >= kgt}
            self.kgt = kgt

    def note(self, first_offset: int, crcs: Iterable[int]) -> None:
        """Records are held here."""
        for offset, crc in enumerate(crcs, first_offset):
            if offset >= self.kgt:
                self.crcs[offset] = crc


class ReplicaCore:
    """All replicas of one node. ``member`` names its disk in replies."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._segments: dict[SegmentKey, Segment] = {}
        self._epochs: dict[int, int] = {}
        self._floors: dict[int, int] = {}

    def epoch_seen(self, partition: int) -> int:
        """The highest epoch that a durable frame, or a request since, named; 0 for none."""
        return self._epochs.get(partition, 0)

    def segment(self, key: SegmentKey) -> Segment | None:
        """State of a replica, for statistics and checks."""
        return self._segments.get(key)

    # --- Requests -------------------------------------------------------------------------------

    def store(self, item: Store) -> Frame | Refused | StoreAck:
        """Take records: the frame to persist, an ack for what is known, or a refusal."""
        key = (item.partition, item.segment)
        seen = self.epoch_seen(item.partition)
        if item.epoch < seen or item.segment < self._floors.get(item.partition, 0):
            return Refused(*key, "stale_epoch", seen)
        segment = self._segments.get(key)
        if segment is None:
            if item.first_offset > item.kgt:
                return Refused(*key, "gap", 0)
            segment = self._segments[key] = Segment(item.epoch, item.incarnation)
            self._epochs[item.partition] = item.epoch
        if (segment.epoch, segment.incarnation) != (item.epoch, item.incarnation):
            return Refused(*key, "wrong_writer", segment.incarnation)
        if segment.tail_at_seal is not None:
            return Refused(*key, "sealed", segment.tail_at_seal)
        segment.raise_kgt(item.kgt)
        end = item.first_offset + len(item.records)
        if item.first_offset > segment.local_tail and item.first_offset > segment.kgt:
            return Refused(*key, "gap", segment.local_tail)
        known = max(segment.local_tail - item.first_offset, 0)
        for number, record in enumerate(item.records[:known]):
            self._check_same(segment, key, item.first_offset + number, record)
        if end <= segment.local_tail:
            return StoreAck(*key, segment.durable_tail)
        records = item.records[known:]
        first = item.first_offset + known
        segment.note(first, map(_crc, records))
        segment.local_tail = end
        return Frame(
            FrameType.STORE,
            item.partition,
            item.segment,
            item.epoch,
            item.incarnation,
            first,
            len(records),
            segment.kgt,
            records,
        )

    def seal(self, params: SegmentParams, by_epoch: int) -> Frame:
        """Refuse stores for ever; reply with ``seal_reply`` once the frame is durable. Idempotent.

        A segment nobody stored to yet is pinned to its parameters, so that its writer can't start.
        """
        segment = self._segments.get(params.key)
        if segment is None:
            segment = Segment(params.epoch, params.writer.incarnation)
            self._segments[params.key] = segment
        if segment.tail_at_seal is None:
            segment.tail_at_seal = segment.local_tail
        seen = self.epoch_seen(params.partition)
        self._epochs[params.partition] = max(by_epoch, segment.epoch, seen)
        claim = by_epoch.to_bytes(8, "little")
        return _meta_frame(FrameType.SEAL, params.key, segment, segment.tail_at_seal, claim)

    def seal_reply(self, key: SegmentKey, from_offset: int = 0) -> SealOk:
        """What a durable seal tells the recoverer: the frozen tail, kgt, and what is held above."""
        segment = self._segments[key]
        invariant(segment.tail_at_seal is not None, "sealed before replying", segment=key)
        assert segment.tail_at_seal is not None
        lower = max(segment.kgt, from_offset)
        held = tuple(sorted((o, crc) for o, crc in segment.crcs.items() if o >= lower))
        return SealOk(
            member=self._member,
            partition=key[0],
            segment=key[1],
            tail_at_seal=segment.tail_at_seal,
            kgt=segment.kgt,
            held=held,
        )

    def repair(self, key: SegmentKey, first_offset: int, records: tuple[bytes, ...]) -> Frame:
        """Hold records of a sealed segment for a recoverer; kgt and the frozen tail stay."""
        segment = self._segments[key]
        invariant(segment.tail_at_seal is not None, "only sealed segments are repaired", key=key)
        for offset, record in enumerate(records, first_offset):
            self._check_same(segment, key, offset, record)
        segment.note(first_offset, map(_crc, records))
        return Frame(
            FrameType.REPAIR,
            *key,
            segment.epoch,
            segment.incarnation,
            first_offset,
            len(records),
            segment.kgt,
            records,
        )

    def release(self, key: SegmentKey, kgt: int) -> None:
        """The segment's own sequencer tells how far commits have come."""
        if (segment := self._segments.get(key)) is not None:
            segment.raise_kgt(kgt)

    def close(self, key: SegmentKey, tail: int) -> Frame | None:
        """The chain fixed the segment's tail: nothing at or beyond it exists. None: known."""
        segment = self._segments.get(key)
        if segment is None or segment.closed_tail is not None:
            return None
        invariant(tail >= segment.kgt, "a chain tail covers commits (I-8)", key=key, tail=tail)
        segment.closed_tail = tail
        if segment.tail_at_seal is None:
            segment.tail_at_seal = segment.local_tail
        segment.crcs = {}
        segment.kgt = tail
        return _meta_frame(FrameType.CLOSE, key, segment, tail)

    def trim(self, key: SegmentKey, up_to: int) -> Frame | None:
        """Records below ``up_to`` may go; None when that is known."""
        segment = self._segments.get(key)
        if segment is None or up_to <= segment.trim:
            return None
        invariant(up_to <= segment.kgt, "only committed records are trimmed", key=key, trim=up_to)
        segment.trim = up_to
        return _meta_frame(FrameType.TRIM, key, segment, up_to)

    def drop(self, partition: int, below_index: int) -> None:
        """Forget segments that the chain no longer lists; the next checkpoint says so."""
        self._floors[partition] = max(below_index, self._floors.get(partition, 0))
        for key in [k for k in self._segments if k[0] == partition and k[1] < below_index]:
            del self._segments[key]

    def on_durable(self, key: SegmentKey, local_tail: int) -> StoreAck:
        """A STORE frame up to ``local_tail`` was synced: the ack that may now be sent."""
        segment = self._segments[key]
        segment.durable_tail = max(segment.durable_tail, local_tail)
        return StoreAck(*key, segment.durable_tail)

    # --- Persistence ----------------------------------------------------------------------------

    def checkpoint(self) -> Frame:
        """Everything but records, so that older files never matter for it."""
        segments = [
            SegmentSummary(
                *key,
                segment.epoch,
                segment.incarnation,
                segment.local_tail,
                segment.kgt,
                segment.trim,
                segment.tail_at_seal,
                segment.closed_tail,
                sorted(segment.crcs.items()),
            )
            for key, segment in sorted(self._segments.items())
        ]
        body = msgspec.msgpack.encode(
            Checkpoint(segments, sorted(self._epochs.items()), sorted(self._floors.items()))
        )
        return Frame(FrameType.CHECKPOINT, 0, 0, 0, 0, 0, 0, 0, (body,))

    def restore(self, header: FrameHeader, body: bytes, record_crcs: list[int]) -> None:
        """Repeat what a frame of the log did; frames come in log order, all of them durable."""
        if header.type == FrameType.CHECKPOINT:
            self._restore_checkpoint(msgspec.msgpack.decode(body, type=Checkpoint))
            return
        if header.type in (FrameType.MARK, FrameType.NOOP):
            return
        key = (header.partition, header.segment)
        segment = self._segments.get(key)
        if segment is None:
            segment = self._segments[key] = Segment(header.epoch, header.incarnation)
        self._epochs[header.partition] = max(header.epoch, self.epoch_seen(header.partition))
        segment.raise_kgt(header.kgt)
        match header.type:
            case FrameType.STORE:
                end = header.first_offset + header.record_count
                segment.local_tail = segment.durable_tail = max(segment.local_tail, end)
                segment.note(header.first_offset, record_crcs)
            case FrameType.REPAIR:
                segment.note(header.first_offset, record_crcs)
            case FrameType.SEAL:
                segment.tail_at_seal = header.first_offset
                claim = int.from_bytes(body, "little")
                self._epochs[header.partition] = max(claim, self.epoch_seen(header.partition))
            case FrameType.TRIM:
                segment.trim = header.first_offset
            case FrameType.CLOSE:
                segment.closed_tail = segment.kgt = header.first_offset
                if segment.tail_at_seal is None:
                    segment.tail_at_seal = segment.local_tail
                segment.crcs = {}
            case FrameType.PIN | FrameType.KGT:
                pass  # all they tell is in the header
            case _:
                invariant(False, "a frame type this release knows", type=header.type)

    def _restore_checkpoint(self, checkpoint: Checkpoint) -> None:
        self._segments = {
            (summary.partition, summary.segment): Segment(
                summary.epoch,
                summary.incarnation,
                summary.local_tail,
                summary.local_tail,
                summary.kgt,
                summary.trim,
                summary.tail_at_seal,
                summary.closed_tail,
                dict(summary.crcs),
            )
            for summary in checkpoint.segments
        }
        self._epochs = dict(checkpoint.epochs)
        self._floors = dict(checkpoint.floors)

    def _check_same(self, segment: Segment, key: SegmentKey, offset: int, record: bytes) -> None:
        known = segment.crcs.get(offset)
        invariant(
            known is None or known == _crc(record),
            "an offset never holds two contents (I-2)",
            segment=key,
            offset=offset,
        )


def _meta_frame(
    kind: FrameType, key: SegmentKey, segment: Segment, offset: int, body: bytes = b""
) -> Frame:
    parts = (body,) if body else ()
    return Frame(kind, *key, segment.epoch, segment.incarnation, offset, 0, segment.kgt, parts)


def _crc(record: bytes) -> int:
    return int.from_bytes(record[-4:], "little")
