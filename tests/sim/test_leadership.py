"""Leaders of a whole cluster under kills, stalls, cuts and lost answers, one seed after another.

``make sim SEEDS=20000`` runs more of them; ``SEED=17 make sim`` runs one.
"""

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest
from tests.sim.leadership_play import leading, play, settle
from tests.sim.leadership_world import FakeReplica, SimNode, World

from perdure.cluster.core import chain, membership
from perdure.cluster.core.chain import PartitionMeta
from perdure.cluster.core.controller import ControllerCore, Decision, View, pin
from perdure.cluster.core.failure_detector import NodeState
from perdure.cluster.core.identity import Verdict
from perdure.cluster.core.leadership import ReplicaState
from perdure.cluster.core.membership import StorageState, WorkerState
from perdure.cluster.core.types import NodeId
from perdure.core.errors import MembershipRefused, StoreAheadOfLog
from perdure.core.limits import BALANCE_PAUSE_MS, CUT_OFF_RESIGN_MS, NOMINATION_GRACE_MS

# --- Scenarios ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cluster_that_starts_leads_everything_and_evens_out() -> None:
    async def scenario(world: World) -> None:
        assert await world.until(world.is_led, 5) < 5
        await settle(world)
        metas = world.membership().partitions
        assert all(len(meta.replicas.current) == 3 for meta in metas.values())
        assert world.busiest_has_more_by() == 0

    play(scenario)


@pytest.mark.slow
def test_nothing_moves_in_a_quiet_cluster() -> None:
    async def scenario(world: World) -> None:
        await settle(world)
        before = world.epochs(), world.registers.writes
        await asyncio.sleep(300)
        assert (world.epochs(), world.registers.writes) == before

    play(scenario)


@pytest.mark.slow
@pytest.mark.parametrize("stall_s", [0.2, 1.0])
def test_short_stalls_depose_nobody(stall_s: float) -> None:
    async def scenario(world: World) -> None:
        await settle(world)
        before = world.epochs()
        for _ in range(60):
            node = world.dice.choice(world.nodes)
            node.gate.close()
            await asyncio.sleep(stall_s)
            node.gate.open()
            await asyncio.sleep(world.dice.random())
        assert world.epochs() == before

    play(scenario)


@pytest.mark.slow
@pytest.mark.parametrize(("loses_power", "seconds"), [(False, 2.0), (True, 4.5)])
@pytest.mark.parametrize("size", [3, 5])
def test_a_leader_that_dies_is_followed(loses_power: bool, seconds: float, size: int) -> None:
    async def scenario(world: World) -> None:
        await settle(world)
        for node in list(world.nodes):
            await node.kill(loses_power=loses_power)
            assert await world.until(world.is_led, seconds) < seconds
            await node.start()
            await asyncio.sleep(20)

    play(scenario, size=size)


@pytest.mark.slow
def test_a_leader_paused_for_long_is_followed_and_finds_out() -> None:
    async def scenario(world: World) -> None:
        await settle(world)
        paused = leading(world)
        paused.gate.close()
        others = [node for node in world.nodes if node is not paused]

        def is_followed() -> bool:
            return all(any(n.name in names for n in others) for names in world.leaders().values())

        await world.until(is_followed, 5)
        paused.gate.open()
        await world.until(world.is_led, 2)

    play(scenario)


async def _wake_unaware(world: World) -> None:
    """A leader is paused, and doesn't hear of its successor when it wakes."""
    await settle(world)
    world.registers.lost_hint_chance = 1.0
    paused = leading(world)
    paused.gate.close()
    others = [node for node in world.nodes if node is not paused]
    await world.until(
        lambda: all(any(n.name in names for n in others) for names in world.leaders().values()), 30
    )
    paused.gate.open()
    await asyncio.sleep(2)
    await world.until(world.is_led, 30)


@pytest.mark.slow
def test_a_leader_that_wakes_unaware_commits_nothing() -> None:
    assert play(_wake_unaware).happened["ended: sealed"] > 0


@pytest.mark.slow
def test_without_seals_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    async def seal_nothing(replica: FakeReplica, segment: object) -> None:
        """Leave the old leader's segment open."""

    monkeypatch.setattr(FakeReplica, "_seal", seal_nothing)
    with pytest.raises(AssertionError, match="a commit of epoch"):
        play(_wake_unaware)


