"""``perdure up --workers`` as a process: who its workers are, what they lead, and a run on it."""

import asyncio
import re
import time
from pathlib import Path

from tests.process.calls import request
from tests.process.driver import CrashRun, RunOptions
from tests.process.processes import ServerProcess, led_by, wait_listening, watch
from tests.process.programs import CELL

from perdure.core.limits import WORKER_PORTS_EACH

PARTITIONS = 8
# Connections that would hardly all go to one worker.
_CONNECTIONS = 24
_DEADLINE_SECONDS = 120.0


class WorkersProcess(ServerProcess):
    """The supervisor and its workers; their own ports begin at ``base``."""

    def __init__(self, folder: Path, count: int, base: int) -> None:
        super().__init__(folder)
        self.count = count
        self.own_ports = [base + number * WORKER_PORTS_EACH for number in range(count)]
        at = self.command.index("server")
        self.command = [
            *self.command[:at],
            "up",
            *("--workers", str(count), "--base-dir", str(self.base_dir)),
        ]
        self.environment |= {
            "PERDURE_BIND_ADDRESS": f"127.0.0.1:{base}",
            "PERDURE_CLUSTER__BIND_ADDRESS": f"127.0.0.1:{base + 1}",
            "PERDURE_WORKER__PARTITION_COUNT": str(PARTITIONS),
            "PERDURE_LOG_LEVEL": "info",
        }

    def workers(self) -> list[int]:
        """The process ids of the workers, in their order, as the log tells."""
        found = re.findall(r"worker\.started worker=worker-(\d+) process=(\d+)", self.log())
        latest = {int(number): int(process) for number, process in found}
        return [latest[number] for number in range(1, self.count + 1)]

    def log(self) -> str:
        """All that was logged."""
        return self.log_path.read_text()

    async def wait_ended(self, count: int, timeout_seconds: float = _DEADLINE_SECONDS) -> None:
        """Wait until the supervisor has noticed so many ends of workers."""

        async def ended() -> int:
            return self.log().count("worker.ended")

        await watch(
            ended, lambda seen: seen >= count, timeout_seconds, lambda seen: f"only {seen} ended"
        )

    async def led(self, number: int) -> set[int]:
        """The partitions that a worker leads, by its own metrics."""
        return await led_by(self.own_ports[number - 1])

    async def wait_spread(self, timeout_seconds: float = _DEADLINE_SECONDS) -> list[set[int]]:
        """Wait until all partitions are led, as many by each worker; which by which."""

        async def look() -> list[set[int]]:
            self.check_alive()
            return [await self.led(number) for number in range(1, self.count + 1)]

        return await watch(
            look,
            lambda led: [len(each) for each in led] == [PARTITIONS // self.count] * self.count,
            timeout_seconds,
            lambda led: f"led are {led}{self.log_tail()}",
        )


class WorkersRun(CrashRun):
    """Random programs against the shared port."""

    def __init__(self, folder: Path, options: RunOptions, server: WorkersProcess) -> None:
        super().__init__(folder, options, server)
        self.workers = server

    async def start(self) -> None:
        """Bring all up; register at one of them, and wait until all know of it."""
        self.workers.start()
        self.service.start()
        await wait_listening(self.service, self.service.port)
        await self.workers.wait_healthy(_DEADLINE_SECONDS)
        await self.workers.register(self.service.port)
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while not all([await self._is_known() for _ in range(_CONNECTIONS)]):
            assert time.monotonic() < deadline, "a worker doesn't hear of the service"

    async def wait_busy(self, count: int) -> None:
        """Wait until so many programs more have been submitted."""
        wanted = len(self.submissions) + count
        async with asyncio.timeout(_DEADLINE_SECONDS):
            while len(self.submissions) < wanted:
                await self.breathe()

    async def _is_known(self) -> bool:
        answer = await request(self.workers.admin_port, "GET", f"/services/{CELL}")
        return answer.status == 200
