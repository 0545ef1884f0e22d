"""A partition on one node among several: follows its log, takes it over, leads it, steps down.

What to do when is decided by ``cluster/core/leadership``; this carries it out. While another node
leads, a ``Follower`` reads the log; while this one does, records come from the own ``SegmentLog``.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from perdure.cluster.core.recovery import Wait
from perdure.cluster.core.replica import ReplicaCore
from perdure.cluster.core.types import Member, NodeId, SegmentParams, Writer
from perdure.cluster.follower import Follower, FollowerPorts
from perdure.cluster.leadership import Positions
from perdure.cluster.log import LogBatcher, SegmentLog
from perdure.cluster.log_server import LogServer
from perdure.cluster.metadata.store import MetadataStore, Versioned
from perdure.cluster.replica_links import ReplicaLinks
from perdure.cluster.takeover import Plan, Takeover, check_history, decode_meta, take_over
from perdure.cluster.transport import Transport
from perdure.core.errors import LogDamaged, LogTrimmed, MetadataConflict
from perdure.core.invariant import invariant
from perdure.core.loss_errors import HistoryForsaken
from perdure.core.offload import Offload
from perdure.engine.commands import Announce
from perdure.node.partition.archive import Archive
from perdure.node.partition.fence import Fence
from perdure.node.partition.gateway import LedPartition
from perdure.node.partition.processor import Proposed
from perdure.node.partition.table_copy import WantedTables
from perdure.storage.wal_format import Record


class Seat(Protocol):
    """Who is told what becomes of the replica: ``Leaderships``."""

    def on_bootstrapped(self, partition: int) -> None: ...

    def on_announced(self, partition: int, epoch: int) -> None: ...

    def on_log_stopped(self, partition: int, reason: str) -> None: ...

    def on_gap(self, partition: int) -> None: ...

    def on_broken(self, partition: int, reason: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaPorts:
    """What all replicas of a node share. ``nodeset`` chooses where the next segment of a partition
    is stored, ``announcement`` makes its first record, ``opened`` hears of the chain with it and
    ``led`` of the epoch once it leads. ``known``: the partition's register as it was seen last.
    ``is_short``: whether so many disks were given up that the open segment can't have all its
    copies again. ``begins``: where a partition's log begins, by its chain. ``archive``: snapshots
    of tables; ``holders``: other nodes that have a partition's tables. ``storage``: where they are
    written.
    """

    me: Writer
    member: Member
    metadata: MetadataStore
    transport: Transport
    server: LogServer
    replicas: ReplicaCore
    links: ReplicaLinks
    batcher: LogBatcher
    nodeset: Callable[[int], tuple[Member, ...]]
    replication: Callable[[], int]
    announcement: Callable[[int], Announce]
    known: Callable[[int], Versioned | None]
    opened: Callable[[int, Takeover], None]
    led: Callable[[int, int], None]
    seat: Callable[[], Seat]
    is_short: Callable[[int], bool]
    begins: Callable[[int], int]
    archive: Archive | None
    holders: Callable[[int], list[NodeId]]
    storage: Offload


class PartitionReplica:
    """Implements ``cluster.leadership.Replica`` over a partition's parts.

    One per partition and process, also where the node is named a replica for a second time: the
    tables are still what the first time has left behind.
    """

    def __init__(self, parts: LedPartition, ports: ReplicaPorts) -> None:
        self.parts = parts
        self._processor, self._leader = parts.processor, parts.leader
        self._partition = parts.processor.partition
        self._ports = ports
        self._loop = asyncio.get_running_loop()
        self._follower: Follower | None = None
        self._following: asyncio.Task[None] | None = None
        self._until: int | None = None  # what a take-over waits to have read
        self._has_read = asyncio.Event()
        self._news: asyncio.Handle | None = None  # what leadership is about to hear of our tables
        self._tables = WantedTables(
            parts.processor,
            ports.storage,
            ports.transport,
            ports.archive,
            ports.holders,
            self._check_tables,
        )
        self._opened: SegmentParams | None = None
        self._log: SegmentLog[Proposed] | None = None
        self.waiting: Wait | None = None  # what our take-over can't go on without
        parts.processor.leader = parts.leader

    # --- What leadership asks for ---------------------------------------------------------------

    def bootstrap(self) -> None:
        self._stop_following()
        if self._processor.halted is not None:
            self._break(str(self._processor.halted))
            return
        self._tables.want(self._ports.begins(self._partition))
        if not self._tables.are_wanted:
            # The log still holds all that the tables lack, or following it will say so.
            self._tell(self._ports.seat().on_bootstrapped)
            return
        self._following = self._loop.create_task(
            self._get_tables(), name=f"partition.{self._partition}.tables"
        )

    def follow(self) -> None:
        self._stop_following()
        self._following = self._loop.create_task(
            self._follow(), name=f"partition.{self._partition}.follow"
        )

    def retire(self) -> None:
        self._stop_following()
        self.waiting = None

    async def take_over(
        self, seen_epoch: int, reason: str, on_claimed: Callable[[int], None]
    ) -> int:
        ports = self._ports
        plan = Plan(
            links=ports.links,
            nodeset=ports.nodeset(self._partition),
            replication=ports.replication(),
            reason=reason,
            seen_epoch=seen_epoch,
            known=ports.known(self._partition),
            on_claimed=on_claimed,
            on_waiting=self._on_waiting,
            is_degraded_allowed=ports.is_short(self._partition),
            applied_epoch=self._processor.store.applied_epoch,
        )
        taken = await take_over(
            self._partition,
            ports.metadata,
            ports.server,
            ports.replicas,
            (ports.me, ports.member),
            self._processor.store.applied_lsn,
            plan,
        )
        ports.opened(self._partition, taken)
        # Only who has read the closed segments to their end may go on from there.
        await self._read_until(taken.opened.base_lsn)
        self._opened = taken.opened
        return taken.opened.epoch

    def _on_waiting(self, wait: Wait | None) -> None:
        self.waiting = wait

    def announce(self, epoch: int) -> None:
        opened = self._opened
        invariant(opened is not None and opened.epoch == epoch, "what was opened is announced")
        assert opened is not None
        ports = self._ports
        self._log = SegmentLog(
            opened,
            ports.member,
            ports.server,
            ports.batcher,
            partial(self._processor.on_committed, epoch),
            partial(self._on_stopped, epoch),
            partial(ports.holders, self._partition),
        )
        fence = Fence(self._log, ports.links.clock)
        self._leader.stand(self._log, ports.announcement(epoch), self._on_decided, fence)

    def lead(self, epoch: int) -> None:
        """The leader took office when it read its announcement; others wait to hear of it."""
        self._ports.led(self._partition, epoch)

    def pause(self, is_paused: bool) -> None:
        self._leader.invoker.hold(is_paused)

    async def drain(self) -> None:
        invariant(self._log is not None, "who hands over has led", partition=self._partition)
        assert self._log is not None
        self._leader.stop_taking()
        await self._log.drain()
        applied = asyncio.Event()
        self._processor.when_applied(applied.set)
        await applied.wait()

    def step_down(self, epoch: int, reason: str) -> None:
        self._leader.resign()
        self._log = None
        self._opened = None
        self.follow()

    def positions(self) -> Positions:
        store = self._processor.store
        stalled_ms = self._log.stalled_ms() if self._log is not None else 0
        return Positions(store.applied_lsn, store.durable_lsn, stalled_ms)

    def trim(self, below_lsn: int) -> None:
        """Records of our segment below ``below_lsn`` may go, on all its replicas."""
        if self._log is not None:
            self._log.trim(below_lsn)

    @property
    def committed_lsn(self) -> int:
        """The last LSN known to be committed by who leads; 0 by others."""
        return self._log.statistics().committed_lsn - 1 if self._log is not None else 0

    def close(self) -> None:
        """Stop reading and leading."""
        self._stop_following()
        self._leader.resign()
        self._log = None

    # --- Following ------------------------------------------------------------------------------

    async def _follow(self) -> None:
        ports = self._ports
        source = FollowerPorts(
            metadata=ports.metadata, server=ports.server, transport=ports.transport
        )
        # What is committed here already must not be read again, nor judged before it is applied.
        applied = asyncio.Event()
        self._processor.when_applied(applied.set)
        await applied.wait()
        epoch = self._processor.store.applied_epoch
        self._follower = Follower(self._partition, self._processor.next_lsn, source, epoch)
        try:
            await self._follower.run(self._deliver)
        except LogTrimmed as gap:
            self._tables.want(gap.lsn)
            self._tell(self._ports.seat().on_gap)
        except (HistoryForsaken, LogDamaged) as failure:
            self._break(str(failure))
        except Exception as failure:  # bulkhead: who reads no more must say so
            self._break(f"following the log failed: {failure!r}")

    def _check_tables(self, applied_lsn: int, applied_epoch: int) -> None:
        """Raise HistoryForsaken for tables that have what an unsafe close has cut off."""
        meta = decode_meta(self._ports.known(self._partition))
        check_history(self._partition, meta, applied_lsn, applied_epoch)

    async def _get_tables(self) -> None:
        try:
            await self._tables.get()
        except Exception as failure:  # bulkhead: as in following
            self._break(f"getting tables failed: {failure!r}")
            return
        self._tell(self._ports.seat().on_bootstrapped)

    async def _deliver(self, records: list[Record]) -> None:
        """Take records; returns when they are applied."""
        self._processor.feed(records)
        applied = asyncio.Event()
        self._processor.when_applied(applied.set)
        await applied.wait()
        if self._processor.halted is not None:
            self._break(str(self._processor.halted))
        elif self._until is not None and self._processor.next_lsn >= self._until:
            self._has_read.set()

    async def _read_until(self, lsn: int) -> None:
        """Have everything below ``lsn`` applied, and nothing read beyond.

        Raises:
            MetadataConflict: there is something beyond: others have led since, while this process
                stood still.
        """
        self._until = lsn
        self._has_read.clear()
        if self._follower is not None:
            self._follower.hurry()
        try:
            if self._processor.next_lsn < lsn:
                await self._has_read.wait()
        finally:
            self._until = None
        if self._processor.next_lsn > lsn:
            raise MetadataConflict(
                f"partition {self._partition} was taken over by another, who went on from {lsn}"
            )
        self._stop_following()
        invariant(
            self._processor.next_lsn == lsn,
            "a leader goes on where the log ended",
            partition=self._partition,
            next_lsn=self._processor.next_lsn,
            base_lsn=lsn,
        )

    def _stop_following(self) -> None:
        following, self._following = self._following, None
        if following is not None:
            following.cancel()
        if self._news is not None:
            self._news.cancel()

    def _tell(self, hear: Callable[[int], None]) -> None:
        """Soon, unless we are to do something else by then."""
        self._news = self._loop.call_soon(hear, self._partition)

    def _break(self, reason: str) -> None:
        self._loop.call_soon(self._ports.seat().on_broken, self._partition, reason)

    # --- Leading --------------------------------------------------------------------------------

    def _on_decided(self) -> None:
        if self._processor.halted is not None:
            self._break(str(self._processor.halted))
        elif self._opened is not None:
            self._ports.seat().on_announced(self._partition, self._opened.epoch)

    def _on_stopped(self, epoch: int, reason: str) -> None:
        if self._opened is not None and self._opened.epoch == epoch:
            self._ports.seat().on_log_stopped(self._partition, reason)
