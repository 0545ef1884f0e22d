"""Workload of leadership: control planes of a cluster over a log that only claims and seals.

Real: joining, registers' cache, gossip, leaderships, controllers, the fabric over the simulated
network. Simulated: the registers (slow, with unknown outcomes), and a log whose segments are sealed
on replicas and otherwise only count commits. One seed is one history.
"""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from tests.cluster.flaky_registers import FlakyRegisters
from tests.sim.disk import SimDisk
from tests.sim.network import NetworkFaults, SimNetwork, SimWires
from tests.sim.ports import SimClock, SimEntropy
from tests.sim.stalls import Gate, StallableSupervisor

from perdure.cluster.control import ControlPlane, ControlPorts
from perdure.cluster.core import chain
from perdure.cluster.core.chain import PartitionMeta, SegmentMeta
from perdure.cluster.core.handshake import ClusterIdentity
from perdure.cluster.core.leadership import ReplicaState
from perdure.cluster.core.membership import (
    Addresses,
    ClusterMeta,
    NodeProfile,
    NodeRole,
)
from perdure.cluster.core.messages import GUEST, Peer
from perdure.cluster.core.types import NodeId
from perdure.cluster.fabric import Fabric
from perdure.cluster.leadership import Positions
from perdure.cluster.membership import Joined, Membership, join, probing, provision
from perdure.cluster.metadata.store import CasOutcome, Unknown, Versioned
from perdure.cluster.wires import Wires
from perdure.core.errors import MetadataConflict, MetadataUnavailable, PerdureError
from perdure.core.tasks import Supervisor

REPLICATION = 2
WRITE_EVERY_S = 0.1
SEAL_RETRY_S = 0.2
FINGERPRINT = "0f" * 16


class NodeRegisters:
    """The registers as one node reaches them."""

    def __init__(self, node: "SimNode") -> None:
        self._node = node
        self._shared = node.world.registers

    async def get(self, key: str) -> Versioned | None:
        self._check()
        found = await self._shared.get(key)
        self._check()
        return found

    async def scan(self, prefix: str) -> dict[str, Versioned]:
        self._check()
        found = await self._shared.scan(prefix)
        self._check()
        return found

    async def cas(self, key: str, expected: int | None, value: bytes) -> CasOutcome:
        if not self._is_reached():
            return Unknown()
        outcome = await self._shared.cas(key, expected, value)
        return outcome if self._is_reached() else Unknown()

    def watch(self, prefix: str, hint: Callable[[str], None]) -> Callable[[], None]:
        def pass_on(key: str) -> None:
            if not self._node.is_cut_from_metadata:
                hint(key)

        return self._shared.watch(prefix, pass_on)

    def _is_reached(self) -> bool:
        return not self._node.is_cut_from_metadata

    def _check(self) -> None:
        if not self._is_reached():
            raise MetadataUnavailable("cut off from metadata")


class FakeLog:
    """Which segments are sealed where, and who has led and committed what: the checker."""

    def __init__(self) -> None:
        self.sealed: dict[NodeId, set[tuple[int, int]]] = defaultdict(set)
        self.leaders: dict[tuple[int, int], object] = {}
        self.committed: dict[int, int] = defaultdict(int)  # latest epoch with a commit
        self.commits = Counter[int]()
        self.led_epochs: dict[int, list[int]] = defaultdict(list)

    def lead(self, partition: int, epoch: int, writer: object) -> None:
        key = (partition, epoch)
        assert key not in self.leaders, f"two leaders of epoch {epoch} of partition {partition}"
        assert self.committed[partition] >= epoch, "it leads without its announcement"
        self.leaders[key] = writer
        epochs = self.led_epochs[partition]
        assert not epochs or epoch > epochs[-1], f"epoch {epoch} after {epochs[-1]}"
        epochs.append(epoch)

    def commit(self, partition: int, epoch: int) -> None:
        latest = self.committed[partition]
        assert epoch >= latest, f"a commit of epoch {epoch} after one of {latest}"
        self.committed[partition] = epoch
        self.commits[partition] += 1


