"""A few nodes with a replicated log each: real transport over simulated wires, simulated disks.

The register is one local store that all of them share; ``World.run`` gives each test a loop on
virtual time. A node's process may be killed or lose its power, and started again on its disk.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from tests.sim.disk import SimDisk
from tests.sim.loop import SimLoop, run
from tests.sim.network import SimNetwork, SimWires
from tests.sim.ports import SimClock, SimEntropy, SimOffload

from perdure.cluster.core.handshake import ClusterIdentity
from perdure.cluster.core.messages import Peer
from perdure.cluster.core.replica import ReplicaCore
from perdure.cluster.core.types import Member, NodeId, Proposal, Writer
from perdure.cluster.fabric import Fabric
from perdure.cluster.follower import Follower, FollowerPorts
from perdure.cluster.log import CommittedRecord, LogBatcher, SegmentLog, Trouble
from perdure.cluster.log_reader import restore_replicas
from perdure.cluster.log_server import LogServer
from perdure.cluster.log_service import LogService
from perdure.cluster.metadata.local import LocalMetadata
from perdure.cluster.metadata.store import MetadataStore
from perdure.cluster.replica_links import ReplicaLinks
from perdure.cluster.takeover import Plan, Takeover, take_over
from perdure.cluster.transport import Place
from perdure.cluster.wal_writer import WalWriter
from perdure.core.tasks import Supervisor
from perdure.storage.wal import WalIdentity, WalSizes
from perdure.storage.wal_format import Record
from perdure.storage.wal_recovery import open_wal

FINGERPRINT = b"F" * 16
SIZES = WalSizes(first_file=64 * 1024, file=256 * 1024, free_min=0, reserve=1024)
DEADLINE_S = 60.0


class Life:
    """One run of a node's process."""

    def __init__(self, world: "World", node: "Node") -> None:
        self.world = world
        self.node = node
        self.me = Peer(node.id, node.lives, world.dice.getrandbits(60), node.uuid)
        self.supervisor = Supervisor()
        entropy = SimEntropy(random.Random(world.dice.getrandbits(64)))
        self.wires: SimWires = world.network.wires(node.host)
        self.fabric = Fabric(
            me=self.me,
            cluster=ClusterIdentity(name="test", fingerprint=FINGERPRINT, secret=None),
            wires=self.wires,
            entropy=entropy,
            supervisor=self.supervisor,
        )
        self.replicas = ReplicaCore(self.me.member)
        identity = WalIdentity(fingerprint=FINGERPRINT, storage_uuid=node.uuid)
        self.wal = open_wal(
            node.disk,
            identity,
            entropy,
            restore_replicas(self.replicas),
            lambda _segment, _end: False,
            SIZES,
        ).wal
        clock = SimClock(world.loop)
        self.writer = WalWriter(
            self.wal,
            clock,
            self._offload(),
            self._offload(),
            self.supervisor.fail,
            self.replicas.checkpoint,
        )
        self.server = LogServer(self.replicas, self.writer)
        self.service = LogService(self.server, self.fabric)
        self.links = ReplicaLinks(self.fabric, clock)
        self.batcher = LogBatcher(self.writer, self.links)
        self.committed: list[tuple[int, bytes]] = []
        self.stopped: list[str] = []
        self.troubles: list[Trouble] = []
        self.log: SegmentLog[bytes] | None = None
        self.tasks: list[asyncio.Task[Any]] = []

    def _offload(self) -> SimOffload:
        return SimOffload(random.Random(self.world.dice.getrandbits(64)), delay_ms_max=1)

    async def take_over(self, **options: Any) -> Takeover:
        """Take partition 0 over, with the world's nodeset unless told otherwise."""
        defaults: dict[str, Any] = {
            "links": self.links,
            "nodeset": self.world.members(),
            "replication": self.world.replication,
            "reason": "test",
        }
        metadata = options.pop("metadata", self.world.metadata)
        writer = Writer(self.me.node, self.me.generation, self.me.incarnation)
        return await take_over(
            0,
            metadata,
            self.server,
            self.replicas,
            (writer, self.me.member),
            options.pop("applied", 0),
            Plan(**{**defaults, **options}),
        )

    async def lead(self, **options: Any) -> Takeover:
        """Take over and open the log."""
        taken = await self.take_over(**options)
        log: SegmentLog[bytes] = SegmentLog(
            taken.opened,
            self.me.member,
            self.server,
            self.batcher,
            self._on_committed,
            self.stopped.append,
        )
        log.on_trouble = self.troubles.append
        self.log = log
        return taken

    def append(self, *payloads: bytes) -> None:
        assert self.log is not None
        for payload in payloads:
            self.log.append(Proposal(kind=1, payload=payload, created_at_ms=0), payload)

    async def write(self, *payloads: bytes) -> None:
        """Append and wait for the commits."""
        count = len(self.committed) + len(payloads)
        self.append(*payloads)
        await self.world.until(lambda: len(self.committed) == count)

    def _on_committed(self, records: list[CommittedRecord[bytes]]) -> None:
        self.committed.extend((record.lsn, record.context) for record in records)

    def follow(self, after: int = 0, metadata: MetadataStore | None = None) -> list[Record]:
        """A list that grows with what a follower delivers."""
        found: list[Record] = []

        async def deliver(records: list[Record]) -> None:
            found.extend(records)

        self.start(self.follower(after, metadata).run(deliver))
        return found

    def follower(
        self, after: int = 0, metadata: MetadataStore | None = None, epoch: int | None = None
    ) -> Follower:
        ports = FollowerPorts(
            metadata=metadata or self.world.metadata, server=self.server, transport=self.fabric
        )
        return Follower(0, after + 1, ports, epoch)

    async def read(self, until: int, after: int = 0) -> list[tuple[int, bytes]]:
        """All records below ``until``."""
        found: list[tuple[int, bytes]] = []

        async def deliver(records: list[Record]) -> None:
            found.extend((record.lsn, record.payload) for record in records)

        async with asyncio.timeout(DEADLINE_S):
            await self.follower(after).run(deliver, until)
        return found

    def start(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.append(task)
        return task

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.links.close()
        self.writer.close()
        await self.fabric.aclose()
        failure = self.supervisor.failure
        await self.supervisor.aclose()
        if failure is not None:
            raise failure


class Node:
    """A machine: its disk outlives its processes."""

    def __init__(self, world: "World", number: int) -> None:
        self.world = world
        self.id = NodeId(number)
        self.host = f"node-{number}:5122"
        self.disk = SimDisk(random.Random(world.dice.getrandbits(64)))
        self.uuid = b"%016d" % number
        self.lives = 0
        self.life: Life | None = None

    @property
    def up(self) -> Life:
        assert self.life is not None
        return self.life

    async def start(self) -> Life:
        self.lives += 1
        self.life = Life(self.world, self)
        await self.life.fabric.listen()
        self.world.introduce()
        return self.life

    async def kill(self, *, loses_power: bool = False) -> None:
        """End the process; what was not synced is lost with the power."""
        life, self.life = self.up, None
        if loses_power:
            life.wires.lose_power()
            self.disk.lose_power()
        else:
            life.wires.kill()
            self.disk.kill()
        await life.end()

    def wipe(self) -> None:
        """Another disk, empty."""
        self.uuid = b"%08d%08d" % (self.id, self.lives + 1)
        self.disk = SimDisk(random.Random(self.world.dice.getrandbits(64)))


class World:
    """Nodes 1 to n, of which the first ``nodeset`` hold segments."""

    def __init__(self, loop: SimLoop, seed: int, nodes: int, replication: int) -> None:
        self.loop = loop
        self.dice = random.Random(seed)
        self.network = SimNetwork(random.Random(self.dice.getrandbits(64)))
        self.metadata = LocalMetadata(SimDisk(random.Random(1)))
        self.replication = replication
        self.nodes = [Node(self, number + 1) for number in range(nodes)]
        self.nodeset = min(nodes, 2 * replication - 1)

    def members(self) -> tuple[Member, ...]:
        return tuple(Member(node.id, node.uuid) for node in self.nodes[: self.nodeset])

    def introduce(self) -> None:
        directory = {node.id: Place(address=node.host) for node in self.nodes}
        for node in self.nodes:
            if node.life is not None:
                node.life.fabric.set_directory(directory)

    async def until(self, condition: Callable[[], object]) -> None:
        deadline = self.loop.time() + DEADLINE_S
        while not condition():
            assert self.loop.time() < deadline, "the condition never held"
            await asyncio.sleep(0.002)

    async def connected(self) -> None:
        """Every process has a session to every other."""
        lives = [node.life for node in self.nodes if node.life is not None]
        await self.until(
            lambda: all(
                one.fabric.session(other.me.node) == other.me
                for one in lives
                for other in lives
                if one is not other
            )
        )


def simulate(
    body: Callable[[World], Awaitable[None]],
    *,
    nodes: int = 3,
    replication: int = 2,
    seed: int = 1,
) -> None:
    """Run ``body`` in a world whose nodes are up and connected."""

    async def main(loop: SimLoop) -> None:
        world = World(loop, seed, nodes, replication)
        for node in world.nodes:
            await node.start()
        await world.connected()
        try:
            await body(world)
        finally:
            for node in world.nodes:
                if node.life is not None:
                    await node.up.end()

    run(seed, main)
