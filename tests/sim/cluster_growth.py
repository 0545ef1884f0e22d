"""Whole clusters that change: nodes join and leave, replicas are named, dropped and named again.

Three of five machines are there from the beginning. An operator, beside the controllers and often
against them, has the others join, drains nodes and takes that back, and names other replicas; some
are dropped while they still get their tables, and named once more a moment later, in the same
process. Logs are trimmed as soon as all replicas have in their tables what they say, so whoever
comes late needs tables from another node, and gets them in pieces of two rows.
"""

# pyright: reportPrivateUsage=false

import asyncio
import random
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import replace
from unittest.mock import patch

import msgspec
from tests.sim.cluster_machine import ClusterLife
from tests.sim.cluster_monitor import Monitor
from tests.sim.cluster_world import ClusterWorld, Shape
from tests.sim.loop import SimLoop

from perdure.cluster.core.chain import PartitionMeta, Replicas
from perdure.cluster.core.leadership import ReplicaState
from perdure.cluster.core.membership import (
    NODES_PREFIX,
    NodeMeta,
    drain,
    node_key,
    undrain,
)
from perdure.cluster.core.replica import ReplicaCore
from perdure.cluster.core.types import NodeId, SegmentKey
from perdure.cluster.membership import decode_nodes
from perdure.cluster.registers import edit_register
from perdure.cluster.takeover import partition_key
from perdure.core.errors import MembershipRefused, MetadataConflict, MetadataUnavailable
from perdure.core.limits_snapshots import TRIM_NAMED_MS
from perdure.node.partition import table_copy
from perdure.node.partition.cluster_host import ClusterPorts
from perdure.node.partition.trimmer import WITHOUT_SNAPSHOTS

KINDS = ("kill", "kill", "power", "stop", "freeze", "slow", "reset", "isolate", "unknown")

_SHAPE = Shape(nodes=5, replication=2, replicas=3)
_FIRST_MACHINES = 3
_MORE = ("again",) * 4
_DEEDS_MIN = 15
_PIECE_ROWS = 2
_SLOW_MS = 60.0


class GrowthMonitor(Monitor):
    """Knows that a replica may be named after it was decided how far a log is trimmed."""

    def __init__(self, world: "GrowthWorld") -> None:
        super().__init__()
        self._world = world

    def on_trimmed(self, core: ReplicaCore, key: SegmentKey, up_to: int) -> None:
        segment, meta = self._chained.get(key), self._metas.get(key[0])
        if segment is None or meta is None:
            return
        last = segment.base_lsn + up_to - 1
        names = [self._world.name_of(node) for node in meta.replicas.named]
        durable = [self._durable.get((name, key[0]), 0) for name in names]
        if sum(lsn >= last for lsn in durable) < self._world.shape.replication:
            self._find(f"I-24: partition {key[0]} is trimmed up to {last}, tables have {durable}")


