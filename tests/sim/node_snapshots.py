"""The node's simulation with snapshots: a bucket with bad days beside a node that loses its power.

Besides what must hold of the node itself, nothing that ``latest.json`` or a set names may be
missing, and a set is of one moment: what one partition has received, another has sent, and what it
has not yet received is still in the other's outbox.
"""

import asyncio
import random
from dataclasses import dataclass, field

import msgspec
from tests.sim.loop import SimLoop
from tests.sim.node_world import PARTITIONS, Faults, NodeLife, NodeWorld, Violation
from tests.sim.object_store import BucketFaults, SimBucket, SimObjectStore
from tests.sim.ports import SimEntropy, SimEnv, SimTables
from tests.sim.table_images import SimHeldTables, rows_of

from perdure.cluster.core.snapshot import SnapshotPolicy
from perdure.cluster.snapshot_repository import RepositoryPorts, SnapshotRepository
from perdure.core.errors import PerdureError
from perdure.node.partition.snapshotter import Snapshotter, SnapshotterPorts
from perdure.node.partition.taker import Taker, TakerPorts
from perdure.storage import snapshots
from perdure.storage.keys import split_outbox_key
from perdure.storage.partition_store import PartitionStore
from perdure.storage.snapshot_format import SETS_PREFIX, SnapshotSet, decode, parse_snapshot_key
from perdure.storage.snapshots import SnapshotOwner
from perdure.storage.tables.timers import inbound_counter, outbox_counter


@dataclass
class SnapshotNodeWorld(NodeWorld):
    """One seed. ``sets``: complete ones, by name."""

    bucket: SimBucket = field(default_factory=SimBucket)
    sets: set[str] = field(default_factory=set[str])

    def __post_init__(self) -> None:
        super().__post_init__()
        self.luck = random.Random(self.seed)  # the node's dice fall as without snapshots
        self.store = SimObjectStore(self.bucket, random.Random(1))
        self.bucket.on_change = self._check_bucket
        self.named: dict[str, set[str]] = {}
        self.broken: Exception | None = None

    def make_life(self, faults: Faults, loop: SimLoop) -> NodeLife:
        return SnapshotNodeLife(self, faults, loop)

    def run(self, lives: int) -> str:
        found = super().run(lives)
        if self.broken is not None:
            raise self.broken
        return found

    def _check_bucket(self, key: str) -> None:
        try:
            self._check_object(key)
        except Exception as error:  # the snapshotter would take it for trouble with the store
            self.broken = self.broken or error

    def _check_object(self, key: str) -> None:
        is_there = key in self.bucket.objects
        if key.endswith("/latest.json"):
            self._check_latest(key)
        elif key.startswith(SETS_PREFIX) and is_there:
            self._check_set(decode(self.bucket.objects[key][0], SnapshotSet, key))
        elif (found := parse_snapshot_key(key)) is not None and not is_there:
            for name, ids in self.named.items():
                if found[1] in ids:
                    raise Violation(f"{key} was deleted, and {name} names it")
        if key.startswith(SETS_PREFIX) and not is_there:
            self.named.pop(key, None)

    def _check_latest(self, key: str) -> None:
        partition = int(key.split("/")[1])
        fingerprint = msgspec.json.decode(self.bucket.objects[key][0])["fingerprint"]
        latest = snapshots.read_latest(self.store, partition, fingerprint)
        assert latest is not None
        for retained in latest.retained:
            manifest = snapshots.read_manifest(self.store, partition, retained, fingerprint)
            for _ in snapshots.get_image(self.store, manifest):
                pass
        self.named[key] = {item.id for item in latest.retained}

    def _check_set(self, document: SnapshotSet) -> None:
        self.named[f"{SETS_PREFIX}{document.name}.json"] = {
            member.snapshot.id for member in document.members
        }
        self.sets.add(document.name)
        stores = [self._open(document, partition) for partition in range(PARTITIONS)]
        for source, sender in enumerate(stores):
            rows = sender.outbox.scan(b"", 100_000)
            for target, receiver in enumerate(stores):
                sent = sender.sequences.get(outbox_counter(target)) or 0
                received = receiver.sequences.get(inbound_counter(source)) or 0
                waiting = {
                    sequence
                    for to, sequence in (split_outbox_key(key) for key, _ in rows)
                    if to == target
                }
                if received > sent or not set(range(received + 1, sent + 1)) <= waiting:
                    raise Violation(
                        f"{document.name}: {source} sent {sent} to {target}, which received "
                        f"{received}; on the way are {sorted(waiting)}"
                    )

    def _open(self, document: SnapshotSet, partition: int) -> PartitionStore:
        member = document.members[partition]
        manifest = snapshots.read_manifest(
            self.store, partition, member.snapshot, document.fingerprint
        )
        tables = SimTables(self.disk)
        tables.committed = rows_of(b"".join(snapshots.get_image(self.store, manifest)))
        store = PartitionStore(SimEnv(tables), b"", partition)
        if store.applied_lsn != member.snapshot.lsn:
            raise Violation(f"{document.name}: partition {partition} is at another LSN")
        return store


class SnapshotNodeLife(NodeLife):
    """One run of the process, with a snapshotter."""

    world: SnapshotNodeWorld

    async def boot(self) -> None:
        await super().boot()
        world = self.world
        luck = random.Random(world.luck.getrandbits(64))
        world.bucket.now_ms = self.clock.now_ms
        world.bucket.waiting.clear()  # requests of an earlier life
        entropy = SimEntropy(luck)
        repository = SnapshotRepository(
            RepositoryPorts(
                store=SimObjectStore(world.bucket, luck, self._draw_faults(luck)),
                threads=self._offload(),
                clock=self.clock,
                entropy=entropy,
            ),
            SnapshotOwner(
                fingerprint=self.host.identity.fingerprint.hex(),
                cluster="sim",
                partition_count=PARTITIONS,
                software="sim",
            ),
            retain=luck.choice((1, 2)),
        )
        taker = Taker(
            TakerPorts(
                repository=repository,
                hold=lambda partition: SimHeldTables(world.tables[partition]),
                copy_thread=self._offload(),
                free_bytes=world.disk.free_bytes,
                clock=self.clock,
            )
        )
        ports = SnapshotterPorts(
            taker=taker,
            processors=lambda: [led.processor for led in self.host.led],
            registry=lambda: b"",
            clock=self.clock,
            entropy=entropy,
        )
        policy = SnapshotPolicy(interval_ms=None, records=luck.choice((1, 10)))
        self.snapshotter = Snapshotter(ports, policy, "sim")
        # Held here: a task that nobody holds may be collected.
        self._background = [
            asyncio.ensure_future(self.snapshotter.run()),
            asyncio.ensure_future(self._ask_often(luck)),
        ]

    async def _ask_often(self, luck: random.Random) -> None:
        """An operator who can't wait."""
        while True:
            await asyncio.sleep(luck.choice((0.01, 0.1, 0.5)))
            try:
                await self.snapshotter.create()
                self.world.happened["set taken"] += 1
            except PerdureError:
                self.world.happened["set failed"] += 1

    def _draw_faults(self, luck: random.Random) -> BucketFaults:
        return BucketFaults() if luck.random() < 0.5 else BucketFaults.draw(luck)
