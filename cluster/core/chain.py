"""A partition's configuration register: who leads, and which segments form its log. Pure edits.

One value per partition holds epoch, claim and chain, so one compare-and-set moves them together.
Invariants: versions, epochs and segment indices only grow, and a closed segment never changes
(I-11) · only the last segment is open · next base = previous base + tail.
"""

import msgspec

from perdure.cluster.core.types import Member, NodeId, SegmentParams, Writer
from perdure.core.invariant import invariant

FIRST_LSN = 1


class SegmentMeta(msgspec.Struct, frozen=True, array_like=True):
    """A segment in the chain; ``tail_lsn`` (exclusive) is None while it is open.

    ``is_under_replicated``: it was closed although fewer than ``replication`` replicas were left
    to hold its last records; an operator's policy allowed it.
    """

    index: int
    base_lsn: int
    tail_lsn: int | None
    epoch: int
    writer: Writer
    nodeset: tuple[Member, ...]
    replication: int
    is_under_replicated: bool = False

    def params(self, partition: int) -> SegmentParams:
        """The parameters its replicas and sequencer work with."""
        return SegmentParams(
            partition=partition,
            index=self.index,
            base_lsn=self.base_lsn,
            epoch=self.epoch,
            writer=self.writer,
            nodeset=self.nodeset,
            replication=self.replication,
        )


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """Who has been given ``epoch`` and may extend the chain under it."""

    writer: Writer
    epoch: int
    reason: str


class Replicas(msgspec.Struct, frozen=True, array_like=True):
    """Nodes that hold the partition's tables, first choice of a leader first.

    ``following``: the set that becomes current once one of its new members has caught up. No
    current replicas: the partition was never placed, any node may take it.
    """

    current: tuple[NodeId, ...] = ()
    following: tuple[NodeId, ...] | None = None

    @property
    def named(self) -> tuple[NodeId, ...]:
        """All of both sets, the current ones first."""
        coming = (node for node in self.following or () if node not in self.current)
        return (*self.current, *coming)


class LeaderPolicy(msgspec.Struct, frozen=True, array_like=True):
    """What operators want: ``pinned`` leads whenever it can; frozen: no hand-over for balance."""

    pinned: NodeId | None = None
    is_frozen: bool = False


class UnsafeClose(msgspec.Struct, frozen=True, array_like=True):
    """An operator's word that ``segment`` (of ``epoch``) ends although too few of its replicas are
    left: ``by`` whom, when, and which replicas were ``counted``.

    ``tail_lsn``: its end, exclusive; as long as it is only allowed, the least it may be.
    ``begins_lsn``: what is below may have holes, so the log begins there from then on.
    """

    segment: int
    epoch: int
    tail_lsn: int
    begins_lsn: int
    counted: tuple[Member, ...]
    by: str
    at_ms: int


class PartitionMeta(msgspec.Struct, frozen=True, array_like=True):
    """The register's value. ``allowed``: how the open segment may be closed without its rules;
    ``unsafe``: all closes of that kind, for ever: tables and disks of before may come back."""

    epoch: int
    claim: Claim | None
    trim_lsn: int
    chain: tuple[SegmentMeta, ...]
    replicas: Replicas = Replicas()
    policy: LeaderPolicy = LeaderPolicy()
    allowed: UnsafeClose | None = None
    unsafe: tuple[UnsafeClose, ...] = ()


def empty() -> PartitionMeta:
    """A partition nobody has led yet."""
    return PartitionMeta(0, None, FIRST_LSN, ())


def claim(meta: PartitionMeta, writer: Writer, reason: str) -> PartitionMeta:
    """Take the next epoch."""
    epoch = meta.epoch + 1
    return msgspec.structs.replace(meta, epoch=epoch, claim=Claim(writer, epoch, reason))


