"""The one writer of an open segment: assigns offsets, batches, counts acknowledgements, commits.

Invariants: offsets are handed out once (I-1) · an offset is committed when R replicas have
acknowledged a tail above it to *this* sequencer, and commits form a prefix (I-4) · a sequencer
never resumes a segment: a new process or epoch is a new segment.
"""

from collections import deque
from dataclasses import dataclass

from perdure.cluster.core.quorum import check_property, committed_tail
from perdure.cluster.core.types import NodeId, Refused, SegmentParams, Store, StoreAck
from perdure.core.invariant import invariant
from perdure.core.limits import WINDOW_BYTES_MAX, WINDOW_RECORDS_MAX
from perdure.storage.wal_format import ProducerKind, Record, encode_record

_OFFSETS_MAX = 1 << 31


@dataclass(frozen=True, slots=True)
class Committed:
    """Everything below ``tail_lsn`` (exclusive) is on a write quorum."""

    tail_lsn: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """The sequencer takes no more; proposals without a commit have an unknown outcome."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What a proposer asks to be appended; the sequencer adds LSN, epoch and checksum."""

    kind: int
    payload: bytes
    created_at_ms: int
    key_hash: int = 0
    producer_kind: int = ProducerKind.OWN
    producer_id: int = 0
    producer_seq: int = 0


class SequencerCore:
    """Sequences one segment. ``committed`` and ``next_offset`` are exclusive tails."""

    def __init__(self, params: SegmentParams) -> None:
        check_property(len(params.nodeset), params.replication)
        self.params = params
        self.next_offset = 0
        self.committed = 0
        self.stopped: str | None = None
        self._acked: dict[NodeId, int] = {member.node: 0 for member in params.nodeset}
        self._batch: list[bytes] = []
        self._batch_first = 0
        self._sizes: deque[int] = deque()
        self._window_bytes = 0

    @property
    def window_bytes(self) -> int:
        """Bytes proposed and not committed."""
        return self._window_bytes

    def has_room(self) -> bool:
        """Whether the window takes another record; one always fits into an empty window."""
        return (
            self.next_offset - self.committed < WINDOW_RECORDS_MAX
            and self._window_bytes < WINDOW_BYTES_MAX
        )

    def propose(self, proposal: Proposal) -> int:
        """Give the record its LSN and put it into the current batch."""
        invariant(self.stopped is None, "a stopped sequencer takes nothing", why=self.stopped)
        invariant(self.next_offset < _OFFSETS_MAX, "a segment has room for offsets")
        lsn = self.params.base_lsn + self.next_offset
        record = encode_record(
            Record(
                lsn,
                self.params.epoch,
                proposal.kind,
                proposal.created_at_ms,
                proposal.producer_kind,
                proposal.producer_id,
                proposal.producer_seq,
                proposal.key_hash,
                proposal.payload,
            )
        )
        if not self._batch:
            self._batch_first = self.next_offset
        self._batch.append(record)
        self._sizes.append(len(record))
        self._window_bytes += len(record)
        self.next_offset += 1
        return lsn

    def flush(self) -> Store | None:
        """The batch as a store for every replica of the nodeset; None when there is none."""
        if not self._batch:
            return None
        records = tuple(self._batch)
        self._batch.clear()
        return Store(
            self.params.partition,
            self.params.index,
            self.params.epoch,
            self.params.writer.incarnation,
            self._batch_first,
            self.committed,
            records,
        )

    def on_ack(self, node: NodeId, ack: StoreAck) -> Committed | None:
        """A replica is durable up to a tail; what that commits, if anything."""
        invariant(ack.local_tail <= self.next_offset, "acks name offsets handed out", ack=ack)
        self._acked[node] = max(self._acked[node], ack.local_tail)
        tail = committed_tail(self._acked.values(), self.params.replication)
        if tail <= self.committed:
            return None
        for _ in range(tail - self.committed):
            self._window_bytes -= self._sizes.popleft()
        self.committed = tail
        return Committed(self.params.base_lsn + tail)

    def on_refused(self, refusal: Refused) -> Stopped:
        """A replica won't take our stores any more: someone else leads, or the disk failed."""
        self.stopped = refusal.reason
        return Stopped(refusal.reason)
