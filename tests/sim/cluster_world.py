"""A whole cluster in one process: nodes that die, lose their power, are cut off, and come back.

One seed is a few machines, each with its disk and tables, one network between them, registers, a
service that keeps running, and clients that ask any node that lives. Nodes run as in production
(node/partition/cluster_host.py) over simulated disk, network, threads, time and dice.

What must hold is what a single node promises (tests/sim/node_world.py): every acknowledged
invocation ends, once, with the result that its service gave; a recorded step is never executed
again and never comes back changed; each counter counts every add exactly once. And in the end the
tables of all replicas are the same, byte for byte.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from tests.cluster.flaky_registers import FlakyRegisters
from tests.sim.cluster_clients import Outside
from tests.sim.disk import SimDisk
from tests.sim.loop import SimLoop
from tests.sim.network import SimNetwork, SimWires
from tests.sim.node_world import (
    CAPACITY,
    KEYS,
    PARTITIONS,
    SIZES,
    NodeWorld,
    Violation,
    has_work,
)
from tests.sim.ports import SimClock, SimEntropy, SimEnv, SimOffload, SimTables
from tests.sim.registered import make_catalogue
from tests.sim.service import SimService

from perdure.cluster.core.handshake import ClusterIdentity
from perdure.cluster.core.leadership import ReplicaState
from perdure.cluster.core.membership import (
    CLUSTER_FORMAT_VERSION,
    Addresses,
    ClusterMeta,
    NodeMeta,
    NodeProfile,
    NodeRole,
    StorageState,
    node_key,
    resume,
)
from perdure.cluster.core.types import NodeId
from perdure.cluster.fabric import Fabric
from perdure.cluster.membership import join, provision
from perdure.cluster.registers import edit_register
from perdure.core.hashing import key_partition_key
from perdure.core.ids import partition_of
from perdure.core.tasks import Supervisor
from perdure.node.partition.cluster_host import ClusterHost, ClusterPorts, identity_of
from perdure.node.partition.ports import HostOptions, HostPorts
from perdure.node.partition.routing import RoutedGateway
from perdure.storage.keys import object_group, state_suffix

T = TypeVar("T")

FINGERPRINT = "cd" * 16
THREAD_MS = 2.0
HEAL_SECONDS = 300.0

ACTING = (ReplicaState.LEADER, ReplicaState.DRAINING)

FAULTS = ("kill", "kill", "power", "stop", "isolate", "one way", "unknown")
ROUGH_FAULTS = (*FAULTS, "wipe", "full", "slow", "clock")
DARK_FAULTS = (*FAULTS, "blackout", "blackout", "blackout", "blackout")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How large a cluster is: nodes, copies of a record, replicas of a partition's tables."""

    nodes: int = 3
    replication: int = 2
    replicas: int = 3


THREE = Shape()
FIVE = Shape(nodes=5, replication=3, replicas=5)


class Machine:
    """A node's disk and tables, which outlive its processes."""

    def __init__(self, world: "ClusterWorld", number: int) -> None:
        self.world = world
        self.name = f"node-{number}"
        self.host = f"node-{number}:5123"
        self.disk: SimDisk
        self.tables: list[SimTables]
        self.life: ClusterLife | None = None
        self.get_disk()

    def get_disk(self) -> None:
        """An empty one; what was on the one before is gone."""
        self.disk = SimDisk(random.Random(self.world.dice.getrandbits(64)), CAPACITY)
        self.tables = [SimTables(self.disk) for _ in range(PARTITIONS)]

    async def start(self) -> None:
        life = ClusterLife(self.world, self)
        self.life = life
        await life.boot()

    async def end(self, how: str) -> None:
        """``stop``: hand over first. ``kill``, ``power``: from one instant to the next."""
        life, self.life = self.life, None
        assert life is not None
        if how == "stop":
            await life.host.close()
        else:
            life.die(is_power_lost=how == "power")
            await life.host.abandon()
        await life.fabric.aclose()
        failure = life.supervisor.failure
        await life.supervisor.aclose()
        if failure is not None:
            raise failure


