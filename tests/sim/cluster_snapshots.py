"""The simulation of a cluster with a bucket: sets under faults, trimming, and a second cluster.

Nodes take sets of snapshots together, when they are due and when operators ask; logs are trimmed by
any mode of durability, so replicas that were away, or lost their disks, begin with snapshots. Every
set must be of one moment (``bucket_watch.py``). In the end another cluster is made of any set that
is there, on empty disks and with nothing else. Clients repeat their requests there under their ids:
what was acknowledged before the set was asked for is known, results that were known are the same,
and again each counter has counted every add exactly once.
"""

# pyright: reportPrivateUsage=false

import asyncio
import random
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import msgspec
from tests.sim.bucket_watch import BucketWatch
from tests.sim.cluster_machine import ClusterLife
from tests.sim.cluster_monitor import Monitor
from tests.sim.cluster_world import FINGERPRINT, THREE, ClusterWorld, Shape
from tests.sim.loop import SimLoop
from tests.sim.node_world import PARTITIONS, NodeWorld, Request, Violation
from tests.sim.object_store import BucketFaults, SimBucket, SimObjectStore
from tests.sim.ports import SimEntropy
from tests.sim.service import Ledger
from tests.sim.table_images import SimHeldTables, rows_of

from perdure.cluster.core.membership import CLUSTER_FORMAT_VERSION, ClusterMeta
from perdure.cluster.core.replica import ReplicaCore
from perdure.cluster.core.snapshot import SnapshotPolicy
from perdure.cluster.core.trim import DurabilityMode, TrimPolicy
from perdure.cluster.core.types import SegmentKey
from perdure.cluster.snapshot_repository import RepositoryPorts, SnapshotRepository
from perdure.core.errors import PerdureError
from perdure.core.ids import InvocationId, partition_key_of, partition_of
from perdure.core.limits_snapshots import TRIM_NAMED_MS
from perdure.core.offload import Offload
from perdure.node.origin import restored_registers
from perdure.node.partition.archive import Archive, Row, Source
from perdure.node.partition.cluster_host import ClusterPorts
from perdure.node.partition.snapshotter import Snapshotter, SnapshotterPorts
from perdure.node.partition.taker import Taker, TakerPorts
from perdure.storage.partition_store import META_KEY, Meta
from perdure.storage.snapshot_format import SnapshotSet
from perdure.storage.snapshots import SnapshotOwner
from perdure.storage.tables.invocations import Result
from perdure.storage.tables.timers import inbound_counter

_NEW_FINGERPRINT = "ef" * 16


class SimUnpacked:
    """An image's rows in memory: the twin of ``UnpackedTables``."""

    def __init__(self, _partition: int, chunks: Iterator[bytes]) -> None:
        self._rows = sorted(rows_of(b"".join(chunks)).items())
        self.meta = msgspec.msgpack.decode(dict(self._rows)[META_KEY], type=Meta)

    def scan(self, lower: bytes, rows_max: int, bytes_max: int) -> list[Row]:
        return [row for row in self._rows if row[0] >= lower][:7]  # several pieces

    def discard(self) -> None:
        """Memory is free."""


class WatchedArchive(Archive):
    """Tells the monitor that tables are replaced: what they told before counts no more."""

    def __init__(self, life: ClusterLife, sources: list[Source], threads: Offload) -> None:
        fingerprint = life.world.fingerprint
        super().__init__(sources, threads, SimUnpacked, bytes.fromhex(fingerprint))
        self._life = life

    async def rows(self, partition: int, lsn_min: int) -> AsyncGenerator[list[Row], None]:
        world, machine = self._life.world, self._life.machine
        async for piece in super().rows(partition, lsn_min):
            world.monitor._durable.pop((machine.name, partition), None)
            world.happened["tables from a snapshot"] += 1
            yield piece


@dataclass
class Known:
    """What clients knew when a set was asked for."""

    acknowledged: set[InvocationId] = field(default_factory=set[InvocationId])
    results: dict[InvocationId, Result] = field(default_factory=dict[InvocationId, Result])

    @staticmethod
    def of(requests: list[Request]) -> "Known":
        known = Known()
        for request in requests:
            if request.is_acknowledged:
                known.acknowledged.add(request.command.id)
            if request.result is not None:
                known.results[request.command.id] = request.result
        return known


