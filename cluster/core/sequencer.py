"""The one writer of an open segment: assigns offsets, batches, sends, counts acks, commits.

Invariants: offsets are handed out once (I-1) · an offset is committed when R replicas have
acknowledged a tail above it to *this* sequencer, and commits form a prefix (I-4) · a replica is
sent a hole only below the committed tail of the same message (I-5) · a sequencer never resumes a
segment: a new process or epoch is a new segment.

As many replicas as a commit needs get a batch at once. The others are *late*: they get what has
gathered, now and then, or take the place of who is gone or slow. Batches stay in memory until every
replica has acknowledged them; laggards too far behind skip ahead later, over what is committed.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import msgspec

from perdure.cluster.core.quorum import check_property, committed_tail
from perdure.cluster.core.types import (
    REFUSED_GAP,
    REFUSED_SEALED,
    REFUSED_STALE_EPOCH,
    REFUSED_WRONG_WRITER,
    Member,
    NodeId,
    Proposal,
    Refused,
    SegmentParams,
    SegmentState,
    Store,
    StoreAck,
)
from perdure.core.invariant import invariant
from perdure.core.limits import (
    COMMIT_STALL_MS,
    LAGGARD_BYTES_MAX,
    LAGGARD_MS_MAX,
    PEER_IN_FLIGHT_BYTES_MAX,
    STORE_RETRY_MS,
    WINDOW_BYTES_MAX,
    WINDOW_RECORDS_MAX,
)
from perdure.core.limits_log import LATE_BYTES_MAX, PEER_SLOW_MS
from perdure.storage.wal_format import Record, encode_record

_OFFSETS_MAX = 1 << 31


@dataclass(frozen=True, slots=True)
class Committed:
    """Everything below ``tail_lsn`` (exclusive) is on a write quorum."""

    tail_lsn: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """The sequencer takes no more; proposals without a commit have an unknown outcome."""

    reason: str


@dataclass(frozen=True, slots=True)
class Contested:
    """A replica was sealed by somebody: a reason to look at the chain, no proof of anything."""

    node: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """A replica doesn't count any more: another disk, no storage, or data lost (``regressed``)."""

    node: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class Stalled:
    """Nothing was committed for a while although something waits: too few replicas take part.
    ``absent`` are the nodes that don't."""

    absent: tuple[NodeId, ...]


Event = Committed | Stopped | Contested | Lost | Stalled


class PeerState(Enum):
    """What a replica of the nodeset does for this segment."""

    DOWN = "down"
    LIVE = "live"
    SEALED = "sealed"
    LOST = "lost"


@dataclass(slots=True)
class Peer:
    """A replica as the sequencer sees it; ``acked <= sent``, both exclusive tails.

    ``waiting_since``: when something sent was last waited for without an ack. ``rewound``: the tail
    that the last GAP named, so that those of the same gap don't send everything again. ``is_slow``:
    it keeps commits waiting; ``is_late``: they don't wait for it, so it is sent to now and then.
    """

    member: Member
    is_local: bool
    state: PeerState
    acked: int = 0
    sent: int = 0
    waiting_since: float = 0.0
    rewound: int | None = None
    is_late: bool = False
    is_slow: bool = False

    def wait(self, now: float) -> None:
        """Something is about to be sent: it is waited for from now on, if nothing was before."""
        if self.sent <= self.acked:
            self.waiting_since = now


@dataclass(frozen=True, slots=True)
class PeerStatistics:
    """``lag``: records handed out that the replica has not acknowledged."""

    node: NodeId
    state: str
    lag: int


@dataclass(slots=True)
class _Batch:
    store: Store
    size: int
    committed_at: float | None = None

    @property
    def end(self) -> int:
        return self.store.first_offset + len(self.store.records)