class FakeReplica:
    """One partition of one life of a node; implements ``leadership.Replica``."""

    def __init__(self, life: "Life", partition: int) -> None:
        self.life = life
        self.partition = partition
        self.segment: SegmentMeta | None = None
        self.is_leading = False
        self.is_draining = False
        self.stalled_since: float | None = None
        self.writing: asyncio.Task[None] | None = None

    def bootstrap(self) -> None:
        loop = asyncio.get_running_loop()
        delay = self.life.node.world.dice.random()
        loop.call_later(delay, self.life.if_alive, self._bootstrapped)

    def _bootstrapped(self) -> None:
        self.life.plane.leaderships.on_bootstrapped(self.partition)

    def follow(self) -> None:
        """Nothing is applied here."""

    def retire(self) -> None:
        assert not self.is_leading

    async def take_over(
        self, seen_epoch: int, reason: str, on_claimed: Callable[[int], None]
    ) -> int:
        me = self.life.joined.peer().writer
        self.life.node.world.happened[reason] += 1
        found, meta = await self._read()
        if meta.epoch != seen_epoch:
            raise MetadataConflict("another epoch")
        claimed = chain.claim(meta, me, reason)
        version = await self._write(found, claimed)
        on_claimed(claimed.epoch)
        opened = chain.open_segment(claimed)
        if opened is not None:
            await self._seal(opened)
        assert claimed.claim is not None
        nodeset = self.life.plane.nodeset(self.partition)
        extended = chain.extend(claimed, claimed.claim, 1, nodeset, REPLICATION)
        assert extended is not None
        await self._write(version, extended)
        self.segment = extended.chain[-1]
        return self.segment.epoch

    async def _read(self) -> tuple[Versioned | None, PartitionMeta]:
        found = await self.life.store.get(f"p/{self.partition}")
        if found is None:
            return None, chain.empty()
        return found, msgspec.msgpack.decode(found.value, type=PartitionMeta)

    async def _write(self, before: Versioned | None, meta: PartitionMeta) -> Versioned:
        value = msgspec.msgpack.encode(meta)
        key = f"p/{self.partition}"
        outcome = await self.life.store.cas(key, before.version if before else None, value)
        if isinstance(outcome, Unknown):
            await asyncio.sleep(0.05)
            outcome = await self.life.store.get(key) or outcome
        version = (before.version if before else 0) + 1
        if outcome != Versioned(version, value):
            raise MetadataConflict("somebody else was faster")
        written = Versioned(version, value)
        self.life.plane.membership.note_partition(self.partition, written)
        return written

    async def _seal(self, segment: SegmentMeta) -> None:
        needed = len(segment.nodeset) - segment.replication + 1
        sealed: set[NodeId] = set()
        while len(sealed) < needed:
            for member in segment.nodeset:
                if self.life.node.reaches(member.node):
                    await asyncio.sleep(self.life.node.world.dice.random() * 0.005)
                    world = self.life.node.world
                    world.log.sealed[member.node].add((self.partition, segment.index))
                    sealed.add(member.node)
            if len(sealed) < needed:
                await asyncio.sleep(SEAL_RETRY_S)

    def announce(self, epoch: int) -> None:
        self.is_draining = False
        self.stalled_since = None
        name = f"writing.{self.partition}"
        self.writing = self.life.supervisor.start(name, self._keep_writing(epoch))

    async def _keep_writing(self, epoch: int) -> None:
        """One record after another; the first is the announcement."""
        while True:
            await asyncio.sleep(WRITE_EVERY_S * self.life.node.world.dice.random())
            outcome = self._try_commit(epoch)
            if outcome == "sealed":
                self.life.plane.leaderships.on_log_stopped(self.partition, "sealed")
                return
            if outcome == "committed":
                self.stalled_since = None
                self.life.plane.leaderships.on_announced(self.partition, epoch)
            elif self.stalled_since is None:
                self.stalled_since = asyncio.get_running_loop().time()

    def _try_commit(self, epoch: int) -> str:
        assert self.segment is not None
        log, key = self.life.node.world.log, (self.partition, self.segment.index)
        reached = [m.node for m in self.segment.nodeset if self.life.node.reaches(m.node)]
        sealed = [node for node in reached if key in log.sealed[node]]
        if len(sealed) > len(self.segment.nodeset) - self.segment.replication:
            return "sealed"
        if len(reached) - len(sealed) < self.segment.replication:
            return "stalled"
        log.commit(self.partition, epoch)
        return "committed"

    def lead(self, epoch: int) -> None:
        assert not self.is_leading
        self.is_leading = True
        self.life.node.world.log.lead(self.partition, epoch, self.life.joined.peer().writer)

    def pause(self, is_paused: bool) -> None:
        self.life.node.world.happened["paused" if is_paused else "resumed"] += 1

    async def drain(self) -> None:
        self.is_draining = True
        assert self.segment is not None
        if self.writing is not None:
            self.writing.cancel()
        await self._seal(self.segment)

    def step_down(self, epoch: int, reason: str) -> None:
        self.is_leading = False
        self.life.node.world.happened[f"ended: {reason}"] += 1
        if self.writing is not None and self.writing is not asyncio.current_task():
            self.writing.cancel()

    def positions(self) -> Positions:
        now = asyncio.get_running_loop().time()
        stalled = now - self.stalled_since if self.stalled_since is not None else 0.0
        return Positions(100, 100, round(stalled * 1000))


