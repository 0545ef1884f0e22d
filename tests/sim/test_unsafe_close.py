"""Two of three disks of a log are lost for good, with records that nobody else has: an operator
closes it with what is left, the cluster goes on, and who comes back from before is turned away."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import msgspec
import pytest
from tests.sim.cluster_machine import ClusterLife, Machine
from tests.sim.cluster_world import HEAL_SECONDS, ClusterWorld, Shape
from tests.sim.loop import SimLoop, run
from tests.sim.node_world import KEYS, PARTITIONS

from perdure.cluster.core import chain
from perdure.cluster.core.chain import PartitionMeta
from perdure.cluster.core.leadership import ReplicaState
from perdure.cluster.core.membership import mark_lost
from perdure.cluster.core.types import NodeId
from perdure.cluster.core.unsafe_close import Examination
from perdure.cluster.takeover import partition_key
from perdure.core.errors import PerdureError
from perdure.core.hashing import key_partition_key
from perdure.core.ids import make_invocation_id, partition_of
from perdure.core.loss_errors import HistoryForsaken, UnsafeCloseRefused
from perdure.engine.actions import Accepted, Outcome
from perdure.engine.commands import Invoke
from perdure.engine.notifications import input_entry
from perdure.node.partition.processor import Processor
from perdure.node.problems import Problem, problems
from perdure.node.standing import ClusterStanding, standing
from perdure.node.unsafe_desk import UnsafeDesk
from perdure.storage.tables.invocations import HandlerKind, Source, SourceKind, Target

T = TypeVar("T")

WIDE = Shape(nodes=5, replication=2, replicas=5)
KEY = KEYS[0]
PARTITION = partition_of(key_partition_key(KEY), PARTITIONS)


class LossWorld(ClusterWorld):
    """Registers are honest; the log isn't, once it was closed unsafely."""

    def __init__(self, loop: SimLoop, seed: int) -> None:
        super().__init__(loop, seed, WIDE, faults=0)
        self.is_flaky = False

    async def eventually(self, condition: Callable[[], object]) -> None:
        """As ``until``, though partitions may be broken."""
        deadline = self.loop.time() + HEAL_SECONDS
        while not condition():
            assert self.loop.time() < deadline, self._standing()
            await asyncio.sleep(0.1)

    def meta(self, partition: int = PARTITION) -> PartitionMeta:
        value = self.registers.found[partition_key(partition)].value
        return msgspec.msgpack.decode(value, type=PartitionMeta)

    def is_led(self) -> bool:
        return self._has_leaders()

    def is_wide(self) -> bool:
        """Every log is on three nodes, and every node has all tables."""
        metas = [self.meta(partition) for partition in range(PARTITIONS)]
        return all(
            (opened := chain.open_segment(meta)) is not None
            and len(opened.nodeset) == 3
            and len(meta.replicas.current) == 5
            for meta in metas
        )

    def machine(self, node: NodeId) -> Machine:
        lives = ((machine, machine.life) for machine in self.machines)
        return next(m for m, life in lives if life and life.host.identity.node_id == node)

    async def add(self, life: ClusterLife, number: int) -> Outcome | PerdureError:
        """Ask a node for an invocation; returns when it is accepted, or not."""
        key = key_partition_key(KEY)
        command = Invoke(
            id=make_invocation_id(key, number),
            target=Target("Counter", "add", KEY, HandlerKind.EXCLUSIVE),
            source=Source(SourceKind.INGRESS),
            sink=None,
            execute_at_ms=0,
            idempotency_key=None,
            completion_retention_ms=10_000_000,
            journal_retention_ms=0,
            input=input_entry([], b"[]"),
        )
        told: asyncio.Future[Outcome | PerdureError] = self.loop.create_future()

        def ask() -> None:
            try:
                life.host.gateway.propose(command, key, told.set_result, told.set_result)
            except PerdureError as failure:
                told.set_result(failure)

        self.loop.call_soon(ask, context=life.context.copy())
        return await told

    async def add_somehow(self, number: int) -> None:
        """Ask until it is accepted."""
        for _ in range(1_000):
            if isinstance(await self.add(self.lives()[0], number), Accepted):
                return
            await asyncio.sleep(0.3)
        raise AssertionError(f"{number} is never accepted: {self._standing()}")

    async def within(self, life: ClusterLife, work: Coroutine[Any, Any, T]) -> T:
        """Do it as this process."""
        return await self.loop.create_task(work, context=life.context.copy())


def _seen(life: ClusterLife) -> ClusterStanding:
    return standing(life.host.plane, {}, life.host.waiting())


def _said(life: ClusterLife, words: str) -> list[Problem]:
    return [problem for problem in problems(_seen(life)) if words in problem.what]


