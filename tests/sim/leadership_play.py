"""What tests of leadership share: play a scenario in a world, wait until it has settled."""

import asyncio
from collections.abc import Awaitable, Callable

from tests.sim.leadership_world import SimNode, World
from tests.sim.loop import SimLoop, run
from tests.sim.seeds import repeatable

Scenario = Callable[[World], Awaitable[None]]


def play(scenario: Scenario, seed: int = 1, size: int = 3, partitions: int = 6) -> World:
    worlds: list[World] = []

    async def main(loop: SimLoop) -> None:
        world = World(loop, seed, size, partitions)
        worlds.append(world)
        await world.begin()
        await scenario(world)
        await world.end()

    with repeatable(seed):
        run(seed, main)
    return worlds[0]


def leading(world: World) -> SimNode:
    """A node that leads something."""
    names = {names[0] for names in world.leaders().values() if names}
    return next(node for node in world.nodes if node.name in names)


async def settle(world: World) -> None:
    """All partitions led, on all nodes, by everybody's replica sets."""
    await world.until(lambda: world.is_led() and world.busiest_has_more_by() <= 1, 120)
    await asyncio.sleep(20)
