"""Joining a cluster and following its registers, also when writes have unknown outcomes."""

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest
from tests.cluster.flaky_registers import FlakyRegisters
from tests.sim.disk import SimDisk
from tests.sim.loop import SimLoop, run
from tests.sim.ports import SimClock, SimEntropy

from perdure.cluster.core import chain, membership
from perdure.cluster.core.chain import PartitionMeta, Replicas
from perdure.cluster.core.identity import Verdict
from perdure.cluster.core.membership import (
    Addresses,
    ClusterMeta,
    NodeMeta,
    NodeProfile,
    NodeRole,
    StorageState,
    WorkerState,
)
from perdure.cluster.core.types import NodeId
from perdure.cluster.membership import Joined, Membership, join, provision, read_cluster
from perdure.cluster.metadata.store import Versioned
from perdure.cluster.registers import Registers, edit_register, insist
from perdure.core.errors import (
    DataDirectoryForeign,
    DataDirectoryTooNew,
    MembershipRefused,
    MetadataConflict,
    MetadataRegressed,
)
from perdure.core.limits import REGISTER_REFRESH_MS

CLUSTER = ClusterMeta(1, "c", "0f" * 16, 4, 2, 3)


class Machine:
    """A disk and the name of its node; each start is a new process."""

    def __init__(self, store: Registers, name: str, dice: random.Random) -> None:
        self.store = store
        self.name = name
        self.dice = dice
        self.disk = SimDisk(dice)
        self.runs_elsewhere = False

    async def start(self) -> Joined:
        profile = NodeProfile(
            name=self.name,
            addresses=Addresses(f"{self.name}:5122"),
            zone="",
            roles=tuple(NodeRole),
            software="1",
            incarnation=self.dice.getrandbits(64),
            fresh_uuid=f"{self.dice.getrandbits(128):032x}",
        )

        async def is_running(node: NodeId, known: NodeMeta) -> bool:
            return self.runs_elsewhere

        entropy = SimEntropy(self.dice)
        return await join(self.store, self.disk, "c", profile, is_running, entropy)


def _run(main: Coroutine[Any, Any, None], seed: int = 1) -> None:
    def wrapped(loop: SimLoop) -> Coroutine[Any, Any, None]:
        return main

    run(seed, wrapped)


def _store(seed: int = 1) -> FlakyRegisters:
    return FlakyRegisters(random.Random(seed))


def test_nodes_join_a_provisioned_cluster_and_start_again() -> None:
    async def main() -> None:
        store = _store()
        one, two = (Machine(store, name, store.dice) for name in ("a", "b"))
        with pytest.raises(MembershipRefused, match="provision it first"):
            await one.start()
        assert await provision(store, CLUSTER) == CLUSTER
        other = msgspec.structs.replace(CLUSTER, fingerprint="11" * 16)
        assert await provision(store, other) == CLUSTER
        first, second = await one.start(), await two.start()
        assert (first.node, second.node, first.verdict) == (1, 2, Verdict.JOIN)
        again = await one.start()
        assert (again.node, again.value.generation, again.verdict) == (1, 2, Verdict.START)
        assert again.value.storage_uuid == first.value.storage_uuid
        assert again.peer().generation == 2

    _run(main())


def test_metadata_of_another_cluster_or_release_is_refused() -> None:
    async def main() -> None:
        store = _store()
        machine = Machine(store, "a", store.dice)
        await provision(store, msgspec.structs.replace(CLUSTER, name="other"))
        with pytest.raises(MembershipRefused, match="of cluster 'other', not 'c'"):
            await machine.start()
        store.found.clear()
        await provision(store, CLUSTER)
        await machine.start()
        store.found.clear()
        await provision(store, msgspec.structs.replace(CLUSTER, fingerprint="22" * 16))
        with pytest.raises(DataDirectoryForeign, match="belongs to cluster 0f0f"):
            await machine.start()
        store.found.clear()
        await provision(store, msgspec.structs.replace(CLUSTER, format=9))
        with pytest.raises(DataDirectoryTooNew):
            await read_cluster(store)

    _run(main())


def test_an_empty_disk_takes_a_name_only_from_a_process_that_is_not_there() -> None:
    async def main() -> None:
        store = _store()
        await provision(store, CLUSTER)
        joined = await Machine(store, "a", store.dice).start()
        twin = Machine(store, "a", store.dice)
        twin.runs_elsewhere = True
        with pytest.raises(MembershipRefused, match="node 1 runs as 'a' already, at a:5122"):
            await twin.start()
        twin.runs_elsewhere = False
        again = await twin.start()
        assert (again.node, again.value.generation) == (1, 2)
        assert again.value.storage_uuid != joined.value.storage_uuid
        assert again.value.storage is StorageState.PROVISIONING  # it never was writable

    _run(main())