class GrowthWorld(ClusterWorld):
    """One seed."""

    def __init__(self, loop: SimLoop, seed: int) -> None:
        super().__init__(loop, seed, _SHAPE, KINDS, faults=6)
        self.luck = random.Random(f"growth {seed}")
        self._trim_delay_ms = self.luck.choice((200, 1_000, TRIM_NAMED_MS))
        self._deeds = 0
        self._operator: asyncio.Task[None] | None = None

    def equip(self, life: ClusterLife, ports: ClusterPorts) -> ClusterPorts:
        return replace(ports, trim=replace(WITHOUT_SNAPSHOTS, delay_ms=self._trim_delay_ms))

    async def start(self) -> None:
        await self.make()
        for machine in self.machines[:_FIRST_MACHINES]:
            await machine.start()
        self._operator = asyncio.create_task(self._operate())

    async def run(self) -> None:
        """Everything must come to its end here too."""
        with small_pieces():
            try:
                await super().run()
            finally:
                if self._operator is not None:
                    self._operator.cancel()

    def make_monitor(self) -> Monitor:
        return GrowthMonitor(self)

    def name_of(self, node: NodeId) -> str:
        """Of the machine: ids are given in the order in which they join."""
        found = self.registers.found[node_key(node)]
        return msgspec.msgpack.decode(found.value, type=NodeMeta).name

    async def _heal(self) -> None:
        await self.until(lambda: self._deeds >= _DEEDS_MIN, "the operator has done something")
        if self._operator is not None:
            self._operator.cancel()
            with suppress(asyncio.CancelledError):
                await self._operator
        for machine in self.machines:
            async with machine.lock:
                if machine.life is None:
                    await machine.start()
        await super()._heal()

    # --- The operator ---------------------------------------------------------------------------

    async def _operate(self) -> None:
        while True:
            await asyncio.sleep(self.luck.choice((0.1, 0.5, 2.0)))
            what = self.luck.choice(("join", "drain", "undrain", "undrain", "name", *_MORE))
            self._deeds += 1
            with suppress(MembershipRefused, MetadataConflict, MetadataUnavailable):
                match what:
                    case "join":
                        await self._join()
                    case "drain" | "undrain":
                        await self._drain(what)
                    case "name":
                        await self._name(self.luck.randrange(3))
                    case _:
                        await self._name_again(self.luck.randrange(3))

    async def _join(self) -> None:
        absent = [machine for machine in self.machines if machine.life is None]
        if not absent:
            return
        machine = self.luck.choice(absent)
        async with machine.lock:
            if machine.life is None:
                await machine.start()
                self.happened["joined"] += 1

    async def _drain(self, what: str) -> None:
        nodes = decode_nodes(await self.registers.scan(NODES_PREFIX))
        node = self.luck.choice(sorted(nodes))

        def change(known: NodeMeta | None) -> NodeMeta | None:
            if known is None:
                return None
            if what == "undrain":
                return undrain(known)
            return drain({**nodes, node: known}, node, self.shape.replication)

        await edit_register(self.registers, node_key(node), NodeMeta, change)
        self.happened[what] += 1

    async def _name(self, partition: int) -> ClusterLife | None:
        """Another node is to have the tables, instead of one that doesn't lead."""
        sets, leader = self._sets(partition)
        others = [life for life in self.lives() if _node(life) not in sets.named]
        spare = [node for node in sets.current if node != leader]
        if sets.following is not None or not others or len(spare) < self.shape.replication:
            return None
        others.sort(key=lambda life: life.host.led[partition].processor.store.applied_lsn)
        life = others[0] if self.luck.random() < 0.7 else self.luck.choice(others)
        gone = self.luck.choice(spare)
        following = (*(node for node in sets.current if node != gone), _node(life))
        await self._edit(partition, sets, Replicas(sets.current, following))
        self.happened["named"] += 1
        return life

    async def _name_again(self, partition: int) -> None:
        """Whoever gets its tables is dropped before it has them, and named again."""
        luck = self.luck
        life = await self._name(partition)
        if life is None:
            return
        life.delay(luck.choice((2.0, _SLOW_MS)))
        for _ in range(luck.randint(0, 400)):
            if life.host.plane.leaderships.state(partition) is ReplicaState.BOOTSTRAPPING:
                break
            await asyncio.sleep(0.005)
        await asyncio.sleep(luck.choice((0.0, 0.01, 0.05, 0.2, 1.0)))
        sets, _ = self._sets(partition)
        if sets.following is not None:
            state = life.host.plane.leaderships.state(partition)
            await self._edit(partition, sets, Replicas(sets.current, None))
            self.happened[f"dropped while {state.value}"] += 1
            await asyncio.sleep(luck.choice((0.0, 0.0, 0.01, 0.1, 1.0)))
            again, _ = self._sets(partition)
            if again.following is None and again.current == sets.current:
                await self._edit(partition, again, Replicas(again.current, sets.following))
        life.delay(2.0)

    def _sets(self, partition: int) -> tuple[Replicas, NodeId | None]:
        found = self.registers.found.get(partition_key(partition))
        if found is None:
            return Replicas(()), None
        meta = msgspec.msgpack.decode(found.value, type=PartitionMeta)
        return meta.replicas, meta.chain[-1].writer.node if meta.chain else None

    async def _edit(self, partition: int, seen: Replicas, wanted: Replicas) -> None:
        def change(known: PartitionMeta | None) -> PartitionMeta | None:
            if known is None or known.replicas != seen:
                return None
            return msgspec.structs.replace(known, replicas=wanted)

        await edit_register(self.registers, partition_key(partition), PartitionMeta, change)


@contextmanager
def small_pieces() -> Generator[None]:
    """Have tables copied a few rows at a time."""
    with patch.object(table_copy, "TABLES_PIECE_ROWS", _PIECE_ROWS):
        yield


def _node(life: ClusterLife) -> NodeId:
    return NodeId(life.host.identity.node_id)
