"""One moment of several partitions: what fits together, and what leaders do who stand still."""

# pyright: reportPrivateUsage=false

import asyncio
import random
from collections.abc import Callable, Coroutine

import pytest
from tests.sim.cluster_faults import PLAIN
from tests.sim.cluster_machine import ClusterLife
from tests.sim.cluster_snapshots import SnapshotClusterWorld
from tests.sim.disk import SimDisk
from tests.sim.loop import SimLoop, run
from tests.sim.node_world import PARTITIONS, Request
from tests.sim.ports import SimEnv, SimTables

from perdure.core.errors import PartitionUnavailable, PerdureError, SnapshotsUnavailable
from perdure.core.ids import partition_key_of, partition_of
from perdure.core.limits_snapshots import SNAPSHOT_CUT_MS, SNAPSHOT_KEEP_MS, SNAPSHOT_PAUSE_MS
from perdure.engine.actions import Outcome
from perdure.node.partition.cluster_cut import FREEZE, HOLD, PAUSE, CutDesk
from perdure.node.partition.cut import Counters, check_cut, read_counters
from perdure.storage.keys import outbox_key
from perdure.storage.partition_store import PartitionStore
from perdure.storage.tables.timers import Outgoing, inbound_counter, outbox_counter


def counters(partition: int, sent: int, waiting: int, received: int) -> Counters:
    """Of one of two partitions, about the other one."""
    if partition == 0:
        return Counters(0, 9, (0, sent), (1, waiting), (0, received))
    return Counters(1, 9, (sent, 0), (waiting, 1), (received, 0))


@pytest.mark.parametrize(
    ("sent", "waiting", "received", "fits"),
    [
        (0, 1, 0, True),  # nothing was ever sent
        (5, 1, 0, True),  # all is on the way
        (5, 4, 3, True),  # what is received is trimmed, the rest is on the way
        (5, 3, 4, True),  # received, and not yet trimmed
        (5, 6, 5, True),  # all has arrived and is trimmed
        (5, 1, 5, True),
        (5, 5, 3, False),  # one is neither here nor there
        (5, 6, 4, False),
        (5, 1, 6, False),  # received what its sender doesn't know of
    ],
)
def test_states_fit_together_when_no_message_is_lost_or_comes_twice(
    sent: int, waiting: int, received: int, fits: bool
) -> None:
    source = counters(0, sent, waiting, 0)
    target = counters(1, 0, 1, received)
    if fits:
        check_cut([source, target])
        return
    with pytest.raises(SnapshotsUnavailable, match="not of one moment"):
        check_cut([source, target])


def test_counters_are_read_from_tables() -> None:
    tables = SimTables(SimDisk(random.Random(1)))
    store = PartitionStore(SimEnv(tables), b"f" * 16, 0)
    store.sequences.put(outbox_counter(1), 7)
    store.sequences.put(outbox_counter(2), 4)
    store.sequences.put(inbound_counter(2), 3)
    for sequence in (6, 7):
        store.outbox.put(outbox_key(1, sequence), Outgoing(0, b""))
    flush = store.freeze()
    flush.run()
    store.finish(flush)
    found = read_counters(0, 9, store.env.snapshot(), 3)
    assert found == Counters(0, 9, (0, 7, 4), (1, 6, 5), (0, 0, 3))


Body = Callable[[SnapshotClusterWorld, ClusterLife, list[int]], Coroutine[None, None, None]]


class Quiet(SnapshotClusterWorld):
    """Nobody asks for sets, and none is due."""

    def on_opened(self, life: ClusterLife) -> None:
        """No snapshotter."""

    @staticmethod
    def desk(life: ClusterLife) -> CutDesk:
        desk = life.host._desk
        assert desk is not None
        return desk


def leads(life: ClusterLife) -> list[int]:
    """What a node leads now: it is balanced after a while."""
    return [partition for partition, _ in life.host.plane.leaderships.led()]


