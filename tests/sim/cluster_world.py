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
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial

import msgspec
from tests.sim.client_link import Trap
from tests.sim.cluster_clients import Outside
from tests.sim.cluster_faults import PLAIN, draw_plan, seconds_of
from tests.sim.cluster_machine import ClusterLife, Door, Machine
from tests.sim.cluster_monitor import Monitor, watching
from tests.sim.cluster_registers import WatchedRegisters
from tests.sim.cluster_suffering import Suffering
from tests.sim.loop import SimLoop
from tests.sim.network import SimNetwork
from tests.sim.node_world import KEYS, PARTITIONS, NodeWorld, Violation, has_work

from perdure.cluster.core.chain import PartitionMeta
from perdure.cluster.core.leadership import ReplicaState
from perdure.cluster.core.membership import CLUSTER_FORMAT_VERSION, ClusterMeta
from perdure.cluster.membership import provision
from perdure.cluster.takeover import partition_key
from perdure.core.hashing import key_partition_key
from perdure.core.ids import partition_of
from perdure.node.partition.cluster_host import ClusterPorts
from perdure.node.partition.gateway import LedPartition
from perdure.storage.keys import object_group, state_suffix

FINGERPRINT = "cd" * 16
HEAL_SECONDS = 300.0

ACTING = (ReplicaState.LEADER, ReplicaState.DRAINING)

_FOR_EVER = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How large a cluster is: nodes, copies of a record, replicas of a partition's tables."""

    nodes: int = 3
    replication: int = 2
    replicas: int = 3

    def __str__(self) -> str:
        return f"{self.nodes} nodes, {self.replication} copies, {self.replicas} replicas"


@dataclass(frozen=True, kw_only=True)
class Less:
    """What to leave out of what a seed draws, by number."""

    faults: frozenset[int] = frozenset()
    requests: frozenset[int] = frozenset()


class StandsStill(Violation):
    """Nothing is lost or repeated, but the cluster doesn't go on."""


THREE = Shape()
FIVE = Shape(nodes=5, replication=3, replicas=5)
SPREAD = Shape(nodes=5, replication=2, replicas=3)


