"""The durable half of a node: its log, its tables, its partitions, led from here.

``Host.open`` reads as the list of steps that lead from a data directory to partitions with
leaders; ``close`` undoes them. What the steps touch (disk, tables, clock, chance, threads, the way
to services) comes in as ports, so the simulator opens the very same host.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from perdure.cluster.core.chain import PartitionMeta
from perdure.cluster.core.replica import ReplicaCore
from perdure.cluster.core.trim import TrimStatistics
from perdure.cluster.core.types import SegmentKey
from perdure.cluster.log import LogBatcher, SegmentLog
from perdure.cluster.log_reader import ReplayIndex, liveness
from perdure.cluster.log_server import LogServer
from perdure.cluster.takeover import Takeover, decode_meta, partition_key, take_over
from perdure.cluster.wal_writer import WalWriter, WalWriterStatistics
from perdure.core.errors import (
    StoreAheadOfLog,
)
from perdure.core.ids import PartitionId
from perdure.core.invariant import invariant
from perdure.core.summary import NO_DURATIONS, SummaryFigures
from perdure.core.telemetry import logger
from perdure.node.identity import Identity
from perdure.node.partition.assembly import Assembly
from perdure.node.partition.gateway import LedPartition, LocalGateway
from perdure.node.partition.leader import LeaderStatistics
from perdure.node.partition.ports import HostOptions, HostPorts
from perdure.node.partition.processor import Processor, ProcessorStatistics, Proposed
from perdure.storage.partition_store import PartitionStore
from perdure.storage.tables.timers import Outgoing
from perdure.storage.wal import Wal, WalIdentity, WalStatistics
from perdure.storage.wal_recovery import open_wal

log = logger("node")

_FLUSH_LOOK_S = 0.1  # a flush that fails tells nobody


@dataclass(frozen=True, slots=True)
class BootFigures:
    """What opening found: frames scanned, records replayed, where a torn tail was cut."""

    frames_scanned: int
    records_replayed: int
    torn_at: str | None


@dataclass(frozen=True, slots=True)
class PartitionStatistics:
    """A partition of this node, and what its leader does."""

    partition: PartitionId
    processor: ProcessorStatistics
    leader: LeaderStatistics


@dataclass(frozen=True, slots=True)
class HostStatistics:
    """The log and the partitions. ``is_alone``: no other node could lead what this one doesn't.
    ``trims``: of what is led here, among several nodes."""

    wal: WalStatistics
    writer: WalWriterStatistics
    boot: BootFigures
    partitions: tuple[PartitionStatistics, ...]
    is_alone: bool = True
    trims: tuple[TrimStatistics, ...] = ()
    commits: SummaryFigures = NO_DURATIONS


def partition_statistics(led: LedPartition) -> PartitionStatistics:
    """How a partition of this node is."""
    processor = led.processor
    return PartitionStatistics(processor.partition, processor.statistics(), led.leader.statistics())


async def flush_at_end(processor: Processor) -> None:
    """Make durable what is applied, unless the disk refuses it: then the log alone has it."""
    flushed = asyncio.Event()
    if processor.halted is None:
        processor.flush(flushed.set)
    while not (flushed.is_set() or processor.halted is not None or processor.is_unwritable):
        with suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_LOOK_S):
                await flushed.wait()


class Host:
    """Open it once; then ``gateway`` serves until ``close``."""

    def __init__(self, identity: Identity, ports: HostPorts, options: HostOptions) -> None:
        self.identity = identity
        self._ports = ports
        self._partitions = [PartitionId(number) for number in range(identity.partition_count)]
        routes = (self._route_message, self._route_applied)
        self._assembly = Assembly(identity, ports, options, routes, self._on_durable)
        self._stores: list[PartitionStore] = []
        self._durable_lsns: dict[int, int] = {}
        self._chains: dict[int, PartitionMeta] = {}
        self._is_dead: Callable[[SegmentKey, int], bool] = lambda _segment, _end: False
        self._wal: Wal | None = None
        self.writer: WalWriter
        self.log_server: LogServer
        self._batcher: LogBatcher
        self.led: list[LedPartition] = []
        self.gateway = LocalGateway(self.led)
        self.figures = BootFigures(0, 0, None)

    # --- Opening --------------------------------------------------------------------------------

    async def open(self) -> None:
        """Recover from the data directory and lead every partition.

        Raises:
            PerdureError: the directory can't be served; nothing of it was changed but claims.
        """
        await self._open_stores()
        replicas = ReplicaCore(self._assembly.member)
        index = ReplayIndex(replicas, self._is_dead)
        wal = self._open_log(index)
        self._start_log(wal, replicas)
        takeovers = await self._take_over(replicas)
        self._build(takeovers)
        self._replay(index, wal, takeovers)
        await self._lead(takeovers)
        self._recycle()

    async def _open_stores(self) -> None:
        for partition in self._partitions:
            store = self._assembly.open_store(partition)
            self._stores.append(store)
            self._durable_lsns[partition] = store.durable_lsn
            found = await self._ports.metadata.get(partition_key(partition))
            self._chains[partition] = decode_meta(found)
        self._is_dead = liveness(self._chains, self._durable_lsns)

    def _open_log(self, index: ReplayIndex) -> Wal:
        identity = WalIdentity(
            fingerprint=self.identity.fingerprint, storage_uuid=self.identity.storage_uuid
        )
        ports = self._ports
        found = open_wal(
            ports.disk, identity, ports.entropy, index.visit, self._is_dead, ports.wal_sizes
        )
        self.figures = BootFigures(found.frames, 0, found.torn_at)
        self._wal = found.wal
        return found.wal

    def _start_log(self, wal: Wal, replicas: ReplicaCore) -> None:
        ports = self._ports
        self.writer = WalWriter(
            wal,
            ports.clock,
            ports.log_thread,
            ports.housekeeping_thread,
            ports.on_failure,
            replicas.checkpoint,
        )
        self.log_server = LogServer(replicas, self.writer)

    async def _take_over(self, replicas: ReplicaCore) -> list[Takeover]:
        me = (self._assembly.me, self._assembly.member)
        takeovers = await asyncio.gather(
            *(
                take_over(
                    partition,
                    self._ports.metadata,
                    self.log_server,
                    replicas,
                    me,
                    self._durable_lsns[partition],
                )
                for partition in self._partitions
            )
        )
        for partition, takeover in zip(self._partitions, takeovers, strict=True):
            self._chains[partition] = takeover.meta
        self._is_dead = liveness(self._chains, self._durable_lsns)
        return takeovers

    def _build(self, takeovers: list[Takeover]) -> None:
        for partition, takeover in zip(self._partitions, takeovers, strict=True):
            store = self._stores[partition]
            if store.applied_lsn >= takeover.opened.base_lsn:
                raise StoreAheadOfLog(
                    f"partition {partition} has applied record {store.applied_lsn}, its log ends "
                    f"before {takeover.opened.base_lsn}: a log file was lost or rolled back; "
                    "restore the data directory from a backup, or wipe it"
                )
            self.led.append(self._assembly.assemble(store, partition))

    def _replay(self, index: ReplayIndex, wal: Wal, takeovers: list[Takeover]) -> None:
        replayed = 0
        for led, takeover in zip(self.led, takeovers, strict=True):
            processor = led.processor
            after = processor.store.applied_lsn
            replayed += processor.replay(
                index.records(wal, processor.partition, takeover.meta, after)
            )
            processor.leader = led.leader
        self.figures = BootFigures(self.figures.frames_scanned, replayed, self.figures.torn_at)

    async def _lead(self, takeovers: list[Takeover]) -> None:
        decided = asyncio.Event()
        waiting = len(self.led)

        def on_decided() -> None:
            nonlocal waiting
            waiting -= 1
            if waiting == 0:
                decided.set()

        batcher = self._batcher = LogBatcher(self.writer)
        for led, takeover in zip(self.led, takeovers, strict=True):
            self._stand(led, takeover, batcher, on_decided)
        await decided.wait()

    def _stand(
        self,
        led: LedPartition,
        takeover: Takeover,
        batcher: LogBatcher,
        on_decided: Callable[[], None],
    ) -> None:
        opened = takeover.opened
        segment_log: SegmentLog[Proposed] = SegmentLog(
            opened,
            self._assembly.member,
            self.log_server,
            batcher,
            partial(led.processor.on_committed, opened.epoch),
            partial(self._on_log_stopped, led.processor.partition),
        )
        announcement = self._assembly.announcement(opened.epoch)
        led.leader.stand(segment_log, announcement, on_decided)

    # --- While it runs --------------------------------------------------------------------------

    def on_catalogue_change(self) -> None:
        """The registry changed: what failed for want of a deployment may work now."""
        for led in self.led:
            led.leader.invoker.on_catalogue_change()

    @property
    def metas(self) -> Mapping[int, PartitionMeta]:
        """The partitions' registers, as this node has written them."""
        return self._chains

    @property
    def is_disk_full(self) -> bool:
        """Whether nothing new is taken, everywhere or in a partition, until there is room."""
        return self.writer.is_full or any(led.processor.is_unwritable for led in self.led)

    def statistics(self) -> HostStatistics:
        """Only after ``open``."""
        invariant(self._wal is not None, "a host has statistics once it is open")
        assert self._wal is not None
        partitions = tuple(map(partition_statistics, self.led))
        return HostStatistics(
            self._wal.statistics(),
            self.writer.statistics(),
            self.figures,
            partitions,
            commits=self._batcher.commits.figures(),
        )

    def _route_message(
        self, source: PartitionId, target: int, sequence: int, message: Outgoing
    ) -> None:
        self.led[target].leader.receive(source, sequence, message)

    def _route_applied(self, target: PartitionId, source: int, sequence: int) -> None:
        self.led[source].leader.shuffle.applied(target, sequence)

    def _on_durable(self, partition: PartitionId, lsn: int) -> None:
        self._durable_lsns[partition] = lsn
        opened = self._chains[partition].chain[-1]
        if lsn >= opened.base_lsn:
            self.log_server.trim((partition, opened.index), lsn + 1 - opened.base_lsn)
        self._recycle()

    def _recycle(self) -> None:
        if self._wal is not None and self._wal.statistics().files > 1:
            self.writer.recycle(self._is_dead)

    def _on_log_stopped(self, partition: PartitionId, reason: str) -> None:
        log.error("partition.log.stopped", partition=partition, reason=reason)
        self.led[partition].leader.resign()

    # --- Closing --------------------------------------------------------------------------------

    async def close(self) -> None:
        """Stop leading, flush what is applied, close log and tables."""
        for led in self.led:
            led.leader.resign()
        await asyncio.gather(*(flush_at_end(led.processor) for led in self.led))
        await self.abandon()

    async def abandon(self) -> None:
        """Let go of everything at once; the log keeps what tables don't have."""
        for led in self.led:
            # Streams that are dropped later would still look into tables that are closed by then.
            led.leader.resign()
            led.processor.close()
        if self._wal is not None:
            self.writer.close()
        for thread in (
            self._ports.log_thread,
            self._ports.housekeeping_thread,
            self._ports.storage_thread,
        ):
            thread.close()
        if self._wal is not None:
            self._wal.close()
        for store in self._stores:
            store.close()
