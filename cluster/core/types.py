"""Words of the log: who writes, where to, and what replicas and sequencers say to each other."""

from dataclasses import dataclass
from typing import NewType

import msgspec

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
    def seal_quorum(self) -> int:
        """n - R + 1: meets every write quorum of R."""
        return len(self.nodeset) - self.replication + 1


@dataclass(frozen=True, slots=True)
class Store:
    """Sequencer to replica: records from ``first_offset`` on. ``kgt`` as the sequencer knows it."""

    partition: int
    segment: int
    epoch: int
    incarnation: int
    first_offset: int
    kgt: int
    records: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class StoreAck:
    """Replica to sequencer, cumulative and durable: everything below ``local_tail`` is here."""

    partition: int
    segment: int
    local_tail: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Replica to sequencer: not taken. ``detail`` is the frozen tail, the seen epoch or the pin."""

    partition: int
    segment: int
    reason: str  # "sealed", "wrong_writer", "stale_epoch", "gap", "failed"
    detail: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SealOk:
    """Replica to recoverer: sealed, durably. ``held``: offsets at or above the asked one."""

    member: Member
    partition: int
    segment: int
    tail_at_seal: int
    kgt: int
    held: tuple[tuple[int, int], ...]  # (offset, CRC), ascending
