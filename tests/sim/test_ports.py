"""Threads, clock and dice: the simulated ports keep the promises of the real ones."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest
from tests.sim.loop import SimLoop, run
from tests.sim.ports import SimClock, SimEntropy, SimOffload

from perdure.core.clock import Clock, SystemClock
from perdure.core.entropy import Entropy, SystemEntropy
from perdure.core.offload import Offload, ThreadOffload, run_offloaded

Body = Callable[[Offload], Coroutine[Any, Any, None]]
Runner = Callable[[Body], None]


def _on_a_thread(body: Body) -> None:
    async def main() -> None:
        await body(ThreadOffload("test"))

    asyncio.run(main())


def _simulated(body: Body) -> None:
    async def main(loop: SimLoop) -> None:
        await body(SimOffload(random.Random(1), delay_ms_max=5))

    run(1, main)


@pytest.fixture(params=[_on_a_thread, _simulated])
def runner(request: pytest.FixtureRequest) -> Runner:
    found: Runner = request.param
    return found


def test_jobs_run_in_order_and_report_in_order(runner: Runner) -> None:
    async def body(offload: Offload) -> None:
        ran: list[int] = []
        told: list[int] = []
        all_told = asyncio.Event()

        def done(number: int) -> None:
            told.append(number)
            if len(told) == 20:
                all_told.set()

        def fail(failure: BaseException) -> None:
            raise failure

        def job(number: int) -> int:
            ran.append(number)
            return number

        for number in range(20):
            offload.submit(partial(job, number), done, fail)
        assert told == []
        await all_told.wait()
        assert ran == told == list(range(20))
        offload.close()

    runner(body)


def test_failures_of_every_kind_are_reported(runner: Runner) -> None:
    class _Bug(BaseException):
        pass

    async def body(offload: Offload) -> None:
        def fail(error: BaseException) -> None:
            raise error

        for error in (OSError("disk"), _Bug()):
            with pytest.raises(type(error)):
                await run_offloaded(offload, partial(fail, error))
        assert await run_offloaded(offload, lambda: 7) == 7
        offload.close()

    runner(body)


def test_closing_finishes_what_was_submitted(runner: Runner) -> None:
    async def body(offload: Offload) -> None:
        ran: list[int] = []
        for number in range(5):
            offload.submit(partial(ran.append, number), lambda _: None, lambda _: None)
        offload.close()
        assert ran == list(range(5))

    runner(body)


def test_clocks_go_forward() -> None:
    def check(clock: Clock, wait: Callable[[], None]) -> None:
        wall, monotonic = clock.now_ms(), clock.monotonic()
        wait()
        assert clock.monotonic() > monotonic
        assert clock.now_ms() >= wall

    def work() -> None:
        assert sum(range(100_000)) > 0

    check(SystemClock(), work)

    async def main(loop: SimLoop) -> None:
        clock = SimClock(loop, offset_ms=5)
        before = clock.now_ms()
        await asyncio.sleep(2.5)
        assert clock.now_ms() - before == 2500
        clock.spent += 1
        check(clock, lambda: setattr(clock, "spent", clock.spent + 0.1))

    run(1, main)


@pytest.mark.parametrize("entropy", [SystemEntropy(), SimEntropy(random.Random(1))])
def test_dice_fill_their_range(entropy: Entropy) -> None:
    drawn = [entropy.bits(9) for _ in range(2_000)]
    assert 0 <= min(drawn) < 64
    assert 448 <= max(drawn) < 512
    jitters = [entropy.jitter(2.0) for _ in range(200)]
    assert 0 <= min(jitters) < 0.5 < 1.5 < max(jitters) < 2.0
