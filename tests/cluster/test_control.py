"""Control planes over gRPC, in real time: what the simulation shows also holds on loopback."""

import asyncio
import socket

import pytest
import uvloop
from tests.sim.leadership_world import World

from perdure.cluster.grpc_transport import GrpcWires

_PARTITIONS = 6


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.slow
def test_three_nodes_lead_follow_and_hand_over_on_loopback() -> None:
    async def main() -> None:
        world = World(asyncio.get_running_loop(), 1, 3, _PARTITIONS)
        world.make_wires = GrpcWires
        for node in world.nodes:
            node.host = _free_address()
        await world.begin()
        await world.until(world.is_led, 20)
        killed = world.nodes[0]
        await world.until(lambda: _all_follow(world), 20)
        await killed.kill()
        await world.until(world.is_led, 20)
        await killed.start()
        await world.until(lambda: _all_follow(world), 20)
        ended = world.happened["ended: handed over"]
        stopped = world.nodes[1]
        led = sum(names == [stopped.name] for names in world.leaders().values())
        await stopped.stop()
        await world.until(world.is_led, 20)
        assert world.happened["ended: handed over"] == ended + led
        await world.end()

    uvloop.run(main())


def _all_follow(world: World) -> bool:
    metas = world.membership().partitions.values()
    is_placed = all(len(meta.replicas.current) == 3 for meta in metas)
    states = [state.value for states in world.states() for state in states.values()]
    alive = [len(node.life.plane.detector.alive()) for node in world.nodes if node.life is not None]
    return is_placed and world.is_led() and "bootstrapping" not in states and set(alive) == {3}
