"""Taking over a partition: claim, seal, find the tail, repair, close and extend the chain.

The only way a segment is opened. Each start of a process goes through it, and so does a leader that
wants another nodeset: a sequencer never resumes a segment. Whoever takes over may die anywhere; the
epoch it was given then stays unused.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from perdure.cluster.core import chain
from perdure.cluster.core.chain import Claim, PartitionMeta, SegmentMeta, UnsafeClose
from perdure.cluster.core.log_messages import CloseSegment
from perdure.cluster.core.recovery import Recovered, Remnant, Wait
from perdure.cluster.core.replica import ReplicaCore
from perdure.cluster.core.types import Member, SegmentParams, Writer
from perdure.cluster.log_server import LogServer
from perdure.cluster.metadata.store import MetadataStore, Unknown, Versioned
from perdure.cluster.recoverer import Recoverer
from perdure.cluster.replica_links import ReplicaLinks
from perdure.core.errors import MetadataConflict, MetadataRegressed, StoreAheadOfLog
from perdure.core.invariant import invariant
from perdure.core.limits import METADATA_PAUSE_MS
from perdure.core.loss_errors import HistoryForsaken
from perdure.core.telemetry import logger

log = logger("log")


@dataclass(frozen=True, slots=True, kw_only=True)
class Takeover:
    """The chain as it is now, at its version; ``opened`` is the segment this process may write."""

    meta: PartitionMeta
    opened: SegmentParams
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to take over in a cluster.

    ``nodeset`` and ``replication`` are the new segment's. Only an epoch ``seen_epoch`` is overtaken
    (None: any). ``known``: the register as it was seen last, which saves a question if it is still
    so. ``on_claimed`` hears of the epoch as soon as the register shows the claim.
    ``on_waiting`` hears what recovery waits for, and None when it goes on.
    ``is_degraded_allowed``: close the old segment also when fewer replicas than it asks for are
    left to hold its last records. ``trim_below``: closed segments below this LSN leave the chain.
    ``applied_epoch``: of the record that our tables have applied last.
    """

    links: ReplicaLinks
    nodeset: tuple[Member, ...]
    replication: int
    reason: str
    seen_epoch: int | None = None
    known: Versioned | None = None
    on_claimed: Callable[[int], None] = field(default=lambda epoch: None)
    on_waiting: Callable[[Wait | None], None] = field(default=lambda wait: None)
    is_degraded_allowed: bool = False
    trim_below: int = 0
    applied_epoch: int | None = None


def partition_key(partition: int) -> str:
    """Metadata key of a partition's register."""
    return f"p/{partition}"


def decode_meta(found: Versioned | None) -> PartitionMeta:
    """The register's value, or the empty one."""
    if found is None:
        return chain.empty()
    return msgspec.msgpack.decode(found.value, type=PartitionMeta)


