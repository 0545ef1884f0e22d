"""Asking whoever leads: how soon a question goes to a new leader."""

import asyncio

from tests.cluster.fabric_rig import Rig, on_sim, peer, until

from perdure.cluster.core.messages import Peer
from perdure.cluster.core.types import NodeId
from perdure.cluster.transport import Answer
from perdure.core.errors import PerdureError
from perdure.core.ids import InvocationId, PartitionId
from perdure.core.limits import ROUTE_RETRY_MS_MAX
from perdure.node.partition.gateway import Found
from perdure.node.partition.messages import Known, LookUp
from perdure.node.partition.routing import RoutedGateway

TWO = NodeId(2)
PARTITION = PartitionId(0)


class Leaders:
    """Who leads the only partition."""

    def __init__(self) -> None:
        self.leader: NodeId | None = None

    def leader_of(self, partition: PartitionId) -> NodeId | None:
        return self.leader


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