@pytest.mark.parametrize("seed", range(20))
def test_all_join_at_once_although_outcomes_are_lost(seed: int) -> None:
    async def main() -> None:
        store = _store(seed)
        store.unknown_chance = 0.3
        machines = [Machine(store, name, store.dice) for name in "abcdef"]
        await asyncio.gather(*(provision(store, CLUSTER) for _ in machines))
        for generation in (1, 2):
            joined = await asyncio.gather(*(machine.start() for machine in machines))
            assert sorted(each.node for each in joined) == [1, 2, 3, 4, 5, 6]
            for machine, each in zip(machines, joined, strict=True):
                found = store.found[membership.node_key(each.node)]
                published = msgspec.msgpack.decode(found.value, type=NodeMeta)
                assert published == each.value
                assert (published.name, published.generation) == (machine.name, generation)

    _run(main(), seed)


@pytest.mark.parametrize("seed", range(3))
def test_many_join_in_one_instant_and_each_needs_one_try(seed: int) -> None:
    """They all want the next number, and only one at a time gets it."""

    async def main() -> None:
        store = _store(seed)
        machines = [Machine(store, f"n{number}", store.dice) for number in range(40)]
        await provision(store, CLUSTER)
        joined = await asyncio.gather(*(machine.start() for machine in machines))
        assert sorted(each.node for each in joined) == list(range(1, 41))

    _run(main(), seed)


