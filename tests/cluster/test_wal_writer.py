"""Group commit: what shares a group, who syncs it, and what happens when the disk refuses."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest
from tests.cluster.rigs import Rig, turn
from tests.sim.disk import SimDisk
from tests.sim.loop import SimLoop, run
from tests.storage.logs import open_log, store

from perdure.core.errors import LogFailed
from perdure.core.limits import DISK_FULL_RETRY_MS, WAL_MARK_IDLE_MS
from perdure.storage.wal import WalSizes
from perdure.storage.wal_format import FrameType

Body = Callable[[Rig], Coroutine[Any, Any, None]]
SMALL = WalSizes(first_file=4096, file=4096, free_min=0, reserve=1024)


def _run(body: Body, sizes: WalSizes | None = None) -> SimDisk:
    disk = SimDisk(random.Random(1))

    async def main(loop: SimLoop) -> None:
        rig = Rig(disk, sizes) if sizes is not None else Rig(disk)
        await body(rig)
        rig.writer.close()

    run(1, main)
    disk.kill()
    return disk


def test_frames_of_one_turn_share_a_write_and_a_sync() -> None:
    async def body(rig: Rig) -> None:
        order: list[int] = []
        for number in range(10):
            rig.writer.stage(store(number, b"x"), partial(order.append, number))
        assert order == []
        await turn()
        assert order == list(range(10))
        assert rig.writer.statistics().groups == rig.wal.statistics().groups == 1

    disk = _run(body)
    frames = open_log(disk).frames
    assert [header.group_id for _, _, header, _ in frames] == [1] * 11
    assert frames[-1][2].type == FrameType.CHECKPOINT


def test_acks_come_after_the_sync() -> None:
    async def body(rig: Rig) -> None:
        synced: list[int] = []
        acked: list[int] = []
        rig.disk.on_sync = lambda: synced.append(len(acked))
        rig.writer.stage(store(0, b"x"), lambda: acked.append(len(synced)))
        await turn()
        assert synced == [0]
        assert acked == [1]

    _run(body)


def test_a_slow_disk_is_served_by_the_thread_and_the_next_group_gathers() -> None:
    async def body(rig: Rig) -> None:
        rig.sync_ms = 50.0
        acked: list[int] = []
        rig.writer.stage(store(0, b"x"), lambda: acked.append(0))
        await turn()
        assert acked == [0]  # the first one measured it
        for number in range(1, 4):
            rig.writer.stage(store(number, b"x"), partial(acked.append, number))
            await turn()
        assert len(rig.writing.jobs) == 1
        assert acked == [0]
        rig.writing.run_next()
        await turn()
        assert acked == [0, 1]
        rig.writing.run_next()
        assert acked == [0, 1, 2, 3]
        assert rig.writer.statistics().groups == 3
        assert rig.writer.statistics().inline_groups == 1

    _run(body)


def test_one_slow_sync_among_quick_ones_changes_nothing_and_several_do() -> None:
    async def body(rig: Rig) -> None:
        async def write(number: int, sync_ms: float) -> None:
            rig.sync_ms = sync_ms
            rig.writer.stage(store(number, b"x"), None)
            await turn()

        for number in range(5):
            await write(number, 0.25)
        await write(5, 50.0)
        await write(6, 0.25)
        assert (rig.writer.statistics().inline_groups, rig.writing.jobs) == (7, [])
        await write(7, 50.0)
        await write(8, 50.0)
        await write(9, 50.0)
        assert len(rig.writing.jobs) == 1

    _run(body)


@pytest.mark.parametrize(("rest_ms", "is_inline"), [(20, True), (2, False)])
def test_syncs_that_are_slow_but_rare_are_done_by_the_loop(rest_ms: int, is_inline: bool) -> None:
    async def body(rig: Rig) -> None:
        rig.sync_ms = 3.0
        for number in range(40):
            rig.writer.stage(store(number, b"x"), None)
            await turn()
            while rig.writing.jobs:
                rig.writing.run_next()
            await asyncio.sleep(rest_ms / 1000)
        found = rig.writer.statistics()
        assert found.groups >= 39
        assert (found.inline_groups > found.groups // 2) is is_inline

    _run(body)


def test_a_flush_asked_for_during_a_write_is_not_forgotten() -> None:
    """Sequencers collect their batches at the flush: until then nothing is staged."""

    async def body(rig: Rig) -> None:
        rig.sync_ms = 50.0
        acked: list[int] = []
        rig.writer.stage(store(0, b"x"), None)
        await turn()
        rig.writer.stage(store(1, b"x"), None)
        await turn()
        waiting = [store(2, b"x")]

        def collect() -> None:
            while waiting:
                rig.writer.stage(waiting.pop(), lambda: acked.append(1))

        rig.writer.before_flush(collect)
        rig.writer.request_flush()
        await turn()
        rig.writing.run_next()
        await turn()
        rig.writing.run_all()
        assert acked == [1]

    _run(body)


def test_a_large_group_goes_to_the_thread() -> None:
    async def body(rig: Rig) -> None:
        rig.writer.stage(store(0, b"x" * 300_000), None)
        await turn()
        assert len(rig.writing.jobs) == 1
        rig.writing.run_all()

    _run(body, WalSizes(first_file=1 << 20, file=1 << 20, free_min=0, reserve=1024))


def test_a_roll_goes_to_the_thread() -> None:
    async def body(rig: Rig) -> None:
        offset = 0
        while not rig.writing.jobs:
            rig.writer.stage(store(offset, b"x" * 400), None)
            await turn()
            offset += 1
        assert rig.wal.statistics().files == 1
        rig.writing.run_all()
        assert rig.wal.statistics().files == 2

    _run(body, SMALL)


def test_silence_is_marked_once() -> None:
    async def body(rig: Rig) -> None:
        rig.writer.stage(store(0, b"x"), None)
        await asyncio.sleep(WAL_MARK_IDLE_MS / 1000 * 10)
        rig.writer.stage(store(1, b"x"), None)
        await asyncio.sleep(WAL_MARK_IDLE_MS / 1000 * 10)
        assert rig.wal.statistics().groups == 4

    frames = open_log(_run(body)).frames
    marks = [body for _, _, header, body in frames if header.type == FrameType.MARK]
    assert marks == [(1).to_bytes(4, "little"), (3).to_bytes(4, "little")]
    assert frames[-1][2].type == FrameType.MARK


def test_a_busy_log_is_not_marked() -> None:
    async def body(rig: Rig) -> None:
        for number in range(20):
            rig.writer.stage(store(number, b"x"), None)
            await asyncio.sleep(WAL_MARK_IDLE_MS / 2000)

    kinds = [header.type for _, _, header, _ in open_log(_run(body)).frames]
    assert FrameType.MARK not in kinds


def test_a_checkpoint_ends_the_first_group_of_each_file_that_leaves_nothing_behind() -> None:
    async def body(rig: Rig) -> None:
        for number in range(40):
            rig.writer.stage(store(number, b"x" * 300), None)
            await turn()
            rig.writing.run_all()
            rig.housekeeping.run_all()

    frames = open_log(_run(body, SMALL)).frames
    files = {seq for seq, _, _, _ in frames}
    checkpoints = [seq for seq, _, h, _ in frames if h.type == FrameType.CHECKPOINT]
    assert len(files) > 3
    assert sorted(checkpoints) == sorted(files)


@pytest.mark.parametrize("is_slow", [False, True])
def test_a_failed_sync_stops_the_log_for_good(is_slow: bool) -> None:
    async def body(rig: Rig) -> None:
        if is_slow:
            rig.sync_ms = 50.0
            rig.writer.stage(store(0, b"x"), None)
            await turn()
        acked: list[int] = []
        rig.disk.sync_failure_at = 0
        rig.writer.stage(store(1, b"x"), lambda: acked.append(1))
        await turn()
        rig.writing.run_all()
        rig.writer.stage(store(2, b"x"), lambda: acked.append(2))
        await asyncio.sleep(1)
        assert acked == []
        (failure,) = rig.failures
        assert isinstance(failure, LogFailed)
        assert "sync failure" in failure.message

    _run(body)


def test_a_full_disk_keeps_the_group_until_there_is_room() -> None:
    async def body(rig: Rig) -> None:
        acked: list[int] = []
        rig.disk.capacity -= rig.disk.free_bytes()
        offset = 0
        while not rig.writing.jobs:  # the group that needs a new file
            rig.writer.stage(store(offset, b"x" * 400), partial(acked.append, offset))
            await turn()
            rig.housekeeping.run_all()
            offset += 1
        assert rig.server.is_full
        rig.writing.run_all()
        rig.writer.stage(store(offset, b"y"), partial(acked.append, offset))
        tried = rig.disk.steps
        await asyncio.sleep(DISK_FULL_RETRY_MS / 1000 * 20)
        assert acked == list(range(offset - 1))
        assert rig.disk.steps == tried
        assert len(rig.housekeeping.jobs) == 1  # one look at a time, not a storm
        rig.housekeeping.run_all()
        rig.disk.capacity = 1 << 30
        await asyncio.sleep(DISK_FULL_RETRY_MS / 1000 * 2)
        rig.housekeeping.run_all()
        await turn()
        rig.writing.run_all()
        assert not rig.server.is_full
        assert acked == list(range(offset + 1))
        assert rig.failures == []

    assert len(open_log(_run(body, SMALL)).bodies) > 5


def test_no_spare_means_read_only_before_the_file_is_full() -> None:
    async def body(rig: Rig) -> None:
        rig.disk.capacity -= rig.disk.free_bytes()
        acked: list[int] = []
        rig.writer.stage(store(0, b"x"), lambda: acked.append(0))
        await turn()
        rig.housekeeping.run_all()
        assert rig.writer.statistics().is_full
        rig.writer.stage(store(1, b"x"), lambda: acked.append(1))
        await turn()
        assert acked == [0, 1]  # seals and the like still go through

    _run(body)


def test_recycling_makes_room() -> None:
    async def body(rig: Rig) -> None:
        for number in range(12):
            rig.writer.stage(store(number, b"x" * 400), None)
            await turn()
            rig.writing.run_all()
        assert rig.wal.statistics().files > 1
        rig.disk.capacity -= rig.disk.free_bytes()
        rig.writer.ensure_spare()
        rig.housekeeping.run_all()
        assert rig.server.is_full
        rig.writer.recycle(lambda segment, end: True)
        rig.housekeeping.run_all()
        assert not rig.server.is_full

    _run(body, SMALL)