def extend(
    meta: PartitionMeta,
    mine: Claim,
    tail_offset: int,
    nodeset: tuple[Member, ...],
    replication: int,
    is_under_replicated: bool = False,
) -> PartitionMeta | None:
    """Close the open segment at ``tail_offset`` and open the next one under my claim.

    The nodeset may be another than before: changing it is taking over from oneself.
    None: somebody else has claimed since.
    """
    if meta.claim != mine:
        return None
    chain = list(meta.chain)
    index, base_lsn = 0, meta.trim_lsn
    if chain:
        last = chain[-1]
        invariant(last.tail_lsn is None, "the last segment is open", segment=last.index)
        invariant(mine.epoch > last.epoch, "epochs grow along the chain", epoch=mine.epoch)
        base_lsn = last.base_lsn + tail_offset
        index = last.index + 1
        chain[-1] = msgspec.structs.replace(
            last, tail_lsn=base_lsn, is_under_replicated=is_under_replicated
        )
    chain.append(SegmentMeta(index, base_lsn, None, mine.epoch, mine.writer, nodeset, replication))
    return msgspec.structs.replace(meta, chain=tuple(chain), allowed=None)


def allow_unsafe(meta: PartitionMeta, close: UnsafeClose) -> PartitionMeta | None:
    """Let whoever takes over close the open segment in this way; None: it is another one."""
    opened = open_segment(meta)
    if opened is None or (opened.index, opened.epoch) != (close.segment, close.epoch):
        return None
    return msgspec.structs.replace(meta, allowed=close)


def note_unsafe(meta: PartitionMeta, close: UnsafeClose, lacking_below: int) -> PartitionMeta:
    """``extend`` has just closed a segment in that way. ``lacking_below``: offsets of it below this
    one may be on no replica."""
    closed = meta.chain[-2]
    invariant(closed.index == close.segment, "what was allowed is done", segment=closed.index)
    assert closed.tail_lsn is not None
    begins_lsn = max(close.begins_lsn, closed.base_lsn + lacking_below if lacking_below else 0)
    done = msgspec.structs.replace(close, tail_lsn=closed.tail_lsn, begins_lsn=begins_lsn)
    return msgspec.structs.replace(
        meta, unsafe=(*meta.unsafe, done), trim_lsn=max(meta.trim_lsn, begins_lsn)
    )


def closed_unsafely(meta: PartitionMeta, segment: int) -> UnsafeClose | None:
    """How a segment was closed, if not by the rules."""
    return next((close for close in meta.unsafe if close.segment == segment), None)


def forsaken(meta: PartitionMeta, applied_lsn: int, applied_epoch: int) -> UnsafeClose | None:
    """The close that took back what such tables have applied last; None: they can go on.

    Records carry their segment's epoch (I-13): what lies at or beyond the tail and is not of a
    later segment was cut off.
    """
    for close in meta.unsafe:
        if applied_lsn >= close.tail_lsn and applied_epoch <= close.epoch:
            return close
    return None


def trim_prefix(meta: PartitionMeta, below_lsn: int) -> PartitionMeta:
    """Drop closed segments that end at or below ``below_lsn``."""
    kept = tuple(s for s in meta.chain if s.tail_lsn is None or s.tail_lsn > below_lsn)
    dropped = [s.tail_lsn for s in meta.chain if s.tail_lsn is not None and s not in kept]
    trim = max([meta.trim_lsn, *dropped])
    return msgspec.structs.replace(meta, chain=kept, trim_lsn=trim)


def open_segment(meta: PartitionMeta) -> SegmentMeta | None:
    """The last segment while it is open."""
    if meta.chain and meta.chain[-1].tail_lsn is None:
        return meta.chain[-1]
    return None


def segment_at(meta: PartitionMeta, lsn: int) -> SegmentMeta | None:
    """The segment that holds ``lsn``, or will; None below the trim point."""
    for segment in meta.chain:
        if segment.base_lsn <= lsn and (segment.tail_lsn is None or lsn < segment.tail_lsn):
            return segment
    return None