@pytest.mark.parametrize("is_away", [True, False])
def test_what_a_start_needs_is_waited_for(is_away: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Metadata that is away, or others that are faster, end no start; what else fails does."""

    async def main() -> None:
        store = _store()
        clock = SimClock(asyncio.get_running_loop())
        asked = 0

        async def read() -> Versioned | None:
            nonlocal asked
            asked += 1
            if not is_away and asked < 9:
                raise MetadataConflict("others are faster")
            return await store.get("there")

        store.found["there"] = Versioned(1, b"")
        store.is_down = is_away
        entropy = SimEntropy(store.dice)
        insisting = asyncio.ensure_future(insist(read, "something", clock, entropy))
        await asyncio.sleep(60)
        assert insisting.done() is not is_away
        told = [record for record in caplog.records if record.getMessage() == "metadata.awaited"]
        assert len(told) in (range(5, 13) if is_away else (0,))
        store.is_down = False
        assert await insisting == Versioned(1, b"")
        assert asked > 8

        async def refuse() -> None:
            raise MetadataRegressed("it has forgotten")

        with pytest.raises(MetadataRegressed):
            await insist(refuse, "something", clock, entropy)

    _run(main())


def test_a_drain_that_comes_in_between_is_not_overwritten_by_a_start() -> None:
    async def main() -> None:
        store = _store()
        await provision(store, CLUSTER)
        machines = [Machine(store, name, store.dice) for name in "ab"]
        joined = [await machine.start() for machine in machines]
        me = joined[0]
        follower = Membership(store, me.peer(), SimEntropy(store.dice))
        await follower.refresh()
        starting = asyncio.ensure_future(machines[1].start())
        await follower.edit_node(
            NodeId(2), lambda node: membership.drain(follower.nodes, NodeId(2), 0)
        )
        again = await starting
        assert again.value.generation == 2
        assert again.value.worker is WorkerState.DRAINING

    for seed in range(10):
        _run(main(), seed)


# --- Following ----------------------------------------------------------------------------------


async def _follower(store: FlakyRegisters) -> Membership:
    await provision(store, CLUSTER)
    joined = await Machine(store, "a", store.dice).start()
    return Membership(store, joined.peer(), SimEntropy(store.dice))


@pytest.mark.parametrize("lost", [0.0, 1.0])
def test_changes_are_seen_soon_or_when_hints_are_lost_later(lost: float) -> None:
    async def main() -> None:
        store = _store()
        store.lost_hint_chance = lost
        follower = await _follower(store)
        await follower.refresh()
        running = asyncio.ensure_future(follower.run())
        await asyncio.sleep(0.1)
        told: list[tuple[int, int]] = []
        changed = asyncio.Event()

        def on_partition(partition: int, meta: PartitionMeta) -> None:
            told.append((partition, meta.epoch))
            changed.set()

        follower.on_partition(on_partition)
        started = asyncio.get_running_loop().time()
        meta = msgspec.structs.replace(chain.empty(), epoch=7)
        await store.cas("p/3", None, msgspec.msgpack.encode(meta))
        await changed.wait()
        took = asyncio.get_running_loop().time() - started
        assert told == [(3, 7)]
        assert took < 0.1 if lost == 0 else took < 1.1 * REGISTER_REFRESH_MS / 1000
        assert follower.partitions[3].epoch == 7
        running.cancel()

    _run(main())


def test_when_everything_is_hinted_at_it_is_read_at_once() -> None:
    async def main() -> None:
        store = _store()
        follower = await _follower(store)
        told: set[int] = set()
        changed = asyncio.Event()

        def on_partition(partition: int, _: PartitionMeta) -> None:
            told.add(partition)
            changed.set()

        follower.on_partition(on_partition)
        value = msgspec.msgpack.encode(msgspec.structs.replace(chain.empty(), epoch=7))
        store.found["p/0"] = Versioned(1, value)
        running = asyncio.ensure_future(follower.run())
        await changed.wait()  # it has read everything, and waits for hints from now on
        store.found |= {f"p/{partition}": Versioned(1, value) for partition in range(1, 1_000)}
        for partition in range(1, 1_000):
            follower.look_at(partition)
        async with asyncio.timeout(0.1):
            while len(told) < 1_000:
                changed.clear()
                await changed.wait()
        running.cancel()

    _run(main())


def test_what_metadata_forgets_is_noticed() -> None:
    async def main() -> None:
        store = _store()
        follower = await _follower(store)
        await follower.refresh()
        key = "nodes/1"
        store.found[key] = Versioned(5, store.found[key].value)
        await follower.refresh()
        store.found[key] = Versioned(4, store.found[key].value)
        with pytest.raises(MetadataRegressed, match="had version 5 and is now at 4"):
            await follower.refresh()
        del store.found[key]
        with pytest.raises(MetadataRegressed, match="now at nothing"):
            await follower.refresh()

    _run(main())


def test_a_follower_outlives_metadata_that_is_away() -> None:
    async def main() -> None:
        store = _store()
        follower = await _follower(store)
        running = asyncio.ensure_future(follower.run())
        store.is_down = True
        await asyncio.sleep(30)
        assert not running.done()
        store.is_down = False
        await asyncio.sleep(5)
        assert follower.members() == [1]
        running.cancel()

    _run(main())


def test_the_directory_names_addresses_and_runs_of_those_who_belong() -> None:
    async def main() -> None:
        store = _store()
        follower = await _follower(store)
        await Machine(store, "b", store.dice).start()
        await follower.refresh()
        assert {node: place.address for node, place in follower.directory().items()} == {
            1: "a:5122",
            2: "b:5122",
        }
        assert follower.directory()[NodeId(1)].identity == follower.me
        gone = msgspec.structs.replace(follower.nodes[NodeId(2)], is_removed=True)
        await follower.edit_node(NodeId(2), lambda _: gone)
        assert follower.members() == [1]
        assert list(follower.directory()) == [1]

    _run(main())


@pytest.mark.parametrize("seed", range(10))
def test_edits_of_many_all_count(seed: int) -> None:
    async def main() -> None:
        store = _store(seed)
        follower = await _follower(store)
        store.unknown_chance = 0.2

        def append(node: int) -> None:
            def change(known: PartitionMeta | None) -> PartitionMeta | None:
                meta = known or chain.empty()
                if node in meta.replicas.current:
                    return None
                sets = Replicas((*meta.replicas.current, NodeId(node)))
                return msgspec.structs.replace(meta, replicas=sets)

            changes.append(follower.edit_partition(0, change))

        changes: list[Coroutine[Any, Any, PartitionMeta | None]] = []
        for node in range(5):
            append(node)
        await asyncio.gather(*changes)
        assert sorted(follower.partitions[0].replicas.current) == [0, 1, 2, 3, 4]

    _run(main(), seed)


def test_an_edit_that_never_wins_says_so() -> None:
    async def main() -> None:
        store = _store()
        await store.cas("p/0", None, msgspec.msgpack.encode(0))

        def change(known: int | None) -> int:
            store.found["p/0"] = Versioned(
                store.found["p/0"].version + 1, msgspec.msgpack.encode(5)
            )
            return 6

        with pytest.raises(MetadataConflict, match="kept changing"):
            await edit_register(store, "p/0", int, change)
        assert await edit_register(store, "p/1", int, lambda _: None) is None

    _run(main())