async def _examine(world: LossWorld, life: ClusterLife, partition: int) -> Examination:
    part = _seen(life).partitions[partition]
    tables = {item.node: item.applied_lsn for item in part.replicas if item.role != "gone"}
    desk = UnsafeDesk(life.host.log_server, life.fabric, life.clock)
    nodes = life.host.plane.membership.nodes
    return await world.within(life, desk.examine(partition, world.meta(partition), nodes, tables))


async def _allow(world: LossWorld, life: ClusterLife, partition: int, found: Examination) -> None:
    desk = UnsafeDesk(life.host.log_server, life.fabric, life.clock)
    await world.within(life, desk.allow(life.host.plane.membership, partition, found, "root@sim"))


def _has_applied(processor: Processor, lsn: int) -> bool:
    return processor.store.applied_lsn >= lsn


async def _lose_two(world: LossWorld) -> tuple[list[Machine], ClusterLife, int]:
    """Two machines commit a record that the others never hear of, and burn down. Returns them, a
    node that is left, and how far they had applied."""
    opened = chain.open_segment(world.meta())
    assert opened is not None
    writer = opened.writer.node
    other = next(member.node for member in opened.nodeset if member.node != writer)
    burning = [world.machine(writer), world.machine(other)]
    for one in burning:
        for far in world.machines:
            if far not in burning:
                world.network.cut(one.host, far.host)
                world.network.cut(far.host, one.host)
    life = burning[0].life
    assert life is not None
    assert isinstance(await world.add(life, 2), Accepted)
    store = life.host.led[PARTITION].processor.store
    had = store.applied_lsn
    flushed: list[bool] = []
    for machine in burning:
        assert machine.life is not None
        processor = machine.life.host.led[PARTITION].processor
        await world.eventually(partial(_has_applied, processor, had))
        processor.flush(lambda: flushed.append(True))
    await world.eventually(lambda: len(flushed) == 2)
    for machine in burning:
        await machine.end("power")
    world.network.heal()
    return burning, world.lives()[0], had


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_cluster_goes_on_with_what_is_left_of_a_log(seed: int) -> None:
    async def main(loop: SimLoop) -> None:
        world = LossWorld(loop, seed)
        await world.start()
        await world.until(world.is_led, "every partition has one leader")
        await world.until(world.is_wide, "every log is on three nodes")
        await world.add_somehow(1)
        burnt, left, had = await _lose_two(world)
        names = {value.name: node for node, value in left.host.plane.membership.nodes.items()}
        numbers = [names[machine.name] for machine in burnt]
        await world.eventually(
            lambda: all(left.host.plane.detector.state(node).is_gone for node in numbers)
        )
        early = await _examine(world, left, PARTITION)
        assert early.refusal is not None and "may come back" in early.refusal
        with pytest.raises(UnsafeCloseRefused):
            await _allow(world, left, PARTITION, early)
        for node in numbers:
            await world.within(left, left.host.plane.membership.edit_node(node, mark_lost))
        await world.eventually(lambda: any(life.host.waiting() for life in world.lives()))
        for partition in range(PARTITIONS):
            found = await _examine(world, left, partition)
            assert (found.refusal is None) == (len(found.counted) < 2)
            if found.refusal is None:
                await _allow(world, left, partition, found)
        await world.eventually(world.is_led)
        (done,) = world.meta().unsafe
        assert done.by == "root@sim" and done.tail_lsn <= had
        assert _said(left, "closed segment") != []
        for number in range(3, 12):
            await world.add_somehow(number)
        await _turn_back(world, burnt[0], done.tail_lsn)
        for life in world.lives():
            await life.machine.end("kill")

    run(seed, main)


async def _turn_back(world: LossWorld, machine: Machine, tail_lsn: int) -> None:
    """The machine comes back as it was: refused. Then on an empty disk: welcome."""
    await machine.start()
    back = machine.life
    assert back is not None
    state = back.host.plane.leaderships.state
    await world.eventually(lambda: state(PARTITION) is ReplicaState.BROKEN)
    reasons = {
        item.partition: item.broken_because for item in back.host.plane.statistics().partitions
    }
    reason = reasons[PARTITION]
    assert reason is not None and reason.startswith(f"[{HistoryForsaken.code}]")
    assert f"before record {tail_lsn}" in reason
    assert next(iter(_said(back, "is broken"))).advice.startswith("wipe")
    await machine.end("power")
    machine.get_disk()
    await machine.start()
    fresh = machine.life
    assert fresh is not None
    newest = max(life.host.led[PARTITION].processor.store.applied_lsn for life in world.lives())
    await world.eventually(
        lambda: (
            fresh.host.led[PARTITION].processor.store.applied_lsn >= newest
            and fresh.host.plane.leaderships.state(PARTITION) is ReplicaState.FOLLOWING
        )
    )