async def take_over(
    partition: int,
    metadata: MetadataStore,
    server: LogServer,
    replicas: ReplicaCore,
    me: tuple[Writer, Member],
    durable_lsn: int,
    plan: Plan | None = None,
) -> Takeover:
    """Run the steps for one partition; without a plan, its only replica is in this process, and
    closed segments that end at or below ``durable_lsn`` leave the chain.

    Waits, and says so, while too few replicas of the old segment can be reached; cancel it when it
    has become futile.

    Raises:
        MetadataConflict: somebody else claimed the partition before or meanwhile.
        MetadataRegressed: the replica has seen the epoch that metadata hands out now (I-19).
        StoreAheadOfLog: ``durable_lsn`` is not in the log; the chain stays as it is (I-18).
        HistoryForsaken: the log was closed unsafely below ``durable_lsn``; so does it then.
        MetadataUnavailable: metadata can't be reached.
    """
    attempt = _Attempt(partition, metadata, server, plan)
    epoch_seen = replicas.epoch_seen(partition)
    trim_below = plan.trim_below if plan is not None else durable_lsn + 1
    claimed, mine = await attempt.claim(me[0], trim_below)
    if mine.epoch <= epoch_seen:
        raise MetadataRegressed(
            f"metadata hands out epoch {mine.epoch} of partition {partition}, the log has seen "
            f"{epoch_seen}: restore the folder metadata/"
        )
    if plan is not None:
        plan.on_claimed(mine.epoch)
        if plan.applied_epoch is not None:
            check_history(partition, claimed, durable_lsn, plan.applied_epoch)
    last = chain.open_segment(claimed)
    found = await attempt.recover(mine, last)
    base_lsn = last.base_lsn + found.tail if last is not None else claimed.trim_lsn
    if durable_lsn >= base_lsn:
        raise StoreAheadOfLog(
            f"partition {partition} has applied record {durable_lsn}, its log ends before "
            f"{base_lsn}: a log file was lost or rolled back; restore the data "
            "directory from a backup, or wipe it"
        )
    nodeset = plan.nodeset if plan is not None else (me[1],)
    replication = plan.replication if plan is not None else 1
    extended, version = await attempt.extend(mine, found, nodeset, replication)
    attempt.publish(extended, version, last)
    opened = extended.chain[-1].params(partition)
    log.debug(
        "log.segment.opened",
        partition=partition,
        segment=opened.index,
        base_lsn=opened.base_lsn,
        epoch=opened.epoch,
    )
    return Takeover(meta=extended, opened=opened, version=version)


def check_history(partition: int, meta: PartitionMeta, applied_lsn: int, epoch: int) -> None:
    """Refuse tables that have applied what an unsafe close has cut off.

    Raises:
        HistoryForsaken: they have.
    """
    if (close := chain.forsaken(meta, applied_lsn, epoch)) is not None:
        raise HistoryForsaken(
            f"partition {partition} has applied record {applied_lsn} here; {close.by} closed its "
            f"log unsafely before record {close.tail_lsn}, so these tables are of a history that "
            "is gone: wipe the data directory and start the node as a new one, or replace it"
        )


