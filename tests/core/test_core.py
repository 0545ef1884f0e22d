"""The small words: invariants, retry arithmetic, entropy, failpoints, tasks, events."""

import asyncio
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core import failpoint, telemetry
from perdure.core.clock import SystemClock
from perdure.core.entropy import SystemEntropy, ulid
from perdure.core.invariant import InvariantViolation, invariant
from perdure.core.offload import PoolOffload, ThreadOffload, run_offloaded
from perdure.core.retry import RetryPolicy, with_jitter
from perdure.core.tasks import Supervisor


def test_broken_invariant_names_its_facts_and_no_handler_eats_it() -> None:
    with pytest.raises(InvariantViolation, match=r"must hold \[low=1 high='x'\]") as caught:
        try:
            invariant(False, "must hold", low=1, high="x")
        except Exception:
            raise AssertionError("an operating handler caught it") from None
    assert caught.value.facts == {"low": 1, "high": "x"}
    invariant(True, "fine")


# --- Retry ----------------------------------------------------------------------------------------


def policy(attempts_max: int | None = 4, interval_ms_max: float | None = 300) -> RetryPolicy:
    return RetryPolicy(
        initial_ms=100, factor=2, interval_ms_max=interval_ms_max, attempts_max=attempts_max
    )


def test_delays_grow_to_the_cap_and_end() -> None:
    assert [policy().delay_ms(retry) for retry in (1, 2, 3, 4)] == [100, 200, 300, None]


@pytest.mark.parametrize("attempts_max", [0, 1])
def test_one_attempt_is_no_retry(attempts_max: int) -> None:
    assert policy(attempts_max).delay_ms(1) is None


def test_retries_without_end() -> None:
    assert policy(None).delay_ms(1_000_000) == 300
    assert policy(None, None).delay_ms(1_000_000) == float("inf")


@given(st.floats(0, 1e9))
def test_jitter_only_adds(delay_ms: float) -> None:
    delayed = with_jitter(delay_ms, SystemEntropy())
    assert delay_ms <= delayed <= delay_ms + max(delay_ms * 0.3, 3.0)


# --- Chance and time ------------------------------------------------------------------------------


@given(st.integers(1, 256))
def test_entropy_fills_the_asked_bits_and_no_more(count: int) -> None:
    entropy = SystemEntropy()
    drawn = [entropy.bits(count) for _ in range(64)]
    assert all(0 <= value < 1 << count for value in drawn)
    if count >= 64:
        assert len(set(drawn)) == 64


def test_entropy_larger_than_its_pool() -> None:
    assert SystemEntropy().bits(8 * 5000) >> (8 * 4999) < 256


def test_ulids_carry_their_time() -> None:
    number = ulid(1795340143352, SystemEntropy())
    assert number >> 80 == 1795340143352
    assert number < 1 << 128


def test_system_clock_moves_on() -> None:
    clock = SystemClock()
    first = clock.monotonic()
    assert clock.monotonic() >= first
    assert clock.now_ms() > 1_600_000_000_000


# --- Failpoints -----------------------------------------------------------------------------------


def test_armed_failpoint_acts_and_others_do_not() -> None:
    hits: list[str] = []
    failpoint.failpoint("here")
    failpoint.arm("here", lambda: hits.append("here"))
    try:
        failpoint.failpoint("here")
        failpoint.failpoint("there")
    finally:
        failpoint.disarm_all()
    failpoint.failpoint("here")
    assert hits == ["here"]


# --- Tasks and threads ----------------------------------------------------------------------------


async def _fail_in_task() -> BaseException:
    supervisor = Supervisor()

    async def broken() -> None:
        raise ValueError("broken")

    async def endless() -> None:
        await asyncio.Event().wait()

    endless_task = supervisor.start("endless", endless())
    supervisor.start("broken", broken())
    failure = await asyncio.wait_for(supervisor.wait_failed(), 5)
    await supervisor.aclose()
    assert endless_task.cancelled()
    return failure


def test_failure_of_a_task_is_everybodys(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, logger="perdure"):
        assert str(asyncio.run(_fail_in_task())) == "broken"


async def _offload() -> None:
    offload = ThreadOffload("test")
    order: list[int] = []
    for number in range(20):
        offload.submit(partial(int, number), order.append, lambda error: order.append(-1))

    def broken() -> int:
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        await run_offloaded(offload, broken)
    assert order == list(range(20))
    assert await run_offloaded(offload, lambda: "done") == "done"
    offload.close()


def test_offloaded_jobs_run_in_order_and_report_on_the_loop() -> None:
    asyncio.run(_offload())


async def _pool() -> None:
    pool = PoolOffload("test", 3)
    meeting = threading.Barrier(3)
    # Each waits for the others, so they run beside each other or never end.
    met = [run_offloaded(pool, partial(meeting.wait, 20)) for _ in range(3)]
    assert sorted(await asyncio.gather(*met)) == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        await run_offloaded(pool, lambda: 1 // 0)
    names = {await run_offloaded(pool, lambda: threading.current_thread().name) for _ in range(20)}
    assert names <= {"test-1", "test-2", "test-3"}
    pool.close()


def test_pooled_jobs_run_beside_each_other_on_so_many_threads() -> None:
    asyncio.run(_pool())


async def _abandoned(entered: threading.Event, released: threading.Event) -> list[str]:
    pool = PoolOffload("test", 1)
    heard: list[str] = []

    def wait() -> str:
        entered.set()
        released.wait(20)
        return "late"

    for job in (wait, lambda: "never begun"):
        pool.submit(job, heard.append, lambda failure: heard.append(repr(failure)))
    await asyncio.get_running_loop().run_in_executor(None, entered.wait, 20)
    pool.close()
    return heard


def test_closed_pool_waits_for_nothing() -> None:
    entered, released = threading.Event(), threading.Event()
    heard = asyncio.run(_abandoned(entered, released))
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "test-1"]
    assert thread.daemon
    released.set()
    thread.join(20)
    assert heard == [] and not thread.is_alive()


# --- Events ---------------------------------------------------------------------------------------


def test_events_are_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure("info", "json")
    try:
        log = telemetry.logger("wal")
        assert not log.is_debug()
        log.debug("wal.quiet")
        log.info("wal.file.rolled", seq=3, name="a b")
        log.error("wal.failed", cause=OSError("disk"), seq=4)
    finally:
        logging.getLogger(telemetry.ROOT).handlers.clear()
        logging.getLogger(telemetry.ROOT).propagate = True
    rolled, failed = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (rolled["event"], rolled["seq"], rolled["name"]) == ("wal.file.rolled", 3, "a b")
    assert rolled["level"] == "INFO"
    assert "disk" in failed["exception"]


@pytest.mark.parametrize("colours", [False, True])
def test_events_are_readable_lines(colours: bool, capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure("debug", "pretty", colours)
    try:
        telemetry.logger("wal").warning("wal.slow", path="/a b", id=b"\x01\xff", empty="")
    finally:
        logging.getLogger(telemetry.ROOT).handlers.clear()
        logging.getLogger(telemetry.ROOT).propagate = True
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith('wal.slow path="/a b" id=01ff empty=""')
    assert ("\x1b[" in line) == colours


def test_threads_never_share_random_bytes() -> None:
    entropy = SystemEntropy()

    def draw(count: int) -> list[int]:
        return [entropy.bits(128) for _ in range(count)]

    with ThreadPoolExecutor(4) as pool:
        drawn = [number for batch in pool.map(draw, [5_000] * 4) for number in batch]
    assert len(set(drawn)) == len(drawn)