@dataclass
class Life:
    """One run of a node's process."""

    node: "SimNode"
    joined: Joined
    store: NodeRegisters
    fabric: Fabric
    wires: Wires
    supervisor: Supervisor
    plane: ControlPlane
    replicas: list[FakeReplica]
    is_over: bool = False

    def if_alive(self, callback: Callable[[], None]) -> None:
        if not self.is_over:
            callback()

    async def end(self, *, expects_failure: bool = False) -> None:
        self.is_over = True
        await self.plane.abandon()
        await self.fabric.aclose()
        await self.supervisor.aclose()
        if self.supervisor.failure is not None and not expects_failure:
            raise self.supervisor.failure


class SimNode:
    """A machine: its disk survives lives."""

    def __init__(self, world: "World", number: int) -> None:
        self.world = world
        self.name = f"n{number}"
        self.host = f"node-{number}:5122"
        self.disk = SimDisk(random.Random(world.dice.getrandbits(64)))
        self.life: Life | None = None
        self.gate = Gate()
        self.is_cut_from_metadata = False

    def reaches(self, node: NodeId) -> bool:
        """Whether a request to a node's log server comes back."""
        other = self.world.by_id(node)
        if other is None or other.life is None or other.is_paused or self.is_paused:
            return False
        if other is self:
            return True
        cut = self.world.network.is_cut
        return not cut(self.host, other.host) and not cut(other.host, self.host)

    async def start(self) -> None:
        world = self.world
        profile = NodeProfile(
            name=self.name,
            addresses=Addresses(self.host),
            zone="",
            roles=tuple(NodeRole),
            software="1",
            incarnation=world.dice.getrandbits(62),
            fresh_uuid=f"{world.dice.getrandbits(128):032x}",
        )

        store = NodeRegisters(self)
        supervisor = StallableSupervisor(self.gate)
        entropy = SimEntropy(random.Random(world.dice.getrandbits(64)))
        wires = world.make_wires(self.host)

        def make_fabric(me: Peer) -> Fabric:
            return Fabric(
                me=me,
                cluster=ClusterIdentity(name="sim", fingerprint=b"\x0f" * 16, secret=None),
                wires=wires,
                entropy=entropy,
                supervisor=supervisor,
            )

        guest = make_fabric(Peer(GUEST, 0, profile.incarnation, b""))
        joined = await join(store, self.disk, "sim", profile, probing(guest), entropy)
        await guest.aclose()
        wires = world.make_wires(self.host)
        fabric = make_fabric(joined.peer())
        replicas: list[FakeReplica] = []

        def open_replica(partition: int) -> FakeReplica:
            assert self.life is not None
            replicas.append(FakeReplica(self.life, partition))
            return replicas[-1]

        ports = ControlPorts(
            store=store,
            transport=fabric,
            clock=SimClock(world.loop),
            entropy=entropy,
            supervisor=supervisor,
            open_replica=open_replica,
        )
        plane = ControlPlane(joined, ports)
        self.life = Life(self, joined, store, fabric, wires, supervisor, plane, replicas)
        await fabric.listen()
        await plane.start()

    def has_failed(self, code: str) -> bool:
        """Whether the process wants to end because of such an error."""
        failure = self.life.supervisor.failure if self.life is not None else None
        return isinstance(failure, PerdureError) and failure.code == code

    async def kill(self, *, loses_power: bool = False, expects_failure: bool = False) -> None:
        life, self.life = self.life, None
        assert life is not None
        self.gate.open()
        if isinstance(life.wires, SimWires):
            if loses_power:
                life.wires.lose_power()
            else:
                life.wires.kill()
        await life.end(expects_failure=expects_failure)

    async def stop(self) -> None:
        life = self.life
        assert life is not None
        await life.plane.stop(20.0)
        self.life = None
        await life.end()

    @property
    def is_paused(self) -> bool:
        return self.gate.is_closed


