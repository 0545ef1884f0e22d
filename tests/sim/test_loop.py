"""The virtual-time loop keeps its promises on this Python."""

import asyncio
import random

import pytest
from tests.sim.loop import Deadlock, SimLoop, run


async def _wander(loop: SimLoop) -> list[tuple[int, int, float]]:
    trace: list[tuple[int, int, float]] = []

    async def walk(number: int) -> None:
        dice = random.Random(number)
        for step in range(20):
            await asyncio.sleep(dice.choice((0, 0, 60, 3600)))
            trace.append((number, step, round(loop.time(), 6)))

    async with asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(walk(number))
    async with asyncio.timeout(10_000):
        await asyncio.sleep(9_999)
    return trace


def test_a_seed_is_a_schedule() -> None:
    assert run(1, _wander) == run(1, _wander)
    assert run(1, _wander) != run(2, _wander)


def test_time_jumps_to_the_next_timer() -> None:
    async def main(loop: SimLoop) -> float:
        await asyncio.sleep(86_400)
        return loop.time()

    assert run(0, main) == pytest.approx(86_400)


def test_a_deadlock_is_an_error() -> None:
    async def main(loop: SimLoop) -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        run(0, main)


def test_timeouts_fire_in_virtual_time() -> None:
    async def main(loop: SimLoop) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await asyncio.Event().wait()
        assert loop.time() == pytest.approx(3600)

    run(0, main)


def test_stray_failures_surface() -> None:
    async def main(loop: SimLoop) -> None:
        loop.call_soon(lambda: 1 // 0)
        await asyncio.sleep(1)

    with pytest.raises(ZeroDivisionError):
        run(0, main)