class ClusterLife:
    """One run of a node's process."""

    def __init__(self, world: "ClusterWorld", machine: Machine) -> None:
        self.world = world
        self.machine = machine
        self.supervisor = Supervisor()
        self.wires: SimWires = world.network.wires(machine.host)
        self.fabric: Fabric
        self.host: ClusterHost
        self.clock = SimClock(world.loop)
        self._threads: list[SimOffload] = []
        self.is_up = False

    async def boot(self) -> None:
        """Start as in production, up to the point where it takes part."""
        world, machine = self.world, self.machine
        dice = random.Random(world.dice.getrandbits(64))
        entropy, clock = SimEntropy(dice), self.clock
        profile = NodeProfile(
            name=machine.name,
            addresses=Addresses(fabric=machine.host),
            zone="",
            roles=tuple(NodeRole),
            software="sim",
            incarnation=entropy.bits(60),
            fresh_uuid=f"{entropy.bits(128):032x}",
        )
        joined = await join(world.registers, machine.disk, "sim", profile, _nobody)
        identity = identity_of(joined)
        self.fabric = Fabric(
            me=joined.peer(),
            cluster=ClusterIdentity(name="sim", fingerprint=identity.fingerprint, secret=None),
            wires=self.wires,
            entropy=entropy,
            supervisor=self.supervisor,
        )
        catalogue = make_catalogue()
        ports = HostPorts(
            disk=machine.disk,
            open_env=lambda partition: SimEnv(machine.tables[partition]),
            metadata=world.registers,
            clock=clock,
            entropy=entropy,
            log_thread=self._offload(dice),
            housekeeping_thread=self._offload(dice),
            storage_thread=self._offload(dice),
            caller=SimService(world.work.ledger, dice, clock, is_flaky=world.is_flaky),
            catalogue=lambda: catalogue,
            on_failure=self.supervisor.fail,
            wal_sizes=SIZES,
        )
        cluster = ClusterPorts(
            joined=joined,
            registers=world.registers,
            transport=self.fabric,
            listen=self.fabric.listen,
            supervisor=self.supervisor,
        )
        self.host = ClusterHost(identity, ports, HostOptions(slots=4, software="sim"), cluster)
        await self.host.open()
        self.is_up = True

    def die(self, *, is_power_lost: bool) -> None:
        """From this instant on nothing of this life reaches its disk or another node."""
        if is_power_lost:
            self.wires.lose_power()
            self.machine.disk.lose_power()
        else:
            self.wires.kill()
            self.machine.disk.kill()
        for thread in self._threads:
            thread.kill()

    def delay(self, delay_ms_max: float) -> None:
        """From now on the disk takes up to so long for whatever a thread asks of it."""
        for thread in self._threads:
            thread.delay_ms_max = delay_ms_max

    def _offload(self, dice: random.Random) -> SimOffload:
        thread = SimOffload(random.Random(dice.getrandbits(64)), delay_ms_max=THREAD_MS)
        self._threads.append(thread)
        return thread


