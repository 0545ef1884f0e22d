"""A partition's log as its leader sees it: append proposals, get them back committed, in order.

``SegmentLog`` drives one sequencer. Proposals beyond the window wait in order; what commits is
delivered from memory with the context it was proposed with, never read back. ``LogBatcher`` flushes
all partitions' batches right before each group commit, so a loop turn costs one write here and one
message to each other node.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from perdure.cluster.core.log_messages import Probe, TrimSegment
from perdure.cluster.core.quorum import Confirmations
from perdure.cluster.core.sequencer import (
    Committed,
    Contested,
    Event,
    Lost,
    PeerStatistics,
    SequencerCore,
    Stalled,
    Stopped,
)
from perdure.cluster.core.types import (
    Member,
    NodeId,
    Proposal,
    Refused,
    SegmentParams,
    SegmentState,
    StoreAck,
)
from perdure.cluster.log_server import LogServer
from perdure.cluster.replica_links import ReplicaLinks
from perdure.cluster.wal_writer import WalWriter
from perdure.core.errors import (
    DiskFull,
    OutcomeUnknown,
    Overloaded,
    PerdureError,
    RecordTooLarge,
)
from perdure.core.invariant import invariant
from perdure.core.limits import (
    PROBE_TIMEOUT_MS,
    RECORD_BYTES_MAX,
    WAITING_BYTES_MAX,
    WAITING_PROPOSALS_MAX,
)
from perdure.core.summary import Summary
from perdure.core.telemetry import logger

log = logger("log")

Trouble = Contested | Lost | Stalled
"""What a leader may have to act on although its log goes on."""

C = TypeVar("C")


class CommittedRecord(NamedTuple, Generic[C]):
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

    def __init__(self, writer: WalWriter, links: ReplicaLinks | None = None) -> None:
        self._writer = writer
        self.links = links
        self.commits = Summary()  # one append in a round trip is timed, of each partition
        self._dirty: list[Callable[[], None]] = []
        writer.before_flush(self._collect)

    def add(self, store_batch: Callable[[], None]) -> None:
        """Have ``store_batch`` called before the next group is taken."""
        self._dirty.append(store_batch)
        self._writer.request_flush()

    def request(self) -> None:
        """Have what the links were given sent at the next turn of the loop."""
        self._writer.request_flush()

    def _collect(self) -> None:
        dirty, self._dirty = self._dirty, []
        for store_batch in dirty:
            store_batch()
        if self.links is not None:
            self.links.flush()


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
        followers: Callable[[], Sequence[NodeId]] = tuple,
    ) -> None:
        """``followers``: nodes that read what is committed from their replicas."""
        self.params = params
        self._followers = followers
        self._core = SequencerCore(params)
        self._node = member.node
        self._is_local = member in params.nodeset
        remotes = [other for other in params.nodeset if other != member]
        self._core.prefer(followers())
        self._links = batcher.links if remotes else None
        invariant(self._links is not None or not remotes, "who has peers has a way to them")
        self.on_trouble: Callable[[Trouble], None] = _ignore
        self._server = server
        self._batcher = batcher
        self._on_committed = on_committed
        self._on_stopped = on_stopped
        self._in_flight: deque[CommittedRecord[C]] = deque()
        self._waiting: deque[tuple[Proposal, C]] = deque()
        self._waiting_bytes = 0
        self._is_dirty = False
        self._is_abandoned = False
        self._is_draining = False
        self._drained: asyncio.Event | None = None
        self._waits_since: float | None = None
        self._timed_lsn = 0  # of the append that is timed; 0: the next one is
        self._timed_since = 0.0
        self._loop = asyncio.get_running_loop()
        if self._links is not None:
            self._links.attach(self)

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
            OutcomeUnknown: leadership is being handed over; nothing was appended.
        """
        if self._is_draining:
            raise OutcomeUnknown("leadership is being handed over: ask again shortly")
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
        if self._links is not None:
            self._links.detach(self)
        self._wake()
        self._in_flight.clear()
        self._waiting.clear()
        self._waiting_bytes = 0
        return left

    async def drain(self) -> None:
        """Take nothing more, wait until all that was taken is committed, and tell replicas so.

        Whoever takes over then finds nothing to repair.

        Raises:
            OutcomeUnknown: the log stopped before.
        """
        self._is_draining = True
        self._drained = self._drained or asyncio.Event()
        while (self._in_flight or self._waiting) and not self.is_stopped:
            self._drained.clear()
            await self._drained.wait()
        if self.is_stopped:
            raise OutcomeUnknown("the log was taken over before everything was committed")
        if self._links is not None:
            self._send(to_late=True)
            self._links.flush()
            self._links.committed(self)
            self._links.release(to_late=True)

    async def confirm(self) -> bool:
        """Whether no later segment existed when this was called: reads of what is applied up to
        the committed tail of that moment are linearizable. One round trip, no sync."""
        if self.is_stopped:
            return False
        links = self._links
        if links is None:
            return True  # the only replica is here, and it hasn't been sealed
        tally = Confirmations(self.params.nodeset, self.params.replication)
        if self._is_local:
            tally.answer(self._node, self._server.probe(self.params.ref))
        asking = {
            asyncio.ensure_future(self._probe(links, member.node, tally))
            for member in self.params.nodeset
            if member.node != self._node
        }
        try:
            while asking and not tally.is_confirmed and not tally.is_refuted:
                _, asking = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in asking:
                task.cancel()
        return tally.is_confirmed and not self.is_stopped

    async def _probe(self, links: ReplicaLinks, node: NodeId, tally: Confirmations) -> None:
        try:
            request = Probe((self.params.ref,))
            found = await links.transport.ask(node, request, PROBE_TIMEOUT_MS / 1000)
        except PerdureError:
            return
        tally.answer(node, found.confirmed == (True,))

    def trim(self, below_lsn: int) -> None:
        """Records of this segment below ``below_lsn`` may go, on all its replicas."""
        up_to = min(below_lsn - self.params.base_lsn, self._core.committed)
        if up_to <= 0:
            return
        if self._is_local:
            self._server.trim(self.params.key, up_to)
        if self._links is not None:
            self._links.tell(self.params.nodeset, TrimSegment(self.params.ref, up_to))

    def stalled_ms(self) -> int:
        """For how long proposals have waited without any commit."""
        if self._links is None or self._waits_since is None:
            return 0
        return int((self._links.clock.monotonic() - self._waits_since) * 1000)

    def peers(self) -> list[PeerStatistics]:
        """The replicas of the nodeset."""
        return self._core.peers()

    # --- For the links --------------------------------------------------------------------------

    @property
    def is_behind(self) -> bool:
        """Whether some replica has not acknowledged all that was sent, or is to be."""
        return self._core.retained_bytes > 0

    def is_late(self, node: NodeId) -> bool:
        return self._core.is_late(node)

    def greet(self, node: NodeId) -> int | None:
        return self._core.greet(node)

    def on_hello(
        self, member: Member, is_authoritative: bool, state: SegmentState | None, greeted: int
    ) -> None:
        now = self._now()
        self._on_event(self._core.on_hello(member, is_authoritative, state, greeted, now))
        self._send()

    def on_down(self, node: NodeId) -> None:
        self._core.on_down(node)
        self._send()  # to who takes its place

    def on_reply(self, node: NodeId, reply: StoreAck | Refused) -> None:
        if self._is_abandoned:
            return
        if isinstance(reply, Refused):
            self._on_event(self._core.on_refused(node, reply, self._now()))
            self._send()
            return
        committed = self._core.on_ack(node, reply, self._now())
        if committed is not None:
            self._on_event(committed)

    def on_tick(self) -> None:
        self._core.prefer(self._followers())
        self._on_event(self._core.on_tick(self._now()))
        self._send(to_late=True)

    def release(self) -> int:
        """How far commits have come; the replica here is told."""
        if self._is_local:
            self._server.release(self.params.ref, self._core.committed)
        return self._core.committed

    # --- Inside ---------------------------------------------------------------------------------

    def _now(self) -> float:
        return self._links.clock.monotonic() if self._links is not None else 0.0

    def _sequence(self, proposal: Proposal, context: C) -> None:
        lsn = self._core.propose(proposal)
        if not self._timed_lsn:
            self._timed_lsn, self._timed_since = lsn, self._loop.time()
        self._in_flight.append(CommittedRecord(lsn, proposal, context))
        if not self._is_dirty:
            self._is_dirty = True
            self._batcher.add(self._store_batch)

    def _store_batch(self) -> None:
        self._is_dirty = False
        if self._links is None:
            store = self._core.flush()
            if store is not None and not self.is_stopped:
                self._server.store(store, self._on_local_reply)
            return
        now = self._now()
        store = self._core.flush(now)
        if store is None or self.is_stopped:
            return
        if self._waits_since is None:
            self._waits_since = now
        self._send()
        if self._is_local:
            self._server.store(store, self._on_local_reply)

    def _send(self, *, to_late: bool = False) -> None:
        if self._links is not None and not self.is_stopped:
            sends = self._core.outgoing(self._now(), to_late=to_late)
            for node, store in sends:
                self._links.put(node, store)
            if sends:
                self._batcher.request()

    def _on_local_reply(self, reply: StoreAck | Refused) -> None:
        if self._links is not None or isinstance(reply, Refused):
            self.on_reply(self._node, reply)
        elif not self._is_abandoned:
            committed = self._core.on_ack(self._node, reply)
            if committed is not None:
                self._deliver(committed)

    def _on_event(self, event: Event | None) -> None:
        if event is None or self._is_abandoned:
            return
        if isinstance(event, Committed):
            self._deliver(event)
        elif isinstance(event, Stopped):
            log.info(
                "log.segment.stopped",
                partition=self.params.partition,
                segment=self.params.index,
                reason=event.reason,
            )
            if self._links is not None:
                self._links.detach(self)
            self._wake()
            self._on_stopped(event.reason)
        else:
            if isinstance(event, Lost):
                log.error(
                    "log.replica.lost",
                    partition=self.params.partition,
                    segment=self.params.index,
                    node=event.node,
                    reason=event.reason,
                )
            self.on_trouble(event)

    def _deliver(self, committed: Committed) -> None:
        records: list[CommittedRecord[C]] = []
        while self._in_flight and self._in_flight[0].lsn < committed.tail_lsn:
            records.append(self._in_flight.popleft())
        invariant(
            records[-1].lsn == committed.tail_lsn - 1,
            "what commits is what was in flight",
            tail_lsn=committed.tail_lsn,
            last=records[-1].lsn,
        )
        if 0 < self._timed_lsn < committed.tail_lsn:
            self._batcher.commits.add(self._loop.time() - self._timed_since)
            self._timed_lsn = 0
        if self._links is not None:
            self._waits_since = self._links.clock.monotonic() if self._in_flight else None
            self._links.committed(self)
        self._on_committed(records)
        while self._waiting and self._core.has_room():
            proposal, context = self._waiting.popleft()
            self._waiting_bytes -= len(proposal.payload)
            self._sequence(proposal, context)
        if self._drained is not None:
            self._drained.set()

    def _wake(self) -> None:
        if self._drained is not None:
            self._drained.set()


def _ignore(trouble: Trouble) -> None:
    """Nobody asked to be told."""