class ClusterWorld:
    """The machines, the service and the clients of one seed."""

    def __init__(
        self,
        loop: SimLoop,
        seed: int,
        shape: Shape = THREE,
        kinds: tuple[str, ...] = PLAIN,
        faults: int = 8,
        less: Less | None = None,
    ) -> None:
        self.loop = loop
        self.fingerprint = FINGERPRINT
        self.shape = shape
        self.context = copy_context()
        less = less or Less()
        self.dice = random.Random(seed)
        plan = draw_plan(self.dice, shape.nodes, kinds, faults)
        self.plan = tuple(at for number, at in enumerate(plan) if number not in less.faults)
        self.work = NodeWorld(self.dice.getrandbits(64))
        self.work.leave_out(less.requests)
        self.is_flaky = self.dice.random() < 0.5
        self.network = SimNetwork(random.Random(self.dice.getrandbits(64)))
        self.has_links = "zombie" in kinds
        self.trap = Trap(loop)
        self.hurry: Callable[[], None] = _nothing
        self.monitor = self.make_monitor()
        self.registers = WatchedRegisters(random.Random(self.dice.getrandbits(64)), self.monitor)
        self.machines = [Machine(self, number + 1) for number in range(shape.nodes)]
        self.happened = Counter[str]()

    def make_monitor(self) -> Monitor:
        """Who looks on."""
        return Monitor()

    def equip(self, life: ClusterLife, ports: ClusterPorts) -> ClusterPorts:
        """What a process has besides; called within it."""
        return ports

    def on_opened(self, life: ClusterLife) -> None:
        """A process takes part; called within it."""

    async def start(self) -> None:
        """Make the cluster, and start all machines."""
        await self.make()
        for machine in self.machines:
            await machine.start()

    async def make(self) -> None:
        """Put the cluster's registers there."""
        wanted = ClusterMeta(
            format=CLUSTER_FORMAT_VERSION,
            name="sim",
            fingerprint=self.fingerprint,
            partition_count=PARTITIONS,
            replication=self.shape.replication,
            partition_replicas=self.shape.replicas,
        )
        await provision(self.registers, wanted)

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

    async def fill_the_tables_of_a_leader(self) -> None:
        """Who leads most can't write its tables any more, while its log has room for long: the
        others must lead it all, and answer everything."""
        with watching(self.monitor):
            await self.start()
            await self.until(self._has_leaders, "every partition has one leader")
            victim = max(self.machines, key=_led_by)
            for tables in victim.tables:
                tables.refusals = _FOR_EVER
            outside = Outside(self.dice, self.work, self.happened, self.doors, 5.0, self.monitor)
            clients = [asyncio.ensure_future(outside.insist(item)) for item in self.work.requests]
            helper = asyncio.ensure_future(outside.complete_awakeables())
            try:
                await self.until(
                    lambda: all(client.done() for client in clients), "all is answered"
                )
                await self.until(lambda: not _led_by(victim), "leaders have left the full disk")
            finally:
                for task in (*clients, helper):
                    task.cancel()
                await asyncio.gather(*clients, helper, return_exceptions=True)
            for life in self.lives():
                await life.machine.end("kill")

    async def run(self) -> None:
        """Live under faults, then heal: everything must come to its end."""
        with watching(self.monitor):
            await self._run()
        self.monitor.raise_found()

    async def _run(self) -> None:
        await self.start()
        self.registers.may_lie = True
        outside = Outside(
            self.dice,
            self.work,
            self.happened,
            self.doors,
            2.0 + seconds_of(self.plan),
            self.monitor,
        )
        self.hurry = outside.hurry
        clients = [asyncio.ensure_future(outside.insist(item)) for item in self.work.requests]
        helper = asyncio.ensure_future(outside.complete_awakeables())
        try:
            await Suffering(self).go_through(self.plan)
            await self._heal()
            await self.until(lambda: all(client.done() for client in clients), "all is answered")
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

    async def _heal(self) -> None:
        self.network.heal()
        self.registers.may_lie = False
        await self.until(self._has_leaders, "every partition has one leader")

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = self.loop.time() + HEAL_SECONDS
        while not condition():
            self.check_lives()
            if self.loop.time() > deadline:
                raise StandsStill(f"not after {HEAL_SECONDS} s: {what}; {self._standing()}")
            await asyncio.sleep(0.1)

    # --- What is seen ---------------------------------------------------------------------------

    def lives(self) -> list[ClusterLife]:
        lives = (machine.life for machine in self.machines)
        return [life for life in lives if life is not None and life.is_up]

    def doors(self) -> list[Door]:
        """Ways into the nodes that live."""
        return [Door(life) for life in self.lives()]

    def check_lives(self) -> None:
        """No partition was halted or broken, and nobody acts who doesn't lead (I-14)."""
        self.monitor.raise_found()
        if self.loop.failures:
            raise self.loop.failures[0]
        for life in self.lives():
            for led in life.host.led:
                partition = led.processor.partition
                state = life.host.plane.leaderships.state(partition)
                if led.processor.halted is not None:
                    raise led.processor.halted
                if state is ReplicaState.BROKEN:
                    raise StandsStill(f"partition {partition} is broken on {life.machine.name}")
                if led.leader.is_leading and state not in ACTING:
                    raise Violation(f"{life.machine.name} is {state} and leads {partition}")

    def _standing(self) -> str:
        open_requests = [item.command.id.hex() for item in self.work.requests if not item.result]
        leaders = [
            (life.machine.name, life.host.plane.leaderships.led(), has_work(life.host.led))
            for life in self.lives()
        ]
        heads = {
            number: {
                life.machine.name: life.host.led[number].processor.store.applied_lsn
                for life in self._holders(number)
            }
            for number in range(PARTITIONS)
        }
        return f"open {open_requests}, leaders {leaders}, applied {heads}"

    def _has_leaders(self) -> bool:
        leaders = [
            sum(
                life.host.plane.leaderships.state(partition) is ReplicaState.LEADER
                for life in self.lives()
            )
            for partition in range(PARTITIONS)
        ]
        return leaders == [1] * PARTITIONS

    def _holders(self, partition: int) -> list[ClusterLife]:
        """Living nodes that the register names as the partition's replicas."""
        value = self.registers.found[partition_key(partition)].value
        named = msgspec.msgpack.decode(value, type=PartitionMeta).replicas.named
        return [life for life in self.lives() if life.host.identity.node_id in named]

    def _is_settled(self) -> bool:
        expected = self.work.expected_counts()
        counts = Counter[str]()
        for partition in range(PARTITIONS):
            replicas = [life.host.led[partition] for life in self._holders(partition)]
            if has_work(replicas):
                return False
            if len({led.processor.store.applied_lsn for led in replicas}) != 1:
                return False
            for key in KEYS:
                if _partition_of_key(key) == partition:
                    counts[key] = _count(replicas[0], key)
        if any(counts[key] > expected[key] for key in KEYS):
            raise Violation(f"added too often: {counts}, expected {expected}")
        return counts == expected

    async def _check_tables(self) -> None:
        """All replicas hold the same, byte for byte."""
        for partition in range(PARTITIONS):
            await self.until(partial(self._are_flushed, partition), "all is in the tables")
            holders = self._holders(partition)
            contents = [life.machine.tables[partition].committed for life in holders]
            if any(other != contents[0] for other in contents):
                raise Violation(f"replicas of partition {partition} differ: {_diff(contents)}")

    def _are_flushed(self, partition: int) -> bool:
        """Whether all replicas have applied the same, and have all of it in their tables."""
        processors = [life.host.led[partition].processor for life in self._holders(partition)]
        for processor in processors:
            if not processor.is_flushed():
                processor.flush(_nothing)
        positions = {(each.store.applied_lsn, each.store.durable_lsn) for each in processors}
        return len(positions) == 1 and all(each.is_flushed() for each in processors)


def _count(led: LedPartition, key: str) -> int:
    entry = led.processor.store.state.get(object_group("Counter", key), state_suffix(b"n"))
    return int(entry.value) if entry is not None else 0


def _led_by(machine: Machine) -> int:
    return len(machine.life.host.plane.leaderships.led()) if machine.life is not None else 0


def _nothing() -> None:
    """Nobody waits."""


def _partition_of_key(key: str) -> int:
    return partition_of(key_partition_key(key), PARTITIONS)


def _diff(contents: list[dict[bytes, bytes]]) -> list[bytes]:
    keys = set[bytes]().union(*contents)
    return sorted(key for key in keys if len({content.get(key) for content in contents}) > 1)[:5]