class TrimMonitor(Monitor):
    """Knows that snapshots may hold what the log lets go of."""

    def __init__(self, world: "SnapshotClusterWorld") -> None:
        super().__init__()
        self._world = world

    def on_trimmed(self, core: ReplicaCore, key: SegmentKey, up_to: int) -> None:
        mode, segment = self._world.trim.mode, self._chained.get(key)
        if mode in (DurabilityMode.REPLICAS, DurabilityMode.BOTH):
            super().on_trimmed(core, key, up_to)
        if mode is DurabilityMode.NONE:
            self._find(f"I-24: partition {key[0]} is trimmed")
        elif mode is not DurabilityMode.REPLICAS and segment is not None:
            last = segment.base_lsn + up_to - 1
            if self._world.watch.newest_lsn(key[0]) < last:
                self._find(f"I-24: partition {key[0]} has no snapshot at {last}, and is trimmed")


class SnapshotClusterWorld(ClusterWorld):
    """One seed: a cluster, its bucket, its operators."""

    def __init__(
        self, loop: SimLoop, seed: int, kinds: tuple[str, ...], shape: Shape = THREE
    ) -> None:
        super().__init__(loop, seed, shape, kinds)
        self.luck = random.Random(f"snapshots {seed}")
        self.bucket = SimBucket(now_ms=lambda: 1_700_000_000_000 + int(loop.time() * 1000))
        self.watch = BucketWatch(self.bucket)
        self.known: dict[str, Known] = {}
        self.snapshotters: dict[ClusterLife, Snapshotter] = {}
        mode = self.luck.choice(tuple(DurabilityMode))
        # Replicas that were just named are waited for; snapshots serve also them.
        leans_on_replicas = mode in (DurabilityMode.REPLICAS, DurabilityMode.BOTH)
        delay_ms = TRIM_NAMED_MS if leans_on_replicas else self.luck.choice((0, 1_000, 10_000))
        self.trim = TrimPolicy(mode=mode, delay_ms=delay_ms)
        self._takers: dict[ClusterLife, Taker] = {}

    def make_monitor(self) -> Monitor:
        return TrimMonitor(self)

    def equip(self, life: ClusterLife, ports: ClusterPorts) -> ClusterPorts:
        luck = random.Random(self.luck.getrandbits(64))
        faults = BucketFaults() if luck.random() < 0.5 else BucketFaults.draw(luck)
        store, threads = SimObjectStore(self.bucket, luck, faults), life.offload(luck)
        owner = SnapshotOwner(
            fingerprint=FINGERPRINT, cluster="sim", partition_count=PARTITIONS, software="sim"
        )
        repository = RepositoryPorts(
            store=store, threads=threads, clock=life.clock, entropy=SimEntropy(luck)
        )
        tables = life.machine.tables
        taker = self._takers[life] = Taker(
            TakerPorts(
                repository=SnapshotRepository(repository, owner, luck.choice((1, 2))),
                hold=lambda partition: SimHeldTables(tables[partition]),
                copy_thread=life.offload(luck),
                free_bytes=life.machine.disk.free_bytes,
                clock=life.clock,
                is_alone=False,
            )
        )
        source = Source(store=store, fingerprint=FINGERPRINT)
        return replace(
            ports,
            trim=self.trim,
            archived=partial(self._archived_lsn, life),
            archive=WatchedArchive(life, [source], threads),
            taker=taker,
        )

    def _archived_lsn(self, life: ClusterLife, partition: int) -> int | None:
        snapshotter = self.snapshotters.get(life)
        return snapshotter.archived_lsn(partition) if snapshotter is not None else None

    def on_opened(self, life: ClusterLife) -> None:
        luck = random.Random(self.luck.getrandbits(64))
        ports = SnapshotterPorts(
            taker=self._takers[life],
            processors=lambda: [led.processor for led in life.host.led if led.leader.is_leading],
            registry=lambda: b"",
            clock=life.clock,
            entropy=SimEntropy(luck),
            together=life.host.sets(),
        )
        policy = SnapshotPolicy(interval_ms=None, records=luck.choice((1, 10, 40)))
        snapshotter = self.snapshotters[life] = Snapshotter(ports, policy, "sim")
        life.supervisor.start("snapshots", snapshotter.run())
        life.supervisor.start("operator", self._ask_often(snapshotter, luck))

    async def _ask_often(self, snapshotter: Snapshotter, luck: random.Random) -> None:
        while True:
            await asyncio.sleep(luck.choice((0.1, 0.7, 3.0, 9.0)))
            known = Known.of(self.work.requests)
            try:
                document = await snapshotter.create()
            except PerdureError as failure:
                self.happened[f"no set: {failure.code}"] += 1
            else:
                self.known[document.name] = known
                self.happened["set"] += 1

    async def run(self) -> None:
        """Live under faults; then all is lost but the bucket, and another cluster is made of it."""
        await super().run()
        self.watch.raise_found()
        kept = self.watch.kept()
        if not kept:
            return
        document = self.luck.choice(kept)
        known = self.known.get(document.name, Known())
        await RestoredWorld(self, document, known).run()
        self.happened["restored"] += 1


