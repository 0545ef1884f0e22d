"""A processor and its storage thread: late reports, and a disk that refuses."""

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from perdure.core.errors import DiskFull
from perdure.core.ids import PartitionId
from perdure.engine.commands import RECORD_KIND_COMMAND, Announce, encode_command
from perdure.node.partition.processor import Processor
from perdure.storage.env import LmdbEnv
from perdure.storage.partition_store import PartitionStore
from perdure.storage.wal_format import Record

T = TypeVar("T")


class HeldThread:
    """Keeps what its jobs have to report until it is called for."""

    def __init__(self, *, disk_fails: bool) -> None:
        self.reports: list[Callable[[], None]] = []
        self.asked = asyncio.Event()
        self.disk_fails = disk_fails

    def submit(
        self,
        job: Callable[[], T],
        done: Callable[[T], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self.asked.set()
        if self.disk_fails:
            self.reports.append(lambda: failed(OSError(errno.EIO, "the disk refused")))
        else:
            result = job()
            self.reports.append(lambda: done(result))

    def close(self) -> None: ...


@pytest.mark.parametrize("disk_fails", [False, True])
def test_a_flush_that_ends_after_the_close_touches_nothing(
    tmp_path: Path, disk_fails: bool
) -> None:
    async def work() -> None:
        thread = HeldThread(disk_fails=disk_fails)
        durable: list[int] = []
        failures: list[BaseException] = []
        env, processor = _processor(tmp_path, thread, durable, failures)
        processor.flush(lambda: durable.append(0))
        processor.close()
        env.close()
        (report,) = thread.reports
        report()
        assert (durable, failures, len(thread.reports)) == ([], [], 1)

    asyncio.run(work())


def test_who_asks_is_refused_while_the_disk_refuses_the_tables(tmp_path: Path) -> None:
    async def work() -> None:
        thread = HeldThread(disk_fails=True)
        durable: list[int] = []
        failures: list[BaseException] = []
        env, processor = _processor(tmp_path, thread, durable, failures)
        processor.check_available()
        processor.flush(lambda: durable.append(0))
        thread.reports.pop()()
        with pytest.raises(DiskFull, match="the disk refused"):
            processor.check_available()
        thread.disk_fails = False
        thread.asked.clear()
        async with asyncio.timeout(10):
            await thread.asked.wait()  # it tries again by itself
        thread.reports.pop()()
        processor.check_available()
        assert (durable, failures) == ([1, 0], [])
        processor.close()
        env.close()

    asyncio.run(work())


def _processor(
    folder: Path, thread: HeldThread, durable: list[int], failures: list[BaseException]
) -> tuple[LmdbEnv, Processor]:
    """A partition whose first record is applied and not flushed."""
    env = LmdbEnv(folder)
    store = PartitionStore(env, b"f" * 16, 0)
    processor = Processor(
        PartitionId(0), 1, store, thread, lambda _, lsn: durable.append(lsn), failures.append
    )
    processor.replay([_announcement()])
    return env, processor


def _announcement() -> Record:
    payload = encode_command(Announce(1, 1, 1, 1, "test"))
    return Record(1, 1, RECORD_KIND_COMMAND, 1_700_000_000_000, 0, 0, 0, 0, payload)
