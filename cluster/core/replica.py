"""One log server's replicas as a machine: what it takes, refuses, and when it may say so.

Methods return the frames to persist; the driver calls ``on_durable`` or ``on_repaired`` after
their sync, and only then are the replies of those frames sent.

Invariants: one writer per segment for ever (I-1) · an offset never holds two contents (I-2) ·
replies only after the sync (I-3) · holes only below the known global tail (I-5) · a sealed replica
takes no stores and reports the frozen tail (I-6) · repair never moves the known global tail (I-7) ·
a closed segment's tail never changes (I-11) and covers every commit (I-8), unless it was closed
unsafely: a disk that comes back may know of commits beyond.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from perdure.cluster.core.checkpoint import Checkpoint, SegmentSummary
from perdure.cluster.core.types import (
    REFUSED_CLOSED,
    REFUSED_GAP,
    REFUSED_NO_STORAGE,
    REFUSED_SEALED,
    REFUSED_STALE_EPOCH,
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
from perdure.core.invariant import invariant
from perdure.storage.wal_format import Frame, FrameHeader, FrameType


@dataclass(slots=True)
class Segment:
    """A replica of one segment. ``local_tail`` counts staged frames, ``durable_tail`` synced ones.

    ``crcs`` holds (offset -> CRC of the record) from ``kgt`` on: what recovery may have to name.
    ``unsynced``: repaired offsets whose frames are not durable yet, so that no reply names them.
    ``is_unsafe``: it was closed by an operator's word, whatever its writer has committed.
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
    unsynced: set[int] = field(default_factory=set[int])
    is_unsafe: bool = False

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
    """All replicas of one node. ``member`` names its disk in replies.

    Without ``is_authoritative`` (a disk that lost data, or isn't taken into service) it answers
    neither sequencers nor recoverers: its votes would count for what it doesn't have.
    """

    def __init__(self, member: Member, *, is_authoritative: bool = True) -> None:
        self.member = member
        self.is_authoritative = is_authoritative
        self._segments: dict[SegmentKey, Segment] = {}
        self._epochs: dict[int, int] = {}
        self._floors: dict[int, int] = {}
        self._versions: dict[int, int] = {}

    def epoch_seen(self, partition: int) -> int:
        """The highest epoch that a durable frame, or a request since, named; 0 for none."""
        return self._epochs.get(partition, 0)

    def version_seen(self, partition: int) -> int:
        """The highest version of the chain acted on; 0 for none."""
        return self._versions.get(partition, 0)

    def segment(self, key: SegmentKey) -> Segment | None:
        """State of a replica, for statistics and checks."""
        return self._segments.get(key)

    def segment_keys(self) -> list[SegmentKey]:
        """The segments that have a replica here."""
        return sorted(self._segments)

    # --- Requests of sequencers -----------------------------------------------------------------

    def store(self, item: Store) -> Frame | Refused | StoreAck:
        """Take records: the frame to persist, an ack for what is known, or a refusal."""
        key = (item.partition, item.segment)
        if not self.is_authoritative:
            return Refused(*key, REFUSED_NO_STORAGE, 0)
        seen = self.epoch_seen(item.partition)
        if item.epoch < seen or item.segment < self._floors.get(item.partition, 0):
            return Refused(*key, REFUSED_STALE_EPOCH, seen)
        segment = self._segments.get(key)
        if segment is None:
            if item.first_offset > item.kgt:
                return Refused(*key, REFUSED_GAP, 0)
            segment = self._segments[key] = Segment(item.epoch, item.incarnation)
            self._epochs[item.partition] = item.epoch
        if (segment.epoch, segment.incarnation) != (item.epoch, item.incarnation):
            return Refused(*key, REFUSED_WRONG_WRITER, segment.incarnation)
        if segment.tail_at_seal is not None:
            return Refused(*key, REFUSED_SEALED, segment.tail_at_seal)
        segment.raise_kgt(item.kgt)
        end = item.first_offset + len(item.records)
        if item.first_offset > segment.local_tail and item.first_offset > segment.kgt:
            return Refused(*key, REFUSED_GAP, segment.local_tail)
        known = max(segment.local_tail - item.first_offset, 0)
        for number, record in enumerate(item.records[:known]):
            self._check_same(segment, key, item.first_offset + number, record)
        if end <= segment.local_tail:
            return StoreAck(*key, segment.durable_tail)
        records = item.records[known:] if known else item.records
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

    def release(self, ref: SegmentRef, kgt: int) -> bool:
        """The segment's own sequencer tells how far commits have come; whether that was news."""
        segment = self._segments.get(ref.key)
        if segment is None or (segment.epoch, segment.incarnation) != (ref.epoch, ref.incarnation):
            return False
        if kgt <= segment.kgt or segment.is_unsafe:
            return False
        self._check_tail(segment, ref.key, kgt)
        segment.raise_kgt(kgt)
        return True

    def probe(self, ref: SegmentRef) -> bool:
        """Whether the segment is still its writer's: pinned to it and not sealed."""
        segment = self._segments.get(ref.key)
        return (
            self.is_authoritative
            and segment is not None
            and (segment.epoch, segment.incarnation) == (ref.epoch, ref.incarnation)
            and segment.tail_at_seal is None
        )

    def readable_tail(self, key: SegmentKey) -> int:
        """Below it, records may be shown to readers: committed, and within the chain (I-10)."""
        segment = self._segments.get(key)
        return segment.kgt if segment is not None else 0

    def state(self, key: SegmentKey) -> SegmentState | None:
        """What is here of a segment."""
        segment = self._segments.get(key)
        if segment is None:
            return None
        return SegmentState(
            SegmentRef(*key, segment.epoch, segment.incarnation),
            segment.local_tail,
            segment.durable_tail,
            segment.kgt,
            segment.trim,
            segment.tail_at_seal,
            segment.closed_tail,
        )

    # --- Requests of recoverers -----------------------------------------------------------------

    def seal(self, ref: SegmentRef, by_epoch: int) -> Frame | Refused:
        """Refuse stores for ever; reply with ``seal_reply`` once the frame is durable. Idempotent.

        A segment nobody stored to yet is pinned to its parameters, so that its writer can't start.
        """
        refused = self._refuse_recoverer(ref)
        if refused is not None:
            return refused
        segment = self._segments.get(ref.key)
        if segment is None:
            segment = self._segments[ref.key] = Segment(ref.epoch, ref.incarnation)
        if segment.tail_at_seal is None:
            segment.tail_at_seal = segment.local_tail
        seen = self.epoch_seen(ref.partition)
        self._epochs[ref.partition] = max(by_epoch, segment.epoch, seen)
        claim = by_epoch.to_bytes(8, "little")
        return _meta_frame(FrameType.SEAL, ref.key, segment, segment.tail_at_seal, claim)

    def seal_reply(self, key: SegmentKey, from_offset: int = 0) -> SealOk:
        """What a durable seal tells the recoverer: the frozen tail, kgt, and what is held above."""
        segment = self._segments[key]
        invariant(segment.tail_at_seal is not None, "sealed before replying", segment=key)
        assert segment.tail_at_seal is not None
        lower = max(segment.kgt, from_offset)
        held = tuple(
            sorted(
                (o, crc)
                for o, crc in segment.crcs.items()
                if o >= lower and o not in segment.unsynced
            )
        )
        return SealOk(
            member=self.member,
            partition=key[0],
            segment=key[1],
            tail_at_seal=segment.tail_at_seal,
            kgt=segment.kgt,
            held=held,
        )

    def repair(
        self, ref: SegmentRef, by_epoch: int, first_offset: int, records: tuple[bytes, ...]
    ) -> list[Frame] | Refused:
        """Hold records for a recoverer, sealing first; kgt and the frozen tail stay.

        ``on_repaired`` follows the sync of the frames.
        """
        refused = self._refuse_recoverer(ref)
        if refused is not None:
            return refused
        frames: list[Frame] = []
        segment = self._segments.get(ref.key)
        if segment is None or segment.tail_at_seal is None:
            sealed = self.seal(ref, by_epoch)
            assert isinstance(sealed, Frame)
            frames.append(sealed)
            segment = self._segments[ref.key]
        end = first_offset + len(records)
        if segment.closed_tail is not None and end > segment.closed_tail:
            return Refused(*ref.key, REFUSED_CLOSED, segment.closed_tail)
        for offset, record in enumerate(records, first_offset):
            self._check_same(segment, ref.key, offset, record)
            if offset >= segment.kgt and offset not in segment.crcs:
                segment.unsynced.add(offset)
        segment.note(first_offset, map(_crc, records))
        frames.append(
            Frame(
                FrameType.REPAIR,
                *ref.key,
                segment.epoch,
                segment.incarnation,
                first_offset,
                len(records),
                segment.kgt,
                records,
            )
        )
        return frames

    def on_repaired(self, key: SegmentKey, first_offset: int, count: int) -> None:
        """The REPAIR frame of these records was synced."""
        if (segment := self._segments.get(key)) is not None and segment.unsynced:
            segment.unsynced.difference_update(range(first_offset, first_offset + count))

    # --- Consequences of the chain --------------------------------------------------------------

    def close(
        self, key: SegmentKey, tail: int, version: int, *, is_unsafe: bool = False
    ) -> Frame | None:
        """Version ``version`` of the chain fixed the segment's tail: nothing at or beyond it
        exists. None: known, or told by a chain older than one acted on before."""
        if not self._is_current(key[0], version):
            return None
        segment = self._segments.get(key)
        if segment is None:
            return None
        if segment.closed_tail is not None:
            invariant(tail == segment.closed_tail, "closed once (I-11)", key=key, tail=tail)
            return None
        segment.is_unsafe = is_unsafe
        self._check_tail(segment, key, segment.kgt, tail)
        segment.closed_tail = tail
        if segment.tail_at_seal is None:
            segment.tail_at_seal = segment.local_tail
        segment.crcs = {}
        segment.unsynced = set()
        segment.kgt = tail
        body = version.to_bytes(8, "little") + b"!" * is_unsafe
        return _meta_frame(FrameType.CLOSE, key, segment, tail, body)

    def trim(self, key: SegmentKey, up_to: int) -> Frame | None:
        """Records below ``up_to`` may go; None when that is known."""
        segment = self._segments.get(key)
        if segment is None or up_to <= segment.trim:
            return None
        invariant(up_to <= segment.kgt, "only committed records are trimmed", key=key, trim=up_to)
        segment.trim = up_to
        return _meta_frame(FrameType.TRIM, key, segment, up_to)

    def drop(self, partition: int, below_index: int, version: int) -> None:
        """Forget segments that the chain no longer lists; the next checkpoint says so."""
        if not self._is_current(partition, version):
            return
        self._floors[partition] = max(below_index, self._floors.get(partition, 0))
        for key in [k for k in self._segments if k[0] == partition and k[1] < below_index]:
            del self._segments[key]

    def on_durable(self, key: SegmentKey, local_tail: int) -> StoreAck:
        """A STORE frame up to ``local_tail`` was synced: the ack that may now be sent."""
        segment = self._segments.get(key)
        if segment is None:  # dropped meanwhile: the chain has gone on without it
            return StoreAck(*key, local_tail)
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
                segment.is_unsafe,
            )
            for key, segment in sorted(self._segments.items())
        ]
        body = msgspec.msgpack.encode(
            Checkpoint(
                segments,
                sorted(self._epochs.items()),
                sorted(self._floors.items()),
                sorted(self._versions.items()),
            )
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
        if segment.closed_tail is None:
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
                segment.is_unsafe = len(body) > 8
                version = int.from_bytes(body[:8], "little")
                self._versions[header.partition] = max(version, self.version_seen(header.partition))
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
                is_unsafe=summary.is_unsafe,
            )
            for summary in checkpoint.segments
        }
        self._epochs = dict(checkpoint.epochs)
        self._floors = dict(checkpoint.floors)
        self._versions = dict(checkpoint.versions)

    # --- Checks ---------------------------------------------------------------------------------

    def _refuse_recoverer(self, ref: SegmentRef) -> Refused | None:
        if not self.is_authoritative:
            return Refused(*ref.key, REFUSED_NO_STORAGE, 0)
        if ref.segment < self._floors.get(ref.partition, 0):
            return Refused(*ref.key, REFUSED_STALE_EPOCH, self.epoch_seen(ref.partition))
        segment = self._segments.get(ref.key)
        if segment is not None and (segment.epoch, segment.incarnation) != (
            ref.epoch,
            ref.incarnation,
        ):
            return Refused(*ref.key, REFUSED_WRONG_WRITER, segment.incarnation)
        return None

    def _is_current(self, partition: int, version: int) -> bool:
        if version < self.version_seen(partition):
            return False
        self._versions[partition] = version
        return True

    def _check_tail(
        self, segment: Segment, key: SegmentKey, kgt: int, tail: int | None = None
    ) -> None:
        closed = tail if tail is not None else segment.closed_tail
        invariant(
            closed is None or kgt <= closed or segment.is_unsafe,
            "a chain tail covers commits (I-8)",
            segment=key,
            kgt=kgt,
            tail=closed,
        )

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
