"""Timers against a table of them: due in order, few in memory, one record at a time, any clock."""

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.sim.loop import SimLoop
from tests.sim.ports import SimClock

from perdure.core.errors import Overloaded
from perdure.core.limits import TIMERS_PER_RECORD_MAX
from perdure.node.partition.timers import TimerService, TimerWindow

DAY_MS = 24 * 3600 * 1000


class Table:
    """The stored timers, and what was read of them."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.rows_read = 0

    def put(self, at_ms: int, number: int) -> bytes:
        key = at_ms.to_bytes(8) + number.to_bytes(29)
        self.keys.insert(bisect_left(self.keys, key), key)
        return key

    def scan(self, lower: bytes, limit: int) -> list[bytes]:
        start = bisect_left(self.keys, lower)
        found = self.keys[start : start + limit]
        self.rows_read += len(found)
        return found

    def remove(self, keys: list[bytes]) -> None:
        for key in keys:
            self.keys.remove(key)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(0, 60)),
            st.tuples(st.just("take"), st.integers(1, 5)),
            st.tuples(st.just("return"), st.just(0)),
        ),
        max_size=60,
    ),
    st.integers(1, 4),
)
def test_what_is_due_comes_in_order_and_once(steps: list[tuple[str, int]], window: int) -> None:
    table = Table()
    timers = TimerWindow(table.scan, window)
    pending: set[bytes] = set()
    for number, (step, value) in enumerate(steps):
        if step == "add":
            key = table.put(value, number)
            pending.add(key)
            timers.add(key)
        elif step == "take":
            due = timers.take_due(40, value)
            assert due == sorted(key for key in pending if key < (41).to_bytes(8))[:value]
            pending.difference_update(due)
            table.remove(due)
        else:
            due = timers.take_due(40, 2)
            timers.give_back(due)
        assert len(timers) <= 2 * window + 2
    rest = timers.take_due(1_000, len(pending) + 1)
    assert rest == sorted(pending)


def test_many_timers_cost_a_window_of_memory_and_are_read_once() -> None:
    table = Table()
    for number in range(1_000):
        table.put(number, number)
    timers = TimerWindow(table.scan, 16)
    taken = 0
    while due := timers.take_due(1_000, 7):
        taken += len(due)
        table.remove(due)
        assert len(timers) <= 32
    assert taken == 1_000
    assert table.rows_read < 1_100


class Bench:
    """A service on virtual time over a table; records are applied ``lag`` seconds later."""

    def __init__(self, loop: SimLoop, *, lag: float = 0.01, rest_ms: int = 0) -> None:
        self.loop = loop
        self.clock = SimClock(loop)
        self.table = Table()
        self.lag = lag
        self.records: list[tuple[float, int]] = []
        self.under_way = 0
        self.refusals = 0
        self.service = TimerService(
            self.table.scan, self.clock, self._fire, window=100, rest_ms=rest_ms
        )

    def put_in(self, delay_ms: int, count: int = 1) -> None:
        for _ in range(count):
            key = self.table.put(self.clock.now_ms() + delay_ms, len(self.table.keys))
            self.service.add(key)

    def _fire(self, keys: list[bytes], fired: Callable[[], None]) -> None:
        if self.refusals:
            self.refusals -= 1
            raise Overloaded("later")
        assert self.under_way == 0, "one record at a time"
        self.under_way = 1
        self.records.append((self.loop.time(), len(keys)))
        self.loop.call_later(self.lag, self._apply, keys, fired)

    def _apply(self, keys: list[bytes], fired: Callable[[], None]) -> None:
        self.under_way = 0
        self.table.remove(keys)
        fired()


def on_virtual_time(work: Callable[[SimLoop], Coroutine[Any, Any, None]]) -> None:
    loop = SimLoop(1)
    try:
        loop.run_until_complete(work(loop))
    finally:
        loop.discard()


def test_a_flood_goes_one_record_at_a_time() -> None:
    async def work(loop: SimLoop) -> None:
        bench = Bench(loop)
        for number in range(1_000):
            bench.table.put(0, number)
        bench.service.start()
        await asyncio.sleep(1)
        assert not bench.table.keys
        assert max(count for _, count in bench.records) == TIMERS_PER_RECORD_MAX
        assert loop.time() >= bench.records[-1][0] >= bench.lag * (1_000 // TIMERS_PER_RECORD_MAX)

    on_virtual_time(work)


@pytest.mark.parametrize("rest_ms", [0, 30])
def test_rests_as_long_as_it_is_told_after_each_record(rest_ms: int) -> None:
    async def work(loop: SimLoop) -> None:
        bench = Bench(loop, rest_ms=rest_ms)
        for number in range(300):
            bench.table.put(0, number)
        bench.service.start()
        await asyncio.sleep(5)
        assert not bench.table.keys
        starts = [at for at, _ in bench.records]
        for earlier, later in pairwise(starts):
            assert later - earlier == pytest.approx(bench.lag + rest_ms / 1000, abs=1e-3)

    on_virtual_time(work)


def test_a_timer_that_comes_while_a_record_is_under_way_fires_after_it() -> None:
    async def work(loop: SimLoop) -> None:
        bench = Bench(loop, lag=0.5)
        bench.service.start()
        bench.put_in(10)
        await asyncio.sleep(0.1)
        bench.put_in(0)
        await asyncio.sleep(2)
        assert [count for _, count in bench.records] == [1, 1]
        assert not bench.table.keys

    on_virtual_time(work)


def test_what_is_refused_is_tried_again() -> None:
    async def work(loop: SimLoop) -> None:
        bench = Bench(loop)
        bench.service.start()
        bench.refusals = 3
        bench.put_in(0, 5)
        await asyncio.sleep(1)
        assert not bench.table.keys

    on_virtual_time(work)


def test_a_clock_that_jumps_a_day_ahead_fires_within_seconds() -> None:
    async def work(loop: SimLoop) -> None:
        bench = Bench(loop)
        bench.service.start()
        bench.put_in(DAY_MS - 1_000)
        await asyncio.sleep(1)
        assert not bench.records
        bench.clock.offset_ms += DAY_MS
        await asyncio.sleep(6)
        assert not bench.table.keys

    on_virtual_time(work)


def test_a_clock_that_jumps_a_day_back_delays_what_was_due_and_nothing_new() -> None:
    async def work(loop: SimLoop) -> None:
        bench = Bench(loop)
        bench.service.start()
        bench.put_in(10_000)
        bench.clock.offset_ms -= DAY_MS
        bench.put_in(2_000)
        await asyncio.sleep(12)
        assert [count for _, count in bench.records] == [1]
        assert len(bench.table.keys) == 1
        await asyncio.sleep(DAY_MS / 1000)
        assert not bench.table.keys

    on_virtual_time(work)


def test_nothing_fires_after_stop() -> None:
    async def work(loop: SimLoop) -> None:
        bench = Bench(loop)
        bench.service.start()
        bench.put_in(100, 3)
        await asyncio.sleep(0.105)
        bench.service.stop()
        bench.put_in(1)
        await asyncio.sleep(10)
        assert [count for _, count in bench.records] == [3]

    on_virtual_time(work)
