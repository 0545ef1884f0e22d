"""The snapshotter over a simulated node: when it takes sets, what it keeps, trouble it meets."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from tests.cluster.fabric_rig import until
from tests.sim.loop import SimLoop, run
from tests.sim.node_world import HEALED, PARTITIONS, NodeLife, NodeWorld
from tests.sim.object_store import BucketFaults, SimBucket, SimObjectStore
from tests.sim.ports import SimEntropy, SimOffload
from tests.sim.table_images import SimHeldTables, SimImage

from perdure.cluster.core.snapshot import SnapshotPolicy
from perdure.cluster.snapshot_repository import RepositoryPorts, SnapshotRepository
from perdure.core.errors import (
    DiskFull,
    ObjectStoreUnavailable,
    PartitionUnavailable,
    SnapshotForeign,
    SnapshotsUnavailable,
)
from perdure.core.ids import PartitionId, make_invocation_id, partition_key_of
from perdure.core.invariant import InvariantViolation
from perdure.core.limits_snapshots import SNAPSHOT_GRACE_MS
from perdure.engine.commands import Invoke
from perdure.node.partition.snapshotter import Snapshotter, SnapshotterPorts
from perdure.node.partition.taker import Taker, TakerPorts
from perdure.storage.snapshot_format import (
    Latest,
    SnapshotSet,
    decode,
    encode,
    latest_key,
    parse_snapshot_key,
)
from perdure.storage.snapshots import SnapshotOwner

NEVER = SnapshotPolicy(interval_ms=None, records=None)


class Rig:
    """A node on virtual time, with a bucket."""

    def __init__(self, loop: SimLoop, bucket: SimBucket | None = None) -> None:
        self.loop = loop
        self.world = NodeWorld(5)
        self.life = NodeLife(self.world, HEALED, loop)
        self.bucket = bucket or SimBucket()
        self.store = SimObjectStore(self.bucket, random.Random(1))
        self.free_bytes = 1 << 40
        self.copied: list[PartitionId] = []
        self.held: list[SimHeldTables] = []
        self.let_go_early = 0
        self.fail_copy: OSError | None = None
        self.is_alone = True
        self.archived: dict[int, int] = {}

    async def open(self, policy: SnapshotPolicy = NEVER, retain: int = 2) -> Snapshotter:
        await self.life.boot()
        self.bucket.now_ms = self.life.clock.now_ms
        identity = self.life.host.identity
        owner = SnapshotOwner(
            fingerprint=identity.fingerprint.hex(),
            cluster="sim",
            partition_count=PARTITIONS,
            software="sim",
        )
        entropy = SimEntropy(random.Random(2))
        threads = SimOffload(random.Random(3), delay_ms_max=1)
        repository = SnapshotRepository(
            RepositoryPorts(
                store=self.store, threads=threads, clock=self.life.clock, entropy=entropy
            ),
            owner,
            retain,
        )
        self.copy_thread = SimOffload(random.Random(4), delay_ms_max=1)
        self.taker = Taker(
            TakerPorts(
                repository=repository,
                hold=self._hold,
                copy_thread=self.copy_thread,
                free_bytes=lambda: self.free_bytes,
                clock=self.life.clock,
                on_archived=self.archived.__setitem__,
                is_alone=self.is_alone,
            )
        )
        ports = SnapshotterPorts(
            taker=self.taker,
            processors=lambda: [led.processor for led in self.life.host.led],
            registry=lambda: b"registered",
            clock=self.life.clock,
            entropy=entropy,
        )
        self.snapshotter = Snapshotter(ports, policy, "sim")
        return self.snapshotter

    def _hold(self, partition: PartitionId) -> SimHeldTables:
        rig = self

        class Held(SimHeldTables):
            def copy(self) -> SimImage:
                rig.let_go_early += self not in rig.held
                if rig.fail_copy is not None:
                    self.release()
                    raise rig.fail_copy
                rig.copied.append(partition)
                self.release()
                return super().copy()

            def release(self) -> None:
                if self in rig.held:
                    rig.held.remove(self)

        held = Held(self.world.tables[partition])
        self.held.append(held)
        return held

    async def work(self) -> None:
        """Have every request accepted by its partition, and some time pass."""
        await self.accept()
        await asyncio.sleep(2)

    async def accept(self) -> None:
        """Have every request accepted; its partition has something to flush then."""
        for request in self.world.requests:
            accepted = asyncio.Event()
            self.life.host.gateway.propose(
                request.command,
                partition_key_of(request.command.id),
                lambda _outcome, accepted=accepted: accepted.set(),  # type: ignore[misc]
                lambda error: None,
            )
            await accepted.wait()

    def latest(self, partition: int) -> Latest:
        """What ``latest.json`` says."""
        return decode(self.bucket.objects[latest_key(partition)][0], Latest, "")

    def snapshot_ids(self) -> set[str]:
        """Ids of all snapshots in the bucket, whole or not."""
        found = (parse_snapshot_key(key) for key in self.bucket.objects)
        return {item[1] for item in found if item is not None}


def fresh_id(command: Invoke) -> Invoke:
    """The same call once more."""
    id = make_invocation_id(partition_key_of(command.id), 12345)
    return msgspec.structs.replace(command, id=id)


Body = Callable[[Rig], Coroutine[Any, Any, None]]


def play(body: Body, bucket: SimBucket | None = None) -> None:
    async def main(loop: SimLoop) -> None:
        await body(Rig(loop, bucket))

    run(1, main)


def ids(document: SnapshotSet) -> set[str]:
    return {member.snapshot.id for member in document.members}


def test_a_set_has_every_partition_and_what_is_registered() -> None:
    async def body(rig: Rig) -> None:
        snapshotter = await rig.open()
        await rig.work()
        document = await snapshotter.create()
        assert [member.partition for member in document.members] == list(range(PARTITIONS))
        assert document.registry == b"registered"
        assert snapshotter.sets == [document]
        figures = snapshotter.statistics()
        assert (figures.is_sound, figures.failures, figures.sets_taken) == (True, 0, 1)
        assert figures.newest_ms == document.created_ms
        for led, member in zip(rig.life.host.led, document.members, strict=True):
            assert snapshotter.archived_lsn(member.partition) == member.snapshot.lsn
            assert member.snapshot.lsn <= led.processor.store.applied_lsn
        assert rig.snapshot_ids() == ids(document)

    play(body)


def test_partitions_where_nothing_happened_are_not_uploaded_again() -> None:
    async def body(rig: Rig) -> None:
        snapshotter = await rig.open()
        first = await snapshotter.create()
        rig.copied.clear()
        second = await snapshotter.create()
        assert rig.copied == []
        assert rig.held == []
        assert second.members == first.members
        assert second.name != first.name

    play(body)


def test_sets_are_due_by_records_and_only_where_something_happens() -> None:
    async def body(rig: Rig) -> None:
        snapshotter = await rig.open(SnapshotPolicy(interval_ms=None, records=1))
        running = asyncio.ensure_future(snapshotter.run())
        await asyncio.sleep(3600)
        assert snapshotter.sets == []  # announcements are no news
        await rig.work()
        await asyncio.sleep(60)
        count = snapshotter.statistics().sets_taken
        assert count >= 1
        await asyncio.sleep(24 * 3600)
        assert snapshotter.statistics().sets_taken <= count + 1
        assert snapshotter.statistics().failures == 0
        running.cancel()

    play(body)


def test_sets_are_due_by_time() -> None:
    async def body(rig: Rig) -> None:
        snapshotter = await rig.open(SnapshotPolicy(interval_ms=900_000, records=None))
        running = asyncio.ensure_future(snapshotter.run())
        await rig.work()
        await asyncio.sleep(800)
        assert snapshotter.sets == []
        await asyncio.sleep(120)
        assert len(snapshotter.sets) == 1
        running.cancel()

    play(body)


@pytest.mark.parametrize("retain", [1, 2, 3])
def test_old_sets_and_their_snapshots_go(retain: int) -> None:
    async def body(rig: Rig) -> None:
        snapshotter = await rig.open(retain=retain)
        running = asyncio.ensure_future(snapshotter.run())
        requests = rig.world.requests
        for number in range(5):
            rig.world.requests = requests[number % len(requests) :][:1]
            await rig.work()
            await snapshotter.create()
            named = [key for key in rig.bucket.objects if key.startswith("sets/")]
            assert len(named) == len(snapshotter.sets) <= max(retain, 2)
            assert all(ids(document) <= rig.snapshot_ids() for document in snapshotter.sets)
        await asyncio.sleep(2 * SNAPSHOT_GRACE_MS / 1000)
        kept = {
            item.id for partition in range(PARTITIONS) for item in rig.latest(partition).retained
        }
        assert rig.snapshot_ids() == kept
        running.cancel()

    play(body)


@pytest.mark.parametrize("is_alone", [True, False])
def test_a_later_leaders_snapshot_is_not_replaced_and_no_set_has_it(is_alone: bool) -> None:
    async def body(rig: Rig) -> None:
        rig.is_alone = is_alone
        snapshotter = await rig.open()
        await rig.work()
        document = await snapshotter.create()
        lsns = {member.partition: member.snapshot.lsn for member in document.members}
        assert rig.archived == lsns
        for partition in range(PARTITIONS):
            latest = rig.latest(partition)
            ahead = msgspec.structs.replace(latest.retained[0], lsn=10_000, id="ahead")
            later = msgspec.structs.replace(
                latest, version=latest.version + 1, retained=(ahead, *latest.retained)
            )
            rig.bucket.put(latest_key(partition), encode(later), None)
        before = rig.snapshot_ids()
        request = rig.world.requests[0]
        rig.world.requests = [replace(request, command=fresh_id(request.command))]
        await rig.work()
        with pytest.raises(SnapshotForeign if is_alone else SnapshotsUnavailable):
            await snapshotter.create()
        assert snapshotter.sets == [document]
        assert rig.snapshot_ids() == before  # mine was deleted again

    play(body)


def test_of_a_quiet_partition_only_what_sets_name_holds_the_log() -> None:
    async def body(rig: Rig) -> None:
        snapshotter = await rig.open(retain=2)
        await rig.work()
        await snapshotter.create()
        first = [snapshotter.archived_lsn(partition) for partition in range(PARTITIONS)]
        await rig.work()
        second = await snapshotter.create()
        assert [snapshotter.archived_lsn(item) for item in range(PARTITIONS)] == first
        await snapshotter.create()  # nothing has happened: both sets name the same snapshots
        lsns = [member.snapshot.lsn for member in second.members]
        assert [snapshotter.archived_lsn(item) for item in range(PARTITIONS)] == lsns
        assert lsns != first
        assert [rig.latest(item).archived_lsn for item in range(PARTITIONS)] == first

    play(body)


# --- Trouble --------------------------------------------------------------------------------------


def test_an_unsound_store_gets_snapshots_but_nothing_leans_on_them() -> None:
    async def body(rig: Rig) -> None:
        snapshotter = await rig.open()
        document = await snapshotter.create()
        assert snapshotter.sets == [document]
        figures = snapshotter.statistics()
        assert figures.is_sound is False
        assert figures.fault is not None
        assert "If-None-Match" in figures.fault
        assert [snapshotter.archived_lsn(partition) for partition in range(PARTITIONS)] == [
            None
        ] * PARTITIONS

    play(body, SimBucket(ignores_conditions=True))


def test_a_foreign_destination_is_left_alone() -> None:
    bucket = SimBucket()

    async def first(rig: Rig) -> None:
        await (await rig.open()).create()

    async def second(rig: Rig) -> None:
        rig.life.dice.seed(99)  # another cluster: it draws another fingerprint
        snapshotter = await rig.open()
        before = dict(rig.bucket.objects)
        with pytest.raises(SnapshotForeign, match="destination of its own"):
            await snapshotter.create()
        assert rig.bucket.objects == before
        assert snapshotter.statistics().is_sound is False
        assert snapshotter.archived_lsn(0) is None

    play(first, bucket)
    play(second, bucket)


def test_a_store_that_was_away_is_used_when_it_is_back() -> None:
    async def body(rig: Rig) -> None:
        snapshotter = await rig.open(SnapshotPolicy(interval_ms=None, records=1))
        rig.store.faults = BucketFaults(lost_request=1.0)
        running = asyncio.ensure_future(snapshotter.run())
        await rig.work()
        await asyncio.sleep(300)
        with pytest.raises(ObjectStoreUnavailable):
            await snapshotter.create()
        figures = snapshotter.statistics()
        assert figures.failures > 1
        assert figures.last_failure is not None
        assert figures.is_sound is None
        rig.store.faults = BucketFaults()
        await asyncio.sleep(120)
        assert len(snapshotter.sets) >= 1
        assert snapshotter.statistics().is_sound is True
        assert snapshotter.statistics().last_failure is None
        running.cancel()

    play(body)


def test_a_halted_partition_is_no_part_of_a_set() -> None:
    async def body(rig: Rig) -> None:
        snapshotter = await rig.open()
        await rig.work()
        rig.life.host.led[1].processor.halted = InvariantViolation("a test", {})
        with pytest.raises(PartitionUnavailable, match="halted"):
            await snapshotter.create()
        assert rig.held == []
        assert rig.snapshot_ids() == set()

    play(body)


def test_tables_that_cant_be_flushed_end_the_wait_and_the_hold() -> None:
    async def body(rig: Rig) -> None:
        snapshotter = await rig.open()
        await rig.accept()
        for tables in rig.world.tables:
            tables.refusals = 45  # a try each second
        with pytest.raises(SnapshotsUnavailable, match="flushed"):
            await snapshotter.create()
        with pytest.raises(DiskFull):
            await snapshotter.create()  # by now it is known
        assert rig.held == []
        await asyncio.sleep(60)
        assert all(led.processor.is_flushed() for led in rig.life.host.led)
        await snapshotter.create()

    play(body)


@pytest.mark.parametrize("is_known", [True, False])
def test_a_node_stops_although_its_disk_refuses_the_tables(is_known: bool) -> None:
    async def body(rig: Rig) -> None:
        await rig.open()
        await rig.accept()
        for tables in rig.world.tables:
            tables.refusals = 1_000_000
        if is_known:
            await asyncio.sleep(10)
        began = rig.loop.time()
        await rig.life.host.close()
        assert rig.loop.time() - began < 10

    play(body)


@pytest.mark.parametrize("reason", ["full", "failing"])
def test_without_room_for_copies_nothing_is_left_behind(reason: str) -> None:
    async def body(rig: Rig) -> None:
        snapshotter = await rig.open()
        await rig.work()
        if reason == "full":
            rig.free_bytes = 1
        else:
            rig.fail_copy = OSError(28, "no space")
        with pytest.raises(SnapshotsUnavailable, match=r"room|space"):
            await snapshotter.create()
        assert rig.snapshot_ids() == set()
        assert rig.held == []
        rig.free_bytes, rig.fail_copy = 1 << 40, None
        await snapshotter.create()

    play(body)


def test_who_asks_may_go_and_the_set_is_taken_all_the_same() -> None:
    async def body(rig: Rig) -> None:
        snapshotter = await rig.open()
        asking = asyncio.ensure_future(snapshotter.create())
        await asyncio.sleep(0.001)
        asking.cancel()
        await asyncio.sleep(60)
        assert len(snapshotter.sets) == 1

    play(body)


def test_closing_gives_up_what_is_under_way() -> None:
    async def body(rig: Rig) -> None:
        snapshotter = await rig.open()
        await rig.work()
        asking = asyncio.ensure_future(snapshotter.create())
        await asyncio.sleep(0.004)
        await snapshotter.aclose()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert snapshotter.sets == []
        await rig.life.host.close()

    play(body)


def test_tables_are_let_go_of_by_whoever_copies_them() -> None:
    async def body(rig: Rig) -> None:
        snapshotter = await rig.open()
        await rig.work()
        rig.copy_thread.delay_ms_max = 10_000
        asking = asyncio.ensure_future(snapshotter.create())
        await until(lambda: rig.held)
        await snapshotter.aclose()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert len(rig.held) == 1  # a thread is about to read it
        await asyncio.sleep(60)
        assert (rig.held, rig.let_go_early) == ([], 0)
        await rig.life.host.close()

    play(body)