@pytest.mark.slow
def test_a_node_that_stops_hands_over_first() -> None:
    async def scenario(world: World) -> None:
        await settle(world)
        leaving = leading(world)
        led = [p for p, names in world.leaders().items() if names == [leaving.name]]
        ended = world.happened["ended: handed over"]
        stopping = asyncio.ensure_future(leaving.stop())
        await world.until(lambda: not any(leaving.name in n for n in world.leaders().values()), 1)
        await stopping
        await world.until(world.is_led, 1)
        assert world.happened["ended: handed over"] == ended + len(led)
        assert world.happened["leader gone"] == 0

    play(scenario)


@pytest.mark.slow
def test_a_node_that_drains_ends_up_with_nothing() -> None:
    async def scenario(world: World) -> None:
        await settle(world)
        draining = world.nodes[1]
        assert draining.life is not None
        node = draining.life.joined.node
        plane = world.plane()
        await plane.membership.edit_node(
            node, lambda _: membership.drain(plane.membership.nodes, node, 2)
        )
        await world.until(lambda: not membership_holds(world, node), 240)
        await world.until(world.is_led, 5)
        value = plane.membership.nodes[node]
        assert (value.worker, value.storage) == (WorkerState.DISABLED, StorageState.DISABLED)
        await plane.membership.edit_node(
            node, lambda _: membership.remove(plane.membership.nodes, node, {})
        )
        await world.until(lambda: draining.has_failed("MEMB0002"), 1)
        await draining.kill(expects_failure=True)
        await asyncio.sleep(30)
        assert world.is_led()

    play(scenario, size=4)


def membership_holds(world: World, node: NodeId) -> list[str]:
    """What holds a node, once closed segments are trimmed away."""
    found = world.plane().membership
    for partition, meta in list(found.partitions.items()):
        if len(meta.chain) > 1:
            asyncio.ensure_future(found.edit_partition(partition, _trim))  # noqa: RUF006
    return membership.holds(found.nodes, node, found.partitions)


def _trim(meta: PartitionMeta | None) -> PartitionMeta | None:
    return chain.trim_prefix(meta, 10**9) if meta is not None and len(meta.chain) > 1 else None


@pytest.mark.slow
def test_a_pinned_leader_gets_what_it_is_pinned_to() -> None:
    async def scenario(world: World) -> None:
        await settle(world)
        plane = world.plane()
        for partition in range(3):
            await plane.membership.edit_partition(partition, _pin(NodeId(2)))
        await world.until(
            lambda: all(world.leaders()[p] == ["n2"] for p in range(3)),
            60 + BALANCE_PAUSE_MS / 1000,
        )

    play(scenario)


def _pin(node: NodeId) -> Callable[[PartitionMeta | None], PartitionMeta | None]:
    return lambda meta: pin(meta, node) if meta is not None else None


@pytest.mark.slow
def test_leaders_lead_on_while_metadata_is_away() -> None:
    async def scenario(world: World) -> None:
        await settle(world)
        before = world.epochs()
        for node in world.nodes:
            node.is_cut_from_metadata = True
        commits = Counter(world.log.commits)
        await asyncio.sleep(60)
        assert world.epochs() == before
        assert all(world.log.commits[p] > commits[p] + 300 for p in range(world.partitions))

    play(scenario)