class World:
    """A cluster of ``size`` nodes and ``partitions`` partitions."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, seed: int, size: int = 3, partitions: int = 6
    ) -> None:
        self.loop = loop
        self.dice = random.Random(seed)
        self.registers = FlakyRegisters(self.dice)
        self.network = SimNetwork(self.dice, NetworkFaults())
        self.make_wires: Callable[[str], Wires] = self.network.wires
        self.log = FakeLog()
        self.happened = Counter[str]()
        self.partitions = partitions
        self.nodes = [SimNode(self, number) for number in range(1, size + 1)]

    async def begin(self) -> None:
        cluster = ClusterMeta(1, "sim", FINGERPRINT, self.partitions, REPLICATION, 3)
        await provision(self.registers, cluster)
        for node in self.nodes:
            await node.start()

    def by_id(self, node: NodeId) -> SimNode | None:
        for each in self.nodes:
            if each.life is not None and each.life.joined.node == node:
                return each
        return None

    def plane(self) -> ControlPlane:
        """The control plane of some living node."""
        return next(node.life.plane for node in self.nodes if node.life is not None)

    def membership(self) -> Membership:
        return self.plane().membership

    def leaders(self) -> dict[int, list[str]]:
        """Who leads what at this moment, by their own word."""
        found: dict[int, list[str]] = {partition: [] for partition in range(self.partitions)}
        for node in self.nodes:
            if node.life is not None:
                for partition, _ in node.life.plane.leaderships.led():
                    found[partition].append(node.name)
        return found

    def is_led(self) -> bool:
        return all(len(names) == 1 for names in self.leaders().values())

    def epochs(self) -> int:
        return sum(len(epochs) for epochs in self.log.led_epochs.values())

    def busiest_has_more_by(self) -> int:
        led = Counter(names[0] for names in self.leaders().values() if names)
        counts = [led[node.name] for node in self.nodes if node.life is not None]
        return max(counts) - min(counts)

    def states(self) -> list[dict[int, ReplicaState]]:
        return [
            {p: node.life.plane.leaderships.state(p) for p in range(self.partitions)}
            for node in self.nodes
            if node.life is not None
        ]

    async def until(self, condition: Callable[[], bool], seconds: float) -> float:
        """Virtual seconds until the condition held."""
        started = self.loop.time()
        while not condition():
            took = self.loop.time() - started
            assert took < seconds, f"not within {seconds} s: {self.leaders()} {self.states()}"
            await asyncio.sleep(0.05)
        return self.loop.time() - started

    async def end(self) -> None:
        for node in self.nodes:
            if node.life is not None:
                await node.kill()

    def heal(self) -> None:
        self.network.heal()
        self.network.faults.reset_chance = 0.0
        self.registers.unknown_chance = self.registers.lost_hint_chance = 0.0
        for node in self.nodes:
            node.is_cut_from_metadata = False
            node.gate.open()
