"""Asking whoever leads: how soon a question goes to a new leader."""

import asyncio
from dataclasses import dataclass
from typing import cast

import msgspec
from tests.cluster.fabric_rig import Member, Rig, on_sim, peer, until
from tests.sim.loop import SimLoop
from tests.sim.node_world import HEALED, PARTITIONS, NodeLife, NodeWorld

from perdure.cluster.core.messages import Peer
from perdure.cluster.core.types import NodeId
from perdure.cluster.transport import Answer
from perdure.core.errors import PerdureError
from perdure.core.ids import InvocationId, PartitionId, partition_key_of, partition_of
from perdure.core.limits import ROUTE_RETRY_MS_MAX, ROUTE_WATCH_MS
from perdure.engine.actions import Accepted, Existing
from perdure.node.partition.gateway import Found, LedPartition
from perdure.node.partition.messages import Known, LookUp
from perdure.node.partition.remote import RemoteDesk
from perdure.node.partition.routing import RoutedGateway
from perdure.storage.tables.invocations import Completed, Result

TWO = NodeId(2)
PARTITION = PartitionId(0)


class Leaders:
    """Who leads the only partition."""

    def __init__(self) -> None:
        self.leader: NodeId | None = None

    def leader_of(self, partition: PartitionId) -> NodeId | None:
        return self.leader


@dataclass(frozen=True)
class LedElsewhere:
    """Node 1 asks; node 2, a whole one, leads every partition."""

    asking: Member
    leading: Member
    world: NodeWorld
    life: NodeLife
    desk: RemoteDesk
    gateway: RoutedGateway

    @classmethod
    async def start(cls, rig: Rig) -> "LedElsewhere":
        one, two = await rig.start(peer(1)), rig.make(peer(2))
        world = NodeWorld(2)
        life = NodeLife(world, HEALED, cast(SimLoop, asyncio.get_running_loop()))
        await life.boot()
        desk = RemoteDesk(life.host.led, two.fabric)
        two.place = type(two.place)(address=await two.fabric.listen())
        rig.introduce(one, two)
        await until(lambda: one.fabric.session(TWO) is not None)
        leaders = Leaders()
        leaders.leader = TWO
        gateway = RoutedGateway(NodeId(1), [], PARTITIONS, leaders, one.fabric)
        return cls(one, two, world, life, desk, gateway)


def test_who_waits_for_a_leader_asks_as_soon_as_there_is_one() -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.start(peer(1)), rig.make(peer(2))
        asked: list[int] = []

        def look_up(_: Peer, request: LookUp, answer: Answer) -> None:
            asked.append(request.partition)
            answer(Known(None, None, 0))

        two.fabric.serve(LookUp, look_up)
        two.place = type(two.place)(address=await two.fabric.listen())
        rig.introduce(one, two)
        await until(lambda: one.fabric.session(TWO) is not None)
        leaders = Leaders()
        gateway = RoutedGateway(NodeId(1), [], 1, leaders, one.fabric)
        found: list[Found | PerdureError | None] = []
        gateway.look_up(InvocationId(bytes(24)), found.append)
        loop = asyncio.get_running_loop()
        # Until the pauses between tries have become long.
        await asyncio.sleep(10 * ROUTE_RETRY_MS_MAX / 1000)
        assert not asked
        leaders.leader = TWO
        told_at = loop.time()
        gateway.on_led(PARTITION)
        await until(lambda: found)
        assert found == [None]
        assert loop.time() - told_at < ROUTE_RETRY_MS_MAX / 1000 / 5
        assert gateway.pending == 0
        await gateway.aclose()

    on_sim(check)


