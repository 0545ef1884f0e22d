"""What sequencers, recoverers and readers say to the replicas of other nodes, and hear from them.

A message carries items of many segments, because messages are what costs.
"""

from perdure.cluster.core.messages import Message, Request
from perdure.cluster.core.types import (
    Member,
    Refused,
    Release,
    SealOk,
    SegmentRef,
    SegmentState,
    Store,
    StoreAck,
)


class Stores(Message, frozen=True, tag=0x0101):
    """Sequencer to replicas: records."""

    items: tuple[Store, ...]


class StoreReplies(Message, frozen=True, tag=0x0102):
    """Replicas to sequencers: durable, or refused."""

    acks: tuple[StoreAck, ...]
    refusals: tuple[Refused, ...] = ()


class Releases(Message, frozen=True, tag=0x0103):
    """Sequencer to replicas: how far commits have come."""

    items: tuple[Release, ...]


class HelloOk(Message, frozen=True, tag=0x0105):
    """``states``: one per segment asked for; None: nothing of it is here."""

    member: Member
    is_authoritative: bool
    states: tuple[SegmentState | None, ...]


class Hello(Request[HelloOk], frozen=True, tag=0x0104):
    """What do you have of these segments?"""

    refs: tuple[SegmentRef, ...]


class Sealed(Message, frozen=True, tag=0x0107):
    """One of the two."""

    reply: SealOk | None
    refused: Refused | None = None


class SealSegment(Request[Sealed], frozen=True, tag=0x0106):
    """Take no stores to the segment any more."""

    ref: SegmentRef
    by_epoch: int


class Repaired(Message, frozen=True, tag=0x0109):
    """Who holds the copies now, durably; or why they were refused."""

    member: Member
    refused: Refused | None = None


class RepairSegment(Request[Repaired], frozen=True, tag=0x0108):
    """Hold these records of a sealed segment."""

    ref: SegmentRef
    by_epoch: int
    first_offset: int
    records: tuple[bytes, ...]


class CloseSegment(Message, frozen=True, tag=0x010A):
    """Version ``version`` of the chain says that the segment ends at ``tail``; ``is_unsafe``: even
    where commits beyond it are known."""

    partition: int
    segment: int
    tail: int
    version: int
    is_unsafe: bool = False


class TrimSegment(Message, frozen=True, tag=0x010B):
    """The writer says that committed records below ``up_to`` may go."""

    ref: SegmentRef
    up_to: int


class Probed(Message, frozen=True, tag=0x010D):
    """One answer per segment: pinned to its writer and not sealed."""

    confirmed: tuple[bool, ...]


class Probe(Request[Probed], frozen=True, tag=0x010C):
    """Are these segments still mine?"""

    refs: tuple[SegmentRef, ...]


class Records(Message, frozen=True, tag=0x010F):
    """A piece of a segment: records from ``first_offset`` on. No records: nothing is here up to
    ``first_offset`` (a hole, or what was trimmed)."""

    first_offset: int
    records: tuple[bytes, ...]
    is_trimmed: bool = False


class ReadSegment(Request[Records], frozen=True, tag=0x010E):
    """Stream the records in ``[lower, upper)`` as far as they may be shown.

    ``for_repair``: a recoverer reads a sealed segment; it may see what is not committed.
    ``closed_tail``: what version ``version`` of the chain says, in case the replica has not heard;
    ``is_unsafe`` as in ``CloseSegment``.
    """

    partition: int
    segment: int
    lower: int
    upper: int
    for_repair: bool = False
    closed_tail: int | None = None
    version: int = 0
    is_unsafe: bool = False


class TailState(Message, frozen=True, tag=0x0111):
    """How far a replica's segment may be read, and whether it ends there."""

    kgt: int
    is_sealed: bool
    closed_tail: int | None


class WatchTail(Request[TailState], frozen=True, tag=0x0110):
    """Stream each change of a segment's tail, beginning with how it is."""

    partition: int
    segment: int


class Extent(Message, frozen=True, tag=0x0113):
    """Records ``[first_offset, first_offset + count)`` are here; ``crc`` is over their CRCs."""

    first_offset: int
    count: int
    crc: int


class DigestSegment(Request[Extent], frozen=True, tag=0x0112):
    """Stream what is here of ``[lower, upper)``, cut at multiples of ``step``."""

    partition: int
    segment: int
    lower: int
    upper: int
    step: int