def play(body: Body) -> None:
    """With a healthy cluster, a node of it, and what that leads."""

    async def main(loop: SimLoop) -> None:
        world = Quiet(loop, 7, PLAIN)
        await world.start()
        await world.until(world._has_leaders, "every partition has one leader")
        life = max(world.lives(), key=lambda item: len(item.host.plane.leaderships.led()))
        await life.within(body(world, life, leads(life)))
        for machine in world.machines:
            await machine.end("kill")

    run(7, main)


def request_to(world: SnapshotClusterWorld, led: list[int]) -> tuple[Request, int]:
    """A request to one of the partitions."""
    for request in world.work.requests:
        key = partition_key_of(request.command.id)
        if partition_of(key, PARTITIONS) in led:
            return request, key
    raise AssertionError("choose another seed")


def propose(life: ClusterLife, world: SnapshotClusterWorld, led: list[int]) -> asyncio.Event:
    """Have one of the partitions take a request; set once it is applied."""
    request, key = request_to(world, led)
    applied = asyncio.Event()

    def on_applied(_: Outcome) -> None:
        applied.set()

    def on_lost(_: PerdureError) -> None:
        """It may be."""

    life.host.gateway.propose(request.command, key, on_applied, on_lost)
    return applied


@pytest.mark.slow
def test_who_stands_still_goes_on_by_itself() -> None:
    async def body(world: SnapshotClusterWorld, life: ClusterLife, led: list[int]) -> None:
        desk = Quiet.desk(life)
        await desk.step(1, HOLD, led)
        await desk.step(1, PAUSE, led)
        applied = propose(life, world, led)
        await asyncio.sleep(SNAPSHOT_PAUSE_MS / 2000)
        assert not applied.is_set()
        await asyncio.sleep(SNAPSHOT_PAUSE_MS / 1000)
        assert applied.is_set()
        with pytest.raises(SnapshotsUnavailable, match="waited for too long"):
            await desk.step(1, FREEZE, led)
        await desk.step(2, HOLD, led)
        desk.release(2)

    play(body)


@pytest.mark.slow
def test_one_cut_at_a_time_and_none_for_ever() -> None:
    async def body(world: SnapshotClusterWorld, life: ClusterLife, led: list[int]) -> None:
        desk = Quiet.desk(life)
        await desk.step(1, HOLD, led)
        with pytest.raises(SnapshotsUnavailable, match="taken already"):
            await desk.step(2, HOLD, led)
        await asyncio.sleep(SNAPSHOT_CUT_MS / 1000 + 1)  # who began it has died
        led = leads(life)
        await desk.step(2, HOLD, led)
        with pytest.raises(SnapshotsUnavailable, match="didn't stand still"):
            await desk.step(2, FREEZE, led)
        await desk.step(3, HOLD, led)  # a step that failed has let go
        await desk.step(3, PAUSE, led)
        found = await desk.step(3, FREEZE, led)
        assert [item.partition for item in found] == led
        assert propose(life, world, led) is not None
        await asyncio.sleep(SNAPSHOT_KEEP_MS / 1000 + 1)
        with pytest.raises(SnapshotsUnavailable):
            await desk.store(3, frozenset())
        led = leads(life)
        others = [partition for partition in range(PARTITIONS) if partition not in led]
        with pytest.raises(PartitionUnavailable):
            await desk.step(4, HOLD, others)
        await desk.step(5, HOLD, led)
        desk.release(5)

    play(body)


@pytest.mark.slow
def test_who_may_have_been_followed_freezes_nothing() -> None:
    async def body(world: SnapshotClusterWorld, life: ClusterLife, led: list[int]) -> None:
        desk = Quiet.desk(life)
        await desk.step(1, HOLD, led)
        await desk.step(1, PAUSE, led)
        world.network.isolate(life.machine.host)
        with pytest.raises((PartitionUnavailable, SnapshotsUnavailable)):
            await desk.step(1, FREEZE, led)
        world.network.heal()
        await world.until(world._has_leaders, "every partition has one leader")

    play(body)
