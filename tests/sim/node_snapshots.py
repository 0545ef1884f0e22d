"""The node's simulation with snapshots: a bucket with bad days beside a node that loses its power.

Besides what must hold of the node itself, what must hold of the bucket: ``bucket_watch.py``.
"""

import asyncio
import random
from dataclasses import dataclass, field

from tests.sim.bucket_watch import BucketWatch
from tests.sim.loop import SimLoop
from tests.sim.node_world import PARTITIONS, Faults, NodeLife, NodeWorld
from tests.sim.object_store import BucketFaults, SimBucket, SimObjectStore
from tests.sim.ports import SimEntropy
from tests.sim.table_images import SimHeldTables

from perdure.cluster.core.snapshot import SnapshotPolicy
from perdure.cluster.snapshot_repository import RepositoryPorts, SnapshotRepository
from perdure.core.errors import PerdureError
from perdure.node.partition.snapshotter import Snapshotter, SnapshotterPorts
from perdure.node.partition.taker import Taker, TakerPorts
from perdure.storage.snapshots import SnapshotOwner


@dataclass
class SnapshotNodeWorld(NodeWorld):
    """One seed. ``sets``: complete ones, by name."""

    bucket: SimBucket = field(default_factory=SimBucket)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.luck = random.Random(self.seed)  # the node's dice fall as without snapshots
        self.watch = BucketWatch(self.bucket)

    @property
    def sets(self) -> set[str]:
        return self.watch.sets

    def make_life(self, faults: Faults, loop: SimLoop) -> NodeLife:
        return SnapshotNodeLife(self, faults, loop)

    def run(self, lives: int) -> str:
        found = super().run(lives)
        self.watch.raise_found()
        return found


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