class RestoredWork(NodeWorld):
    """The same requests, and a world outside that has forgotten what the set doesn't know."""

    def __init__(self, before: NodeWorld, known: Known) -> None:
        super().__init__(before.seed)
        self._ledger_before: Ledger = before.ledger
        for request in self.requests:
            request.is_acknowledged = request.command.id in known.acknowledged

    def check(self, request: Request) -> None:
        before = self._ledger_before
        for invocation, output in before.outputs.items():
            self.ledger.outputs.setdefault(invocation, output)
        for step, value in before.known.items():
            self.ledger.known.setdefault(step, value)
        super().check(request)


class RestoredWorld(ClusterWorld):
    """A cluster out of a set."""

    def __init__(self, before: SnapshotClusterWorld, document: SnapshotSet, known: Known) -> None:
        seed = before.luck.getrandbits(32)
        super().__init__(before.loop, seed, before.shape, ("kill", "power", "freeze"), faults=2)
        self.fingerprint = _NEW_FINGERPRINT
        self.work = RestoredWork(before.work, known)
        self.happened = before.happened
        self._before = before
        self._document = document
        self._known = known
        monitor = self.monitor
        monitor.applied_invocations |= before.monitor.applied_invocations
        stores = [before.watch.open(document, partition) for partition in range(PARTITIONS)]
        for partition, store in enumerate(stores):
            for source in range(PARTITIONS):
                received = store.sequences.get(inbound_counter(source)) or 0
                monitor._inbound[partition, source] = received
        for invocation, index in before.work.ledger.awakeables:
            partition = partition_of(partition_key_of(invocation), PARTITIONS)
            if stores[partition].invocations.get(invocation) is not None:
                # It may wait for what it was told after the set was taken: it is told again.
                self.work.ledger.awakeables[invocation, index] = False

    async def make(self) -> None:
        wanted = ClusterMeta(
            format=CLUSTER_FORMAT_VERSION,
            name="sim",
            fingerprint=self.fingerprint,
            partition_count=0,
            replication=self.shape.replication,
            partition_replicas=self.shape.replicas,
        )
        for key, found in restored_registers("sim", self._document, wanted).items():
            await self.registers.cas(key, None, found.value)

    def equip(self, life: ClusterLife, ports: ClusterPorts) -> ClusterPorts:
        luck = random.Random(self.dice.getrandbits(64))
        store, threads = SimObjectStore(self._before.bucket, luck), life.offload(luck)
        document = self._document
        source = Source(store=store, fingerprint=document.fingerprint, document=document)
        return replace(ports, archive=WatchedArchive(life, [source], threads))

    async def run(self) -> None:
        """Everything must come to its end here too."""
        await super().run()
        for request in self.work.requests:
            known = self._known.results.get(request.command.id)
            if known is not None and request.result != known:
                raise Violation(f"{request.command.id.hex()} had another result before")