@pytest.mark.slow
def test_replicas_name_themselves_when_no_controller_does(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        await settle(world)
        monkeypatch.setattr(ControllerCore, "decide", _decide_nothing)
        node = leading(world)
        await node.kill()
        took = await world.until(world.is_led, NOMINATION_GRACE_MS / 1000 + 4)
        assert took > NOMINATION_GRACE_MS / 1000 - 1

    play(scenario)


def _decide_nothing(core: ControllerCore, now: int, view: View) -> list[Decision]:
    return []


@pytest.mark.slow
def test_two_controllers_at_once_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        await settle(world)
        monkeypatch.setattr("perdure.cluster.core.controller.controller", _anybody)
        before = world.epochs()
        await asyncio.sleep(120)
        assert world.epochs() - before <= 2
        node = leading(world)
        await node.kill()
        await world.until(world.is_led, 10)
        await node.start()
        await world.until(lambda: world.is_led() and world.busiest_has_more_by() <= 1, 200)

    play(scenario)


class _Anybody:
    """Equal to every node: all of them take themselves for the controller."""

    def __ne__(self, other: object) -> bool:
        return False


def _anybody(_: object) -> _Anybody:
    return _Anybody()


@pytest.mark.slow
@pytest.mark.parametrize("is_deaf", [True, False])
def test_a_leader_cut_off_one_way_is_followed(is_deaf: bool) -> None:
    async def scenario(world: World) -> None:
        await settle(world)
        node = leading(world)
        source, target = ("*", node.host) if is_deaf else (node.host, "*")
        world.network.cut(source, target)
        others = [each for each in world.nodes if each is not node]

        def is_followed() -> bool:
            return all(any(n.name in names for n in others) for names in world.leaders().values())

        await world.until(is_followed, 20)
        await world.until(world.is_led, CUT_OFF_RESIGN_MS / 1000 + 5)
        world.heal()
        await asyncio.sleep(30)
        assert world.is_led()

    play(scenario)


@pytest.mark.slow
def test_a_cut_between_two_of_three_moves_no_leader_that_can_commit() -> None:
    async def scenario(world: World) -> None:
        await settle(world)
        before = world.epochs()
        one, other = world.nodes[0].host, world.nodes[1].host
        world.network.cut(one, other)
        world.network.cut(other, one)
        await asyncio.sleep(120)
        assert world.epochs() == before
        assert world.is_led()

    play(scenario)


@pytest.mark.slow
def test_what_a_node_knows_of_its_cluster_can_be_looked_at() -> None:
    async def scenario(world: World) -> None:
        await settle(world)
        figures = world.plane().statistics()
        assert [(each.node, each.state) for each in figures.nodes] == [
            (node, NodeState.ALIVE) for node in (1, 2, 3)
        ]
        assert figures.is_controller
        assert not figures.is_isolated
        assert [each.partition for each in figures.partitions] == list(range(world.partitions))
        led = [each for each in figures.partitions if each.state is ReplicaState.LEADER]
        assert len(led) == 2
        assert all(each.epoch > 0 and each.broken_because is None for each in led)
        await world.nodes[2].kill()
        await asyncio.sleep(3)
        assert world.plane().statistics().nodes[2].state is NodeState.DEAD

    play(scenario)


@pytest.mark.slow
def test_tables_ahead_of_the_log_break_a_replica_not_the_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(replica: FakeReplica, *arguments: object) -> int:
        raise StoreAheadOfLog("restore it")

    async def scenario(world: World) -> None:
        await settle(world)
        node = leading(world)
        await node.kill()
        taking_over = FakeReplica.take_over
        monkeypatch.setattr(FakeReplica, "take_over", refuse)
        await world.until(
            lambda: any(ReplicaState.BROKEN in states.values() for states in world.states()), 5
        )
        monkeypatch.setattr(FakeReplica, "take_over", taking_over)
        await node.start()
        await world.until(world.is_led, 30)
        broken = [states for states in world.states() if ReplicaState.BROKEN in states.values()]
        assert broken

    play(scenario)


@pytest.mark.slow
def test_an_empty_disk_gets_a_name_only_once_its_process_is_gone() -> None:
    async def scenario(world: World) -> None:
        await settle(world)
        running = world.nodes[1]
        twin = SimNode(world, 2)
        twin.host = "elsewhere:5122"
        with pytest.raises(MembershipRefused, match="node 2 runs as 'n2' already"):
            await twin.start()
        await running.kill()
        world.nodes[1] = twin
        await twin.start()
        assert twin.life is not None
        assert (twin.life.joined.node, twin.life.joined.verdict) == (2, Verdict.DATA_LOSS)
        await world.until(world.is_led, 30)
        metas = world.membership().partitions.values()
        lost = {member.storage_uuid for meta in metas for member in meta.chain[-1].nodeset}
        assert twin.life.joined.peer().storage_uuid not in lost

    play(scenario)
