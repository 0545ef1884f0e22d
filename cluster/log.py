"""A partition's log as its leader sees it: append proposals, get them back committed, in order.

``SegmentLog`` drives one sequencer. Proposals beyond the window wait in order; what commits is
delivered from memory with the context it was proposed with, never read back. ``LogBatcher`` flushes
all partitions' batches right before each group commit, so a loop turn costs one write.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from perdure.cluster.core.sequencer import Proposal, SequencerCore, Stopped
from perdure.cluster.core.types import Member, Refused, SegmentParams, StoreAck
from perdure.cluster.log_server import LogServer
from perdure.cluster.wal_writer import WalWriter
from perdure.core.errors import DiskFull, Overloaded, RecordTooLarge
from perdure.core.invariant import invariant
from perdure.core.limits import RECORD_BYTES_MAX, WAITING_BYTES_MAX, WAITING_PROPOSALS_MAX

C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class CommittedRecord(Generic[C]):
    """A record on a write quorum, with what its proposer passed along."""

    lsn: int
    proposal: Proposal
    context: C


@dataclass(frozen=True, slots=True)
class SegmentLogStatistics:
    """LSNs are exclusive tails: the window is what is between them. ``appended``: records since
    the segment was opened."""

    tail_lsn: int
    committed_lsn: int
    waiting: int
    window_bytes: int
    appended: int


class LogBatcher:
    """Collects the partitions that have something to store when a group is taken."""

    def __init__(self, writer: WalWriter) -> None:
        self._writer = writer
        self._dirty: list[Callable[[], None]] = []
        writer.before_flush(self._collect)

    def add(self, store_batch: Callable[[], None]) -> None:
        """Have ``store_batch`` called before the next group is taken."""
        self._dirty.append(store_batch)
        self._writer.request_flush()

    def _collect(self) -> None:
        dirty, self._dirty = self._dirty, []
        for store_batch in dirty:
            store_batch()


class SegmentLog(Generic[C]):
    """The open segment that this process writes."""

    def __init__(
        self,
        params: SegmentParams,
        member: Member,
        server: LogServer,
        batcher: LogBatcher,
        on_committed: Callable[[list[CommittedRecord[C]]], None],
        on_stopped: Callable[[str], None],
    ) -> None:
        self._core = SequencerCore(params)
        self._node = member.node
        self._server = server
        self._batcher = batcher
        self._on_committed = on_committed
        self._on_stopped = on_stopped
        self._in_flight: deque[CommittedRecord[C]] = deque()
        self._waiting: deque[tuple[Proposal, C]] = deque()
        self._waiting_bytes = 0
        self._is_dirty = False
        self._is_abandoned = False

    @property
    def is_stopped(self) -> bool:
        """Whether a replica refused us, or we gave up: this log takes nothing more."""
        return self._is_abandoned or self._core.stopped is not None

    def append(self, proposal: Proposal, context: C, *, waits_for_room: bool = False) -> None:
        """Propose a record; it comes back through ``on_committed``, in order, or never.

        Raises:
            DiskFull: no room for it now, unless it ``waits_for_room``.
            RecordTooLarge: the payload exceeds the limit of a record.
            Overloaded: too many proposals wait already.
        """
        if self._server.is_full and not waits_for_room:
            raise DiskFull("the disk is full: nothing is lost; free some space and try again")
        if len(proposal.payload) > RECORD_BYTES_MAX:
            raise RecordTooLarge(
                f"a record of {len(proposal.payload)} bytes exceeds {RECORD_BYTES_MAX}"
            )
        if self._waiting or not self._core.has_room():
            if (
                len(self._waiting) >= WAITING_PROPOSALS_MAX
                or self._waiting_bytes >= WAITING_BYTES_MAX
            ):
                raise Overloaded(
                    f"{len(self._waiting)} proposals wait for partition "
                    f"{self._core.params.partition}: try again shortly"
                )
            self._waiting.append((proposal, context))
            self._waiting_bytes += len(proposal.payload)
            return
        self._sequence(proposal, context)

    def statistics(self) -> SegmentLogStatistics:
        base = self._core.params.base_lsn
        return SegmentLogStatistics(
            base + self._core.next_offset,
            base + self._core.committed,
            len(self._waiting),
            self._core.window_bytes,
            self._core.next_offset,
        )

    def abandon(self) -> list[C]:
        """Give up: contexts of proposals whose outcome is unknown now."""
        self._is_abandoned = True
        left = [item.context for item in self._in_flight]
        left.extend(context for _, context in self._waiting)
        self._in_flight.clear()
        self._waiting.clear()
        self._waiting_bytes = 0
        return left

    def _sequence(self, proposal: Proposal, context: C) -> None:
        lsn = self._core.propose(proposal)
        self._in_flight.append(CommittedRecord(lsn, proposal, context))
        if not self._is_dirty:
            self._is_dirty = True
            self._batcher.add(self._store_batch)

    def _store_batch(self) -> None:
        self._is_dirty = False
        store = self._core.flush()
        if store is not None and not self.is_stopped:
            self._server.store(store, self._on_reply)

    def _on_reply(self, reply: StoreAck | Refused) -> None:
        if self._is_abandoned:
            return
        if isinstance(reply, Refused):
            stopped = self._core.on_refused(self._node, reply)
            if isinstance(stopped, Stopped):
                self._on_stopped(stopped.reason)
            return
        committed = self._core.on_ack(self._node, reply)
        if committed is None:
            return
        records: list[CommittedRecord[C]] = []
        while self._in_flight and self._in_flight[0].lsn < committed.tail_lsn:
            records.append(self._in_flight.popleft())
        invariant(
            records[-1].lsn == committed.tail_lsn - 1,
            "what commits is what was in flight",
            tail_lsn=committed.tail_lsn,
            last=records[-1].lsn,
        )
        self._on_committed(records)
        while self._waiting and self._core.has_room():
            proposal, context = self._waiting.popleft()
            self._waiting_bytes -= len(proposal.payload)
            self._sequence(proposal, context)