class ClusterWorld:
    """The machines, the service and the clients of one seed."""

    def __init__(
        self,
        loop: SimLoop,
        seed: int,
        shape: Shape = THREE,
        kinds: tuple[str, ...] = FAULTS,
    ) -> None:
        self.loop = loop
        self.shape = shape
        self.kinds = kinds
        self.dice = random.Random(seed)
        self.work = NodeWorld(self.dice.getrandbits(64))
        self.is_flaky = self.dice.random() < 0.5
        self.network = SimNetwork(random.Random(self.dice.getrandbits(64)))
        self.registers = FlakyRegisters(random.Random(self.dice.getrandbits(64)))
        self.machines = [Machine(self, number + 1) for number in range(shape.nodes)]
        self.happened = Counter[str]()

    async def start(self) -> None:
        """Make the cluster, and start all machines."""
        wanted = ClusterMeta(
            format=CLUSTER_FORMAT_VERSION,
            name="sim",
            fingerprint=FINGERPRINT,
            partition_count=PARTITIONS,
            replication=self.shape.replication,
            partition_replicas=self.shape.replicas,
        )
        await provision(self.registers, wanted)
        for machine in self.machines:
            await machine.start()

    async def lose_a_leader_for_good(self) -> None:
        """Kill who leads most, as soon as everything is led: the others must lead it all."""
        await self.start()
        await self.until(self._has_leaders, "every partition has one leader")
        await asyncio.sleep(self.dice.choice((0.0, 0.1, 0.5, 2.0)))
        victim = max(self.machines, key=_led_by)
        await victim.end("kill")
        await self.until(self._has_leaders, "every partition has a leader among the others")
        for life in self.lives():
            await life.machine.end("stop")

    async def run(self, faults: int) -> None:
        """Live under faults, then heal: everything must come to its end."""
        await self.start()
        outside = Outside(self.dice, self.work, self.happened, self.gateways)
        clients = [asyncio.ensure_future(outside.insist(item)) for item in self.work.requests]
        helper = asyncio.ensure_future(outside.complete_awakeables())
        try:
            for _ in range(faults):
                await self._suffer()
                self._check_lives()
            await self._heal()
            async with asyncio.timeout(HEAL_SECONDS):
                await asyncio.gather(*clients)
                await self.until(self._is_settled, "everything is done everywhere")
        finally:
            for task in (*clients, helper):
                task.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
            with suppress(asyncio.CancelledError):
                await helper
        await self._check_tables()
        for machine in self.machines:
            await machine.end("stop")
        for request in self.work.requests:
            self.work.check(request)

    # --- Faults ---------------------------------------------------------------------------------

    async def _suffer(self) -> None:
        dice = self.dice
        await asyncio.sleep(dice.choice((0.05, 0.5, 4.0)))
        machine = dice.choice(self.machines)
        what = dice.choice(self.kinds)
        if what == "wipe" and self.happened["wipe"]:
            what = "power"  # no record survives the loss of all disks that it is on
        self.happened[what] += 1
        if what in ("isolate", "one way"):
            if what == "isolate":
                self.network.isolate(machine.host)
            else:
                other = dice.choice([other for other in self.machines if other is not machine])
                self.network.cut(machine.host, other.host)
            await asyncio.sleep(dice.choice((0.5, 6.0, 25.0)))
            self.network.heal()
        elif what == "unknown":
            self.registers.unknown_chance = 0.3
            await asyncio.sleep(3.0)
            self.registers.unknown_chance = 0.0
        elif what in ("full", "slow", "clock"):
            await self._trouble(machine, what)
        elif what == "wipe":
            await self._wipe(machine)
        elif what == "blackout":
            await asyncio.gather(*(machine.end("power") for machine in self.machines))
            await asyncio.gather(*(machine.start() for machine in self.machines))
        else:
            await machine.end(what)
            await asyncio.sleep(dice.choice((0.05, 1.0, 15.0)))
            await machine.start()

    async def _trouble(self, machine: Machine, what: str) -> None:
        """A disk without room or speed for a while, a wall clock that is set."""
        life, disk = machine.life, machine.disk
        assert life is not None
        if what == "clock":
            life.clock.offset_ms += self.dice.choice((-30_000, -500, 500, 30_000))
            return
        if what == "full":
            disk.capacity -= disk.free_bytes()
        else:
            life.delay(self.dice.choice((50.0, 1_000.0)))
            disk.on_sync = partial(self._spend, life)
        await asyncio.sleep(self.dice.choice((0.5, 8.0)))
        disk.capacity = CAPACITY
        life.delay(THREAD_MS)
        disk.on_sync = _at_once

    def _spend(self, life: ClusterLife) -> None:
        life.clock.spent += self.dice.random() * 0.01

    async def _wipe(self, machine: Machine) -> None:
        """A node comes back on an empty disk; later an operator lets it store records again."""
        assert machine.life is not None
        node = machine.life.host.plane.detector.me.node
        await machine.end("power")
        machine.get_disk()
        await asyncio.sleep(self.dice.choice((0.05, 15.0)))
        await machine.start()
        await asyncio.sleep(self.dice.choice((0.5, 30.0)))
        await edit_register(self.registers, node_key(node), NodeMeta, _resumed)
        await machine.end("stop")
        await machine.start()

    async def _heal(self) -> None:
        self.network.heal()
        self.registers.unknown_chance = 0.0
        await self.until(self._has_leaders, "every partition has one leader")

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = self.loop.time() + HEAL_SECONDS
        while not condition():
            self._check_lives()
            if self.loop.time() > deadline:
                raise Violation(f"not after {HEAL_SECONDS} s: {what}")
            await asyncio.sleep(0.1)

    # --- What is seen ---------------------------------------------------------------------------

    def lives(self) -> list[ClusterLife]:
        lives = (machine.life for machine in self.machines)
        return [life for life in lives if life is not None and life.is_up]

    def gateways(self) -> list[RoutedGateway]:
        """Doors of the nodes that live."""
        return [life.host.gateway for life in self.lives()]

    def _check_lives(self) -> None:
        """No partition was halted or broken, and nobody acts who doesn't lead (I-14)."""
        for life in self.lives():
            for led in life.host.led:
                partition = led.processor.partition
                state = life.host.plane.leaderships.state(partition)
                if led.processor.halted is not None:
                    raise led.processor.halted
                if state is ReplicaState.BROKEN:
                    raise Violation(f"partition {partition} is broken on {life.machine.name}")
                if led.leader.is_leading and state not in ACTING:
                    raise Violation(f"{life.machine.name} is {state} and leads {partition}")

    def _has_leaders(self) -> bool:
        leaders = [
            sum(
                life.host.plane.leaderships.state(partition) is ReplicaState.LEADER
                for life in self.lives()
            )
            for partition in range(PARTITIONS)
        ]
        return leaders == [1] * PARTITIONS

    def _is_settled(self) -> bool:
        expected = self.work.expected_counts()
        for life in self.lives():
            counts = Counter[str]()
            for key in KEYS:
                store = life.host.led[_partition_of_key(key)].processor.store
                entry = store.state.get(object_group("Counter", key), state_suffix(b"n"))
                if entry is not None:
                    counts[key] = int(entry.value)
            if any(counts[key] > expected[key] for key in KEYS):
                raise Violation(f"added too often: {counts}, expected {expected}")
            if counts != expected or has_work(life.host.led):
                return False
        heads = {
            tuple(led.processor.store.applied_lsn for led in life.host.led) for life in self.lives()
        }
        return len(heads) == 1

    async def _check_tables(self) -> None:
        """All replicas hold the same, byte for byte."""
        for life in self.lives():
            for led in life.host.led:
                flushed = asyncio.Event()
                led.processor.flush(flushed.set)
                await flushed.wait()
        for number in range(PARTITIONS):
            contents = [machine.tables[number].committed for machine in self.machines]
            for other in contents[1:]:
                if other != contents[0]:
                    raise Violation(f"replicas of partition {number} differ: {_diff(contents)}")


def _led_by(machine: Machine) -> int:
    return len(machine.life.host.plane.leaderships.led()) if machine.life is not None else 0


def _resumed(known: NodeMeta | None) -> NodeMeta | None:
    if known is None or known.storage is not StorageState.DATA_LOSS:
        return None
    return resume(known)


def _at_once() -> None:
    """A sync takes no time."""


def _partition_of_key(key: str) -> int:
    return partition_of(key_partition_key(key), PARTITIONS)


def _diff(contents: list[dict[bytes, bytes]]) -> list[bytes]:
    keys = set[bytes]().union(*contents)
    return sorted(key for key in keys if len({content.get(key) for content in contents}) > 1)[:5]


async def _nobody(node: NodeId, value: NodeMeta) -> bool:
    return False