class _Attempt:
    """The register's part of one take-over."""

    def __init__(
        self, partition: int, metadata: MetadataStore, server: LogServer, plan: Plan | None
    ) -> None:
        self._partition = partition
        self._key = partition_key(partition)
        self._metadata = metadata
        self._server = server
        self._plan = plan
        self._version: int | None = None
        self._meta = chain.empty()  # what that version says
        self._unsafe: UnsafeClose | None = None  # how the old segment is closed, if so

    async def claim(self, writer: Writer, trim_below: int) -> tuple[PartitionMeta, Claim]:
        """Write our claim."""
        plan = self._plan
        seen = plan.seen_epoch if plan is not None else None
        reason = plan.reason if plan is not None else "start"
        if plan is not None and plan.known is not None:
            self._note(plan.known)
            if self._meta.epoch == seen and (mine := await self._claim(writer, trim_below, reason)):
                return self._meta, mine
        meta = await self._read()
        if seen is not None and meta.epoch != seen:
            raise MetadataConflict(f"{self._key} has epoch {meta.epoch}, not {seen} any more")
        if (mine := await self._claim(writer, trim_below, reason)) is None:
            raise MetadataConflict(f"metadata key {self._key} changed while this node claimed it")
        return self._meta, mine

    async def _claim(self, writer: Writer, trim_below: int, reason: str) -> Claim | None:
        """None: the register is not as it was."""
        claimed = chain.claim(chain.trim_prefix(self._meta, trim_below), writer, reason)
        return claimed.claim if await self._cas(claimed) else None

    async def recover(self, mine: Claim, last: SegmentMeta | None) -> Recovered:
        """Seal the open segment, find its tail, repair it."""
        if last is None:
            return Recovered(0)
        plan = self._plan
        params = last.params(self._partition)
        if plan is None:
            recoverer = Recoverer(params, mine.epoch, self._server, None)
        else:
            recoverer = Recoverer(params, mine.epoch, self._server, plan.links, plan.on_waiting)
        is_degraded_allowed = plan is not None and plan.is_degraded_allowed
        return await recoverer.run(
            lambda: self.check_claim(mine), is_degraded_allowed, self._find_remnant()
        )

    def _find_remnant(self) -> Remnant | None:
        """What is left of the old segment, if an operator allows to do with that."""
        opened, allowed = chain.open_segment(self._meta), self._meta.allowed
        if opened is None or allowed is None or allowed.segment != opened.index:
            return None
        self._unsafe = allowed
        return Remnant(allowed.counted, max(allowed.tail_lsn - opened.base_lsn, 0))

    def publish(self, meta: PartitionMeta, version: int, closed: SegmentMeta | None) -> None:
        """Tell replicas what the chain says now; who misses it hears of it from readers."""
        self._server.on_chain(self._partition, meta, version)
        if closed is None or self._plan is None:
            return
        for segment in meta.chain:
            if segment.index == closed.index and segment.tail_lsn is not None:
                tail = segment.tail_lsn - segment.base_lsn
                is_unsafe = chain.closed_unsafely(meta, segment.index) is not None
                closing = CloseSegment(self._partition, segment.index, tail, version, is_unsafe)
                self._plan.links.tell(segment.nodeset, closing)

    async def check_claim(self, mine: Claim) -> Remnant | None:
        """Raise MetadataConflict when somebody else has claimed since."""
        meta = await self._read()
        if meta.claim != mine:
            raise MetadataConflict(f"{self._key} was claimed by another: {meta.claim}")
        return self._find_remnant()

    async def extend(
        self, mine: Claim, found: Recovered, nodeset: tuple[Member, ...], replication: int
    ) -> tuple[PartitionMeta, int]:
        """Close the old segment and open ours, if the claim is still ours.

        Most often the register is as our claim left it: only if the write says that it isn't, it
        is read again.
        """
        meta = self._meta
        while True:
            opened = chain.open_segment(meta)
            if meta.claim == mine and opened is not None and opened.epoch == mine.epoch:
                break  # a write of ours whose outcome was unknown
            short = found.is_under_replicated
            extended = chain.extend(meta, mine, found.tail, nodeset, replication, short)
            if extended is None:
                raise MetadataConflict(f"{self._key} was claimed by another: {meta.claim}")
            if self._unsafe is not None:
                extended = chain.note_unsafe(extended, self._unsafe, found.lacking_below)
            if await self._cas(extended):
                self._tell_unsafe(extended)
                meta = extended
                break
            meta = await self._read()  # something else of the register changed
        assert self._version is not None
        return meta, self._version

    def _tell_unsafe(self, meta: PartitionMeta) -> None:
        if self._unsafe is None:
            return
        done = meta.unsafe[-1]
        log.error(
            "log.segment.closed_unsafely",
            partition=self._partition,
            segment=done.segment,
            tail_lsn=done.tail_lsn,
            begins_lsn=done.begins_lsn,
            nodes=[member.node for member in done.counted],
            by=done.by,
        )

    async def _read(self) -> PartitionMeta:
        return self._note(await self._metadata.get(self._key))

    def _note(self, found: Versioned | None) -> PartitionMeta:
        version = found.version if found is not None else None
        invariant(
            (version or 0) >= (self._version or 0), "registers don't go back (I-19)", key=self._key
        )
        self._version, self._meta = version, decode_meta(found)
        return self._meta

    async def _cas(self, value: PartitionMeta) -> bool:
        """Write the value over the version that was read; whether it is there now.

        An unknown outcome is settled by looking: nobody else writes these very bytes, because
        claims name a process and an epoch.
        """
        encoded = msgspec.msgpack.encode(value)
        expected, is_uncertain = self._version, False
        while True:
            outcome = await self._metadata.cas(self._key, expected, encoded)
            if isinstance(outcome, Versioned):
                self._version, self._meta = outcome.version, value
                return True
            if not is_uncertain and not isinstance(outcome, Unknown):
                return False
            is_uncertain = True
            found = await self._metadata.get(self._key)
            if found is not None and found.value == encoded:
                self._version, self._meta = found.version, value
                return True
            if (found.version if found is not None else None) != expected:
                return False
            await asyncio.sleep(METADATA_PAUSE_MS / 1000)