def test_who_waits_for_what_has_ended_meanwhile_is_told() -> None:
    """It may end after its command was applied again and before anybody waits for it."""

    async def check(rig: Rig) -> None:
        one = await rig.start(peer(1))
        world = NodeWorld(2)
        life = NodeLife(world, HEALED, cast(SimLoop, asyncio.get_running_loop()))
        await life.boot()
        gateway = RoutedGateway(NodeId(1), life.host.led, PARTITIONS, Leaders(), one.fabric)
        command = next(
            request.command
            for request in world.requests
            if request.command.target.service == "Counter"
        )
        key = partition_key_of(command.id)
        led = life.host.led[partition_of(key, PARTITIONS)]
        applied: list[object] = []
        for repeats in (1, 2):
            gateway.propose(command, key, applied.append, applied.append)
            await until(lambda repeats=repeats: len(applied) == repeats)  # type: ignore[misc]
            await until(lambda: has_ended(led, command.id))
        told: list[Result | PerdureError] = []
        gateway.wait(command.id, told.append)
        await until(lambda: told)
        assert isinstance(told[0], Result)
        assert (gateway.pending, led.leader.waiting()) == (0, 0)
        await gateway.aclose()
        await life.host.close()

    on_sim(check)


def test_a_call_that_ends_soon_is_answered_once() -> None:
    """Taken and ended in one answer; nobody is asked for the result."""

    async def check(rig: Rig) -> None:
        there = await LedElsewhere.start(rig)
        one, gateway, world = there.asking, there.gateway, there.world
        command = next(
            request.command
            for request in world.requests
            if request.command.target.service == "Counter"
        )
        key = partition_key_of(command.id)
        for is_awaited in (True, False):
            before = one.fabric.statistics().messages_received
            told: list[Result | PerdureError] = []

            def applied(outcome: object, told: list[Result | PerdureError] = told) -> None:
                if isinstance(outcome, Existing) and outcome.result is not None:
                    told.append(outcome.result)
                else:
                    assert isinstance(outcome, Accepted)
                    gateway.wait(command.id, told.append)

            gateway.propose(command, key, applied, told.append, is_awaited=is_awaited)
            await until(lambda told=told: told)  # type: ignore[misc]
            assert isinstance(told[0], Result)
            assert one.fabric.statistics().messages_received == before + 1
        assert gateway.pending == 0
        await gateway.aclose()
        await there.life.host.close()

    on_sim(check)


def test_who_waits_for_long_is_noted_once() -> None:
    """Also when its question was asked again, and after its process has died."""

    async def check(rig: Rig) -> None:
        there = await LedElsewhere.start(rig)
        one, desk, gateway, world = there.asking, there.desk, there.gateway, there.world
        in_a_year = there.life.clock.now_ms() + 365 * 86_400_000
        command = msgspec.structs.replace(world.requests[0].command, execute_at_ms=in_a_year)
        taken: list[object] = []
        gateway.propose(command, partition_key_of(command.id), taken.append, taken.append)
        await until(lambda: taken)
        gateway.wait(command.id, taken.append)
        await until(lambda: desk.watching == 1)
        await asyncio.sleep(3.5 * ROUTE_WATCH_MS / 1000)
        assert desk.watching == 1
        await one.fabric.aclose()
        again = await rig.start(peer(1, 2))
        rig.introduce(again, there.leading)
        await until(lambda: desk.watching == 0)
        assert len(taken) == 1
        await gateway.aclose()
        await there.life.host.close()

    on_sim(check)


def test_a_call_that_comes_to_a_leader_who_hands_over_goes_to_the_next() -> None:
    async def check(rig: Rig) -> None:
        there = await LedElsewhere.start(rig)
        here = NodeLife(NodeWorld(2), HEALED, cast(SimLoop, asyncio.get_running_loop()))
        await here.boot()
        leaders = Leaders()
        leaders.leader = TWO
        gateway = RoutedGateway(NodeId(1), here.host.led, PARTITIONS, leaders, there.asking.fabric)
        for led in here.host.led:
            led.leader.stop_taking()
        command = there.world.requests[0].command
        told: list[object] = []
        gateway.propose(command, partition_key_of(command.id), told.append, told.append)
        assert (told, gateway.pending) == ([], 1)
        for led in here.host.led:
            led.leader.resign()
        await until(lambda: told)
        assert isinstance(told[0], Accepted)
        await gateway.aclose()
        await there.gateway.aclose()
        await there.life.host.close()
        await here.host.close()

    on_sim(check)


def has_ended(led: LedPartition, invocation: InvocationId) -> bool:
    return isinstance(led.processor.store.invocations.get(invocation), Completed)
