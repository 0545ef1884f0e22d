"""Words of the log: who writes, where to, and what replicas and sequencers say to each other."""

from dataclasses import dataclass
from typing import NewType

import msgspec

from perdure.storage.wal_format import ProducerKind

NodeId = NewType("NodeId", int)
"""Plain id of a node, u16, from 1."""

SegmentKey = tuple[int, int]
"""Partition and segment index."""


class Writer(msgspec.Struct, frozen=True, array_like=True):
    """One run of one process: the only thing that may ever write to a segment it opened."""

    node: NodeId
    generation: int
    incarnation: int


class Member(msgspec.Struct, frozen=True, array_like=True):
    """A replica's place: the node and the very disk. A new disk is a new member."""

    node: NodeId
    storage_uuid: bytes


class SegmentRef(msgspec.Struct, frozen=True, array_like=True):
    """A segment and whom its replicas are pinned to."""

    partition: int
    segment: int
    epoch: int
    incarnation: int

    @property
    def key(self) -> SegmentKey:
        return self.partition, self.segment


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentParams:
    """Fixed for a segment's life. ``lsn = base_lsn + offset``; offsets are u32 from 0."""

    partition: int
    index: int
    base_lsn: int
    epoch: int
    writer: Writer
    nodeset: tuple[Member, ...]
    replication: int

    @property
    def key(self) -> SegmentKey:
        return self.partition, self.index

    @property
    def ref(self) -> SegmentRef:
        return SegmentRef(self.partition, self.index, self.epoch, self.writer.incarnation)

    @property
    def seal_quorum(self) -> int:
        """n - R + 1: meets every write quorum of R."""
        return len(self.nodeset) - self.replication + 1


class Proposal(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a proposer asks to be appended; the sequencer adds LSN, epoch and checksum."""

    kind: int
    payload: bytes
    created_at_ms: int
    key_hash: int = 0
    producer_kind: int = ProducerKind.OWN
    producer_id: int = 0
    producer_seq: int = 0


class Store(msgspec.Struct, frozen=True, array_like=True):
    """Sequencer to replica: records from ``first_offset`` on. ``kgt`` as the sequencer knows it."""

    partition: int
    segment: int
    epoch: int
    incarnation: int
    first_offset: int
    kgt: int
    records: tuple[bytes, ...]


class StoreAck(msgspec.Struct, frozen=True, array_like=True):
    """Replica to sequencer, cumulative and durable: everything below ``local_tail`` is here, or
    was committed elsewhere when it was skipped."""

    partition: int
    segment: int
    local_tail: int


class Refused(msgspec.Struct, frozen=True, array_like=True):
    """Not taken. ``detail`` is the frozen tail, the seen epoch, the pin, or the local tail."""

    partition: int
    segment: int
    reason: str  # one of the REFUSED_ words
    detail: int


REFUSED_SEALED = "sealed"
REFUSED_STALE_EPOCH = "stale_epoch"
REFUSED_WRONG_WRITER = "wrong_writer"
REFUSED_GAP = "gap"
REFUSED_NO_STORAGE = "no_storage"
REFUSED_CLOSED = "closed"


class Release(msgspec.Struct, frozen=True, array_like=True):
    """Sequencer to replica: commits have come to ``kgt``."""

    ref: SegmentRef
    kgt: int


class SegmentState(msgspec.Struct, frozen=True, array_like=True):
    """A replica of a segment as it answers ``Hello`` and questions of operators.

    ``durable_tail`` is what an acknowledgement would say; ``closed_tail`` is the chain's.
    """

    ref: SegmentRef
    local_tail: int
    durable_tail: int
    kgt: int
    trim: int
    tail_at_seal: int | None
    closed_tail: int | None


class SealOk(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """Replica to recoverer: sealed, durably. ``held``: offsets at or above the asked one."""

    member: Member
    partition: int
    segment: int
    tail_at_seal: int
    kgt: int
    held: tuple[tuple[int, int], ...]  # (offset, CRC), ascending
