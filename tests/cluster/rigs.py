"""A log server over a simulated disk: what the tests of writer, log and takeover stand on."""

import asyncio
import random
from collections.abc import Callable
from typing import TypeVar

from tests.sim.disk import SimDisk
from tests.sim.ports import SimClock, SimEntropy
from tests.storage.logs import IDENTITY

from perdure.cluster.core.replica import ReplicaCore
from perdure.cluster.core.types import Member, NodeId
from perdure.cluster.log import LogBatcher
from perdure.cluster.log_reader import ReplayIndex
from perdure.cluster.log_server import LogServer
from perdure.cluster.wal_writer import WalWriter
from perdure.storage.wal import Wal, WalSizes
from perdure.storage.wal_recovery import open_wal

T = TypeVar("T")
ME = Member(NodeId(1), IDENTITY.storage_uuid)
SIZES = WalSizes(first_file=64 * 1024, file=64 * 1024, free_min=0, reserve=1024)


class HandOffload:
    """A thread whose jobs run when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], None]] = []

    def submit(
        self,
        job: Callable[[], T],
        done: Callable[[T], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        def run() -> None:
            try:
                result = job()
            except Exception as failure:
                failed(failure)
            else:
                done(result)

        self.jobs.append(run)

    def run_next(self) -> None:
        self.jobs.pop(0)()

    def run_all(self) -> None:
        while self.jobs:
            self.run_next()

    def close(self) -> None:
        self.run_all()


class Rig:
    """One life of a log server. ``sync_ms`` is what each sync takes on the clock."""

    def __init__(self, disk: SimDisk, sizes: WalSizes = SIZES) -> None:
        self.disk = disk
        self.replicas = ReplicaCore(ME)
        self.index = ReplayIndex(self.replicas, lambda _segment, _end: False)
        entropy = SimEntropy(random.Random(disk.life))
        self.wal: Wal = open_wal(
            disk, IDENTITY, entropy, self.index.visit, lambda _segment, _end: False, sizes
        ).wal
        self.clock = SimClock(asyncio.get_running_loop())
        self.sync_ms = 0.0
        disk.on_sync = self._spend
        self.writing = HandOffload()
        self.housekeeping = HandOffload()
        self.failures: list[BaseException] = []
        self.writer = WalWriter(
            self.wal,
            self.clock,
            self.writing,
            self.housekeeping,
            self.failures.append,
            self.replicas.checkpoint,
        )
        self.server = LogServer(self.replicas, self.writer)
        self.batcher = LogBatcher(self.writer)

    def _spend(self) -> None:
        self.clock.spent += self.sync_ms / 1000


async def turn(times: int = 3) -> None:
    """Let the loop run what is ready."""
    for _ in range(times):
        await asyncio.sleep(0)