class SequencerCore:
    """Sequences one segment. ``committed`` and ``next_offset`` are exclusive tails."""

    def __init__(self, params: SegmentParams) -> None:
        check_property(len(params.nodeset), params.replication)
        self.params = params
        self.next_offset = 0
        self.committed = 0
        self.stopped: str | None = None
        local = params.writer.node
        self._peers = {
            member.node: Peer(
                member,
                member.node == local,
                PeerState.LIVE if member.node == local else PeerState.DOWN,
            )
            for member in params.nodeset
        }
        self._own = [peer for peer in self._peers.values() if peer.is_local]  # one, or none
        self._remotes = [peer for peer in self._peers.values() if not peer.is_local]
        # Segments prefer different ones, so that no node has all the work.
        self._remotes.sort(key=lambda p: (p.member.node + params.partition) % len(self._peers))
        self._batch: list[bytes] = []
        self._batch_first = 0
        self._sizes: deque[int] = deque()
        self._window_bytes = 0
        self._retained: deque[_Batch] = deque()
        self._retained_bytes = 0
        self._uncommitted: deque[_Batch] = deque()  # the end of ``_retained``
        self._progress_at = 0.0

    @property
    def window_bytes(self) -> int:
        """Bytes proposed and not committed."""
        return self._window_bytes

    @property
    def retained_bytes(self) -> int:
        """Bytes kept for replicas that have not acknowledged them."""
        return self._retained_bytes

    def has_room(self) -> bool:
        """Whether the window takes another record; one always fits into an empty window."""
        return (
            self.next_offset - self.committed < WINDOW_RECORDS_MAX
            and self._window_bytes < WINDOW_BYTES_MAX
        )

    def peers(self) -> list[PeerStatistics]:
        """The replicas of the nodeset."""
        return [
            PeerStatistics(node, peer.state.value, self.next_offset - peer.acked)
            for node, peer in self._peers.items()
        ]

    def prefer(self, nodes: Sequence[NodeId]) -> None:
        """Have these get records at once, rather than others: they use them."""
        self._remotes.sort(key=lambda peer: peer.member.node not in nodes)
        self._choose()

    def is_late(self, node: NodeId) -> bool:
        """Whether a replica is sent to only now and then."""
        return self._peers[node].is_late

    # --- Proposals ------------------------------------------------------------------------------

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

    def flush(self, now: float = 0.0) -> Store | None:
        """The batch as a store for the replica in this process; None when there is none.

        What the others are to be sent is ``outgoing``.
        """
        if not self._batch:
            return None
        records = tuple(self._batch)
        self._batch.clear()
        store = Store(
            self.params.partition,
            self.params.index,
            self.params.epoch,
            self.params.writer.incarnation,
            self._batch_first,
            self.committed,
            records,
        )
        if self._remotes:
            if self._batch_first == self.committed:
                self._progress_at = now  # it was idle: from here on it waits
            size = sum(map(len, records))
            batch = _Batch(store, size)
            self._retained.append(batch)
            self._uncommitted.append(batch)
            self._retained_bytes += size
            for own in self._own:
                own.wait(now)
                own.sent = batch.end
        return store

    def outgoing(self, now: float, *, to_late: bool = False) -> list[tuple[NodeId, Store]]:
        """What to send, in this order; a live replica gets everything behind what it was sent, a
        late one only when it is its turn (``to_late``) or much waits for it."""
        to_late = to_late or self._retained_bytes > LATE_BYTES_MAX
        sends: list[tuple[NodeId, Store]] = []
        if not self._retained or self.stopped is not None:
            return sends
        for peer in self._remotes:
            if peer.state is not PeerState.LIVE or peer.sent >= self._retained[-1].end:
                continue
            if peer.is_late and not to_late:
                continue
            peer.wait(now)
            first = self._retained[0].store.first_offset
            if peer.sent < first:
                invariant(first <= self.committed, "only what is committed is skipped (I-5)")
                peer.sent = first
            sends.extend((peer.member.node, store) for store in self._next_batches(peer))
        return sends

    def _next_batches(self, peer: Peer) -> list[Store]:
        found: list[_Batch] = []
        in_flight = 0
        # From the end: what others lack may be thousands of batches, what this one does is few.
        for batch in reversed(self._retained):
            if batch.end > peer.sent:
                found.append(batch)
            elif batch.end > peer.acked:
                in_flight += batch.size
            else:
                break
        stores: list[Store] = []
        for batch in reversed(found):
            if in_flight >= PEER_IN_FLIGHT_BYTES_MAX:
                break
            in_flight += batch.size
            store = batch.store
            if store.kgt < self.committed:
                store = msgspec.structs.replace(store, kgt=self.committed)
            stores.append(store)
            peer.sent = store.first_offset + len(store.records)
        return stores

    # --- Answers --------------------------------------------------------------------------------

    def on_ack(self, node: NodeId, ack: StoreAck, now: float = 0.0) -> Committed | None:
        """A replica is durable up to a tail; what that commits, if anything."""
        invariant(ack.local_tail <= self.next_offset, "acks name offsets handed out", ack=ack)
        peer = self._peers[node]
        if peer.state is PeerState.LOST or self.stopped == REFUSED_WRONG_WRITER:
            return None
        if ack.local_tail > peer.acked:
            peer.acked = ack.local_tail
            peer.sent = max(peer.sent, peer.acked)
            peer.waiting_since = now
            peer.rewound = None
            if peer.is_slow:
                peer.is_slow = False
                self._choose()
        return self._commit(now)

    def greet(self, node: NodeId) -> int | None:
        """The way to a replica is open. None: nothing to ask it; otherwise ask what it has, and
        hand the number to ``on_hello``: it must have that much, having acknowledged it before."""
        peer = self._peers.get(node)
        if peer is None or peer.is_local or self.stopped is not None:
            return None
        return peer.acked if peer.state in (PeerState.DOWN, PeerState.LIVE) else None

    def on_hello(
        self,
        member: Member,
        is_authoritative: bool,
        state: SegmentState | None,
        greeted: int,
        now: float,
    ) -> Event | None:
        """A replica was reached, for the first time or again; ``state`` is what it has."""
        peer = self._peers.get(member.node)
        if peer is None or peer.is_local or self.stopped is not None:
            return None
        if peer.state in (PeerState.LOST, PeerState.SEALED):
            return None
        if member != peer.member:
            return self._lose(peer, "another disk")
        if not is_authoritative:
            return self._lose(peer, "no storage")
        if state is not None and state.ref != self.params.ref:
            return self._stop(REFUSED_WRONG_WRITER)
        tail = state.durable_tail if state is not None else 0
        invariant(tail <= self.next_offset, "only this sequencer writes here", state=state)
        if tail < greeted:
            return self._lose(peer, "regressed")
        if state is not None and state.tail_at_seal is not None:
            return self._sealed(peer, REFUSED_SEALED)
        peer.state = PeerState.LIVE
        peer.acked = peer.sent = max(tail, peer.acked)  # acks may have overtaken the answer
        peer.waiting_since = now
        peer.rewound = None
        peer.is_slow = False
        self._choose()
        return self._commit(now)

    def on_refused(self, node: NodeId, refusal: Refused, now: float = 0.0) -> Event | None:
        """A replica didn't take a store."""
        peer = self._peers.get(node)
        if peer is None or self.stopped is not None or peer.state is PeerState.LOST:
            return None
        if refusal.reason == REFUSED_GAP:
            self._rewind(peer, refusal.detail, now)
            return None
        if refusal.reason == REFUSED_WRONG_WRITER:
            return self._stop(REFUSED_WRONG_WRITER)
        if refusal.reason in (REFUSED_SEALED, REFUSED_STALE_EPOCH):
            return self._sealed(peer, refusal.reason)
        return self._lose(peer, refusal.reason)

    def on_down(self, node: NodeId) -> None:
        """The way to a replica broke; what was sent and not acknowledged may be lost."""
        peer = self._peers.get(node)
        if peer is not None and peer.state is PeerState.LIVE and not peer.is_local:
            peer.state = PeerState.DOWN
            self._choose()

    def on_tick(self, now: float) -> Stalled | None:
        """Time went by: others do for who is slow, what got no answer is sent again, laggards are
        forgotten, a standstill is noticed."""
        for peer in self._peers.values():
            waits = peer.state is PeerState.LIVE and peer.sent > peer.acked
            waited_ms = (now - peer.waiting_since) * 1000 if waits else 0.0
            if waited_ms > PEER_SLOW_MS and not peer.is_slow:
                peer.is_slow = True
                self._choose()
            if waited_ms > STORE_RETRY_MS and not peer.is_local:
                peer.sent = peer.acked
                peer.waiting_since = now
                peer.rewound = None
        self._forget(now)
        is_idle = self.next_offset - len(self._batch) == self.committed
        if self.stopped is not None or is_idle or not self._remotes:
            return None
        if now - self._progress_at < COMMIT_STALL_MS / 1000:
            return None
        absent = [n for n, peer in self._peers.items() if peer.state is not PeerState.LIVE]
        return Stalled(tuple(absent))

    def stop(self, reason: str) -> Stopped:
        """Whoever asks knows that this segment is over."""
        return self._stop(reason)

    # --- Inside ---------------------------------------------------------------------------------

    def _commit(self, now: float) -> Committed | None:
        if self._remotes:
            tails = [peer.acked for peer in self._peers.values()]
            tail = committed_tail(tails, self.params.replication)
        else:
            tail = self._peers[self.params.writer.node].acked
        if tail <= self.committed:
            if self._remotes:
                self._forget(now)
            return None
        for _ in range(tail - self.committed):
            self._window_bytes -= self._sizes.popleft()
        self.committed = tail
        if self._remotes:
            self._progress_at = now
            self._forget(now)
        return Committed(self.params.base_lsn + tail)

    def _forget(self, now: float) -> None:
        """Let go of committed batches that everybody has, or that laggards may skip."""
        wanted = [
            peer.acked for peer in self._remotes if peer.state in (PeerState.LIVE, PeerState.DOWN)
        ]
        everybody = min(wanted, default=self.committed)
        while self._uncommitted and self._uncommitted[0].end <= self.committed:
            self._uncommitted.popleft().committed_at = now
        while self._retained:
            batch = self._retained[0]
            if batch.committed_at is None:
                break
            is_old = now - batch.committed_at > LAGGARD_MS_MAX / 1000
            if batch.end > everybody and not is_old and self._retained_bytes < LAGGARD_BYTES_MAX:
                break
            self._retained.popleft()
            self._retained_bytes -= batch.size

    def _choose(self) -> None:
        """Who is late: all that are not needed, as long as enough others are well."""
        needed = self.params.replication
        for peer in (*self._own, *self._remotes):
            is_well = peer.state is PeerState.LIVE and not peer.is_slow
            peer.is_late = is_well and needed <= 0
            needed -= is_well

    def _rewind(self, peer: Peer, tail: int, now: float) -> None:
        if tail >= peer.acked and peer.rewound != tail:
            peer.rewound = peer.sent = tail
            peer.waiting_since = now

    def _sealed(self, peer: Peer, reason: str) -> Event | None:
        if peer.state is PeerState.SEALED:
            return None
        peer.state = PeerState.SEALED
        self._choose()
        sealed = sum(each.state is PeerState.SEALED for each in self._peers.values())
        if sealed >= self.params.seal_quorum:
            return self._stop(reason)
        return Contested(peer.member.node, reason)

    def _lose(self, peer: Peer, reason: str) -> Lost:
        peer.state = PeerState.LOST
        peer.acked = 0  # what it had must not help later commits
        self._choose()
        return Lost(peer.member.node, reason)

    def _stop(self, reason: str) -> Stopped:
        self.stopped = reason
        return Stopped(reason)
